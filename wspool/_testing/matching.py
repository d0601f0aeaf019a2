"""When two messages of a client count as the same, which ids stand for which, and what differs.

JSON is the same with the same values, whatever the order of its fields and the space between them,
and without the fields that are ignored. Those have ids, which the client or the server has made
up; each connection learns which of its own stands for which of the recording.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from typing import Any, Final

Message = str | bytes

Scrub = Callable[[Message], Message]

NEAREST: Final = 5
"""Turns whose likeness is measured well, out of all that were measured roughly."""

COMPARED: Final = 500
"""Words of a turn that its likeness is measured by."""

WIDTH: Final = 100
"""Characters in a line of what is shown of a message."""

SHOWN_LINES: Final = 80
"""Of a difference."""


def parsed(message: Message) -> Any:
    """Return the value of a message that is JSON; raises ValueError for any other."""
    if isinstance(message, bytes):
        raise ValueError("a binary message")
    try:
        return json.loads(message, parse_constant=_refuse, parse_float=_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _number(digits: str) -> float | int:
    number = float(digits)
    return int(number) if number.is_integer() else number


def without(value: Any, ignored: frozenset[str]) -> Any:
    """Return a JSON value without the ignored fields."""
    if isinstance(value, dict):
        return {k: without(v, ignored) for k, v in value.items() if k not in ignored}
    if isinstance(value, list):
        return [without(item, ignored) for item in value]
    return value


def key(message: Message, ignored: frozenset[str]) -> Message:
    """Return what is equal for messages that count as the same."""
    try:
        return json.dumps(without(parsed(message), ignored), sort_keys=True)
    except ValueError:
        return message


# Ids.


class Ids:
    """Which of a connection's ids, the values of ignored fields, stands for which recorded one.

    A text is the same id in whichever field it stands, anything else only in fields of one name:
    numbers that are equal by chance are many.
    """

    def __init__(self, ignored: frozenset[str]) -> None:
        self._ignored = ignored
        self._live: dict[object, Any] = {}
        """The client's value by the recorded id."""
        self._recorded: dict[object, object] = {}
        """The recorded id by the client's."""
        self._issued: set[object] = set()
        """Those that the server has made up: what the client says of one is all of one thing."""

    def choose(self, live: list[Message], candidates: Sequence[list[Message]]) -> int:
        """Return the position of the first of those with the most ids that these stand for.

        Only the server's count: a client may number what it sends anew at any time.
        """
        if len(candidates) == 1 or not self._issued.intersection(ids_of(live, self._ignored)):
            return 0
        return max(range(len(candidates)), key=lambda at: self._fit(live, candidates[at]))

    def _fit(self, live: list[Message], recorded: list[Message]) -> int:
        pairs = [
            (_id(name, ours), _id(name, theirs))
            for name, ours, theirs in self._pairs(live, recorded)
        ]
        return sum(
            ours in self._issued and self._recorded.get(ours) == theirs for ours, theirs in pairs
        )

    def learn(self, live: list[Message], recorded: list[Message]) -> None:
        """Let the ids of these messages stand for the recorded ones from now on."""
        for name, our_value, their_value in self._pairs(live, recorded):
            ours, theirs = _id(name, our_value), _id(name, their_value)
            self._recorded[ours] = theirs
            self._live[theirs] = our_value

    def put_into(self, message: Message, named: Set[object]) -> Message:
        """Return a message of the server's with this connection's ids in it.

        `named` are the ids that the server makes up in this turn. They stay as they are, since the
        client cannot know them from elsewhere.
        """
        if not self._ignored:
            return message
        try:
            value = json.loads(message) if isinstance(message, str) else None
        except (ValueError, RecursionError):
            return message
        has_changed = False
        for fields, name in _found(value, self._ignored):
            recorded = _id(name, fields[name])
            if recorded in named or recorded not in self._live:
                self._live.setdefault(recorded, fields[name])
                self._recorded.setdefault(recorded, recorded)
                self._issued.add(recorded)
            elif fields[name] != self._live[recorded]:
                fields[name] = self._live[recorded]
                has_changed = True
        if not has_changed:
            return message
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def _pairs(
        self, live: list[Message], recorded: list[Message]
    ) -> Iterator[tuple[str, Any, Any]]:
        """Give each field with an id, its live value and the recorded one in the same place."""
        if not self._ignored:
            return
        for ours, theirs in zip(live, recorded, strict=True):
            with suppress(ValueError):
                yield from self._pairs_in(parsed(ours), parsed(theirs))

    def _pairs_in(self, ours: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            for name in (name for name in ours if name in theirs):
                if name not in self._ignored:
                    yield from self._pairs_in(ours[name], theirs[name])
                elif ours[name] is not None and theirs[name] is not None:
                    yield name, ours[name], theirs[name]
        elif isinstance(ours, list) and isinstance(theirs, list):
            for our_item, their_item in zip(ours, theirs, strict=False):
                yield from self._pairs_in(our_item, their_item)


def ids_of(messages: Iterable[Message], ignored: frozenset[str]) -> set[object]:
    """Return the ids that messages have."""
    found: set[object] = set()
    for message in messages if ignored else ():
        with suppress(ValueError):
            found.update(
                _id(name, fields[name]) for fields, name in _found(parsed(message), ignored)
            )
    return found


def _found(value: Any, ignored: frozenset[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Give each ignored field that has an id, with the object that it is in."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in ignored:
                yield from _found(item, ignored)
            elif item is not None:
                yield value, name
    elif isinstance(value, list):
        for item in value:
            yield from _found(item, ignored)


def _id(field: str, value: Any) -> object:
    return value if isinstance(value, str) else (field, json.dumps(value, sort_keys=True))


# Differences.


def shown(messages: Iterable[Message], ignored: frozenset[str]) -> list[str]:
    """Return messages as lines, one for each value of JSON, that can be compared by eye."""
    lines: list[str] = []
    for number, message in enumerate(messages, start=1):
        if number > 1:
            lines.append(f"(message {number})")
        lines += (
            line[at : at + WIDTH]
            for line in _lines(message, ignored)
            for at in range(0, max(len(line), 1), WIDTH)
        )
    return lines


def _lines(message: Message, ignored: frozenset[str]) -> list[str]:
    if isinstance(message, bytes):
        return [
            f"{at:06x}  {message[at : at + 16].hex(' ')}" for at in range(0, len(message), 16)
        ] or ["(empty, binary)"]
    try:
        value = without(parsed(message), ignored)
    except ValueError:
        return message.splitlines() or ["(empty)"]
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).splitlines()


def nearest(lines: list[str], others: list[list[str]]) -> int:
    """Return the position of the lines that are most like these; there must be some."""
    matcher = difflib.SequenceMatcher(b=_words(lines), autojunk=False)
    rough: list[tuple[float, int]] = []
    for position, other in enumerate(others):
        matcher.set_seq1(_words(other))
        rough.append((-matcher.quick_ratio(), position))
    best: list[tuple[float, int]] = []
    for _, position in sorted(rough)[:NEAREST]:
        matcher.set_seq1(_words(others[position]))
        best.append((-matcher.ratio(), position))
    return min(best)[1]


def _words(lines: list[str]) -> list[str]:
    return re.findall(r"\w+|\S", "\n".join(lines))[:COMPARED]


def difference(recorded: list[str], received: list[str], names: tuple[str, str]) -> str:
    """Return a unified diff, as long as can be read."""
    lines = [*difflib.unified_diff(recorded, received, *names, lineterm="")]
    if len(lines) > SHOWN_LINES:
        lines[SHOWN_LINES:] = [f"… and {len(lines) - SHOWN_LINES} lines more"]
    return "\n".join(lines)
