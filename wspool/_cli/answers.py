"""The answers that a server has given to the probe, and what tells where such an answer ends.

Nothing here touches the network. The messages of an answer are looked at, and not shown: what is
shown is its last one, shortened and without secrets, and the one word of it that code compares.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, NamedTuple

from wspool._cli.shared import Argument, literal, percentile, span

DRAIN_QUIET_PERIOD: Final = 2.0
DRAIN_TIMEOUT: Final = 10.0
"""The pool's defaults; nothing below them is ever proposed."""

LEAST_GAIN: Final = 0.1
"""The share of an answer's time that compression must save before it is proposed."""

LEAST_ANSWERS: Final = 4
"""Answers with compression, and without it, below which a difference may be chance."""

MAX_WORD: Final = 64
"""Characters of a value that may tell a message from others: what is longer is content."""

_TELLING: Final = ("type", "event", "message_type", "status", "op", "method", "action", "done")
"""Keys of a JSON message that say of what kind it is, the likeliest first."""

_HEARTBEAT: Final = re.compile(r"(?i)(ping|heart[-_ ]?beat|keep[-_ ]?alive|hb)")


class Mark(NamedTuple):
    """What tells a message from others: this key of its JSON has this value.

    The key "header.event" is that of an object within the object. The key "" stands for the text of
    the message.
    """

    key: str
    value: str | bool

    def source(self, message: str = "message") -> str:
        """Return the comparison as Python."""
        value = literal(self.value) if isinstance(self.value, str) else self.value
        if not self.key:
            return f"{message} == {value}"
        equals = "==" if isinstance(self.value, str) else "is"
        outer, _, inner = self.key.partition(".")
        found = f"json.loads({message}).get({literal(outer)}"
        found += f", {{}}).get({literal(inner)})" if inner else ")"
        return f"{found} {equals} {value}"


@dataclass(frozen=True)
class Answer:
    """What came after one question, until nothing more came; times are in seconds.

    `first` and `seconds` are the times from the question to the first and to the last message,
    `pause` is the longest silence between them. `last` is the last message as people may see it.
    If a ping was sent right behind the question, `before_pong` says how many came before its pong.
    """

    messages: int
    first: float
    seconds: float
    pause: float
    last: str
    is_whole: bool = True
    is_compressed: bool = False
    before_pong: int | None = None
    texts: tuple[str | bytes, ...] | None = field(default=(), repr=False)
    """The messages, or None if they were too long to be kept."""


# Telling messages apart.


def marks(message: str | bytes) -> set[Mark]:
    """Return what could tell a message from others."""
    if isinstance(message, bytes):
        return set()
    fields = _fields(message)
    if fields is None:
        return {Mark("", message)} if _is_word(message) else set()
    inner = {
        f"{outer}.{key}": value
        for outer, object_ in fields.items()
        if isinstance(object_, dict)
        for key, value in object_.items()
    }
    return {
        Mark(key, value)
        for key, value in (fields | inner).items()
        if re.fullmatch(r"\w+(\.\w+)?", key) and _is_word(value)
    }


def _fields(message: str | bytes) -> dict[str, Any] | None:
    """Return the message's JSON object, or None if it is something else."""
    try:
        value = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_word(value: object) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= MAX_WORD and value.isprintable()
    return isinstance(value, bool)


def last_mark(answers: Sequence[Answer]) -> Mark | None:
    """Return what the last message of each answer has and no other message, or None."""
    if any(answer.texts is None or not answer.texts for answer in answers):
        return None
    ends = [marks(answer.texts[-1]) for answer in answers if answer.texts]
    others = [text for answer in answers for text in (answer.texts or ())[:-1]]
    texts = [text for answer in answers for text in answer.texts or ()]
    if not ends or not others:
        return None
    found = set.intersection(*ends).difference(*map(marks, others))
    return min((one for one in found if _can_be_asked(one, texts)), key=_rank, default=None)


def _can_be_asked(mark: Mark, texts: Sequence[str | bytes]) -> bool:
    """Return whether the comparison raises for none of these messages."""
    outer, _, inner = mark.key.partition(".")
    fields = [_fields(text) for text in texts if isinstance(text, str)]
    return not outer or all(
        one is not None and (not inner or isinstance(one.get(outer, {}), dict)) for one in fields
    )


def _rank(mark: Mark) -> tuple[int, bool, bool, str]:
    name = mark.key.rpartition(".")[2]
    order = _TELLING.index(name) if name in _TELLING else len(_TELLING)
    return order, "." in mark.key, isinstance(mark.value, bool), mark.key


def heartbeat_mark(texts: Iterable[str | bytes]) -> Mark | None:
    """Return what says of messages that came unasked that they are heartbeats, or None."""
    texts = list(texts)
    named = (
        mark
        for text in texts
        for mark in sorted(marks(text), key=_rank)
        if mark.key in ("", *_TELLING)
        and _HEARTBEAT.fullmatch(str(mark.value))
        and _can_be_asked(mark, texts)
    )
    return next(named, None)


# The advice.


def definition_of_last(mark: Mark, answers: Sequence[Answer]) -> str:
    """Return the function for `drain_until`, as Python."""
    texts = [text for answer in answers for text in answer.texts or ()]
    lines = ["def is_last(message):"]
    if mark.key and any(isinstance(text, bytes) for text in texts):
        lines += ["    if isinstance(message, bytes):", "        return False"]
    return "\n".join([*lines, f"    return {mark.source()}"])


def drains(answers: Sequence[Answer], *, has_pushes: bool) -> Iterator[Argument]:
    """Give the options that say how the pool sees that an answer is over."""
    if not is_drain_needed(answers):
        return
    pause = max(max(answer.first, answer.pause) for answer in answers)
    if last_mark(answers) is not None:
        why = f"each of {len(answers)} answers ended with it, and it came nowhere else"
        yield Argument("drain_until", "is_last", why)
    elif has_pushes:
        return  # neither a pong nor silence says anything there
    elif holds_fence(answers):
        tried = [answer for answer in answers if answer.before_pong is not None]
        why = f"in {len(tried)} of {len(tried)} answers the pong came behind the last message"
        yield Argument("drain_fence", "True", why)
        return
    else:
        yield Argument("check_server_data_on_release", "True", "only silence says that it is over")
    if (quiet := float(math.ceil(3 * pause))) > DRAIN_QUIET_PERIOD:
        yield Argument("drain_quiet_period", f"{quiet}", f"an answer paused for {span(pause)}")
    longest = max(answer.seconds for answer in answers)
    if (timeout := float(math.ceil(2 * longest))) > DRAIN_TIMEOUT:
        yield Argument("drain_timeout", f"{timeout}", f"an answer took {span(longest)}")


def is_drain_needed(answers: Sequence[Answer]) -> bool:
    """Return whether borrowers can leave something of an answer behind, as far as was seen."""
    return any(answer.messages > 1 for answer in answers) and all(a.is_whole for a in answers)


def holds_fence(answers: Sequence[Answer]) -> bool:
    """Return whether each pong came behind a whole answer; False if there was none to see."""
    tried = [answer for answer in answers if answer.before_pong is not None]
    return bool(tried) and all(answer.before_pong == answer.messages for answer in tried)


def compression(answers: Sequence[Answer]) -> tuple[float, str] | None:
    """Return the share of an answer's time that compression saves, and the times in words.

    The share is 0 where the times of both kinds overlap, and there is None where too few of
    either kind are known.
    """
    packed = sorted(answer.seconds for answer in answers if answer.is_compressed)
    plain = sorted(answer.seconds for answer in answers if not answer.is_compressed)
    if min(len(packed), len(plain)) < LEAST_ANSWERS:
        return None
    is_clear = percentile(packed, 0.75) < percentile(plain, 0.25)
    gain = 1 - median(packed) / median(plain) if is_clear else 0.0
    times = f"answers took {span(median(packed))} with it, {span(median(plain))} without"
    return gain, times


def notes(answers: Sequence[Answer], *, has_pushes: bool) -> Iterator[str]:
    """Give what to know of the answers that no option says."""
    if not all(answer.is_whole for answer in answers):
        yield "no drain option: an answer was still coming when the probe stopped listening"
    elif not is_drain_needed(answers):
        yield "no drain option: each answer was one message, so who reads it leaves nothing behind"
    elif last_mark(answers) is None and has_pushes:
        yield "no drain option: the server also sends unasked, and no message is marked as the last"
    tried = [answer for answer in answers if answer.before_pong is not None]
    if tried and not holds_fence(answers):
        early = sum(answer.before_pong != answer.messages for answer in tried)
        yield f"no drain_fence: in {early} of {len(tried)} answers the pong came before the end"


# In words.


def rows(answers: Sequence[Answer]) -> Iterator[tuple[str, str]]:
    """Give the lines of the report."""
    counts = sorted({answer.messages for answer in answers})
    number = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    shown = f"{number} message{'' if counts == [1] else 's'}, the last "
    longest = max(answers, key=lambda answer: answer.seconds)
    more = "" if longest.is_whole else "; more was coming"
    yield "answer", f"{shown}within {span(longest.seconds)}{more}"
    yield "its last message", answers[-1].last
    tried = [answer for answer in answers if answer.before_pong is not None]
    if tried:
        held = sum(answer.before_pong == answer.messages for answer in tried)
        yield "fence", f"the pong came behind the answer in {held} of {len(tried)}"
