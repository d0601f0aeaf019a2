"""What a probe has seen of a server, in words, and what to set because of it.

Nothing here touches the network: observations are frozen records, and the advice is a pure function
of them. Times are in seconds. No header value, user-info or query value is in an observation, and
none is in the advice: the code reads them from the environment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from wspool._cli.answers import (
    LEAST_GAIN,
    Mark,
    compression,
    definition_of_last,
    drains,
    last_mark,
    notes,
    rows,
)
from wspool._cli.observations import Capacity, Observation, Target
from wspool._cli.shared import Argument, literal, percentile, span
from wspool._pool.limit import FULL_STATUSES, TRY_AGAIN_LATER

IDLE_TIMEOUT: Final = 60.0
CONNECTION_TIMEOUT: Final = 10.0
CHECK_AFTER_IDLE: Final = 5.0
"""The pool's defaults of the first two options, and the usual value of the third."""

NO_REFUSALS: Final = (HTTPStatus.SWITCHING_PROTOCOLS, 1000, 1001, 1005, 1006)
"""What says nothing of a limit: a handshake that is broken, closes as they come at any time."""


# The advice.


@dataclass(frozen=True)
class Advice:
    """The call to make, what it needs to be defined, and what no argument can say."""

    arguments: tuple[Argument, ...]
    definitions: tuple[str, ...]
    notes: tuple[str, ...]

    def code(self) -> str:
        """Return the call with all that it needs, as Python."""
        standard = ["import json"] if any("json." in text for text in self.definitions) else []
        if any("os.environ" in argument.value for argument in self.arguments):
            standard.append("import os")
        if standard:
            standard.append("")
        imports = [*standard, "from wspool import WebsocketConnectionPool"]
        call = [f"# {note}" for note in self.notes] + ["pool = WebsocketConnectionPool("]
        call += [f"    {a.name}={a.value},  # {a.why}" for a in self.arguments] + [")"]
        between = "\n\n\n" if self.definitions else "\n\n"
        return between.join(["\n".join(imports), *self.definitions, "\n".join(call)])


def advise(seen: Observation, target: Target) -> Advice:
    """Return what to set for this server."""
    definitions = []
    arguments = [*_address(target), *_handshake(seen, target)]
    for definition, argument in _hooks(seen, target):
        definitions.append(definition)
        arguments.append(argument)
    arguments += _idle(seen)
    if seen.uses is not None:
        replies = "a reply" if seen.uses == 1 else f"{seen.uses} replies"
        why = f"the server closed each connection after {replies}, {seen.dials[-1].close}"
        arguments.append(Argument("max_uses", str(seen.uses), why))
    else:
        arguments += drains(seen.answers, has_pushes=bool(seen.pushes))
    if seen.capacity is not None and seen.capacity.refusal and seen.capacity.taken:
        why = f"more were refused: {seen.capacity.refusal}"
        arguments.append(Argument("max_connections", str(seen.capacity.taken), why))
        arguments += _is_full(seen.capacity)
    mark, values = last_mark(seen.answers), [argument.value for argument in arguments]
    if mark is not None and ("is_last" in values or any("is_last(" in d for d in definitions)):
        definitions.insert(0, definition_of_last(mark, seen.answers))
    return Advice(tuple(arguments), tuple(definitions), tuple(_notes(seen, target)))


def _hooks(seen: Observation, target: Target) -> Iterator[tuple[str, Argument]]:
    """Give the functions that the pool is to call, each with its argument."""
    lines, first = [], seen.listening.first
    if seen.greets and first is not None:
        what = f"the greeting: {first.kind}, {first.size} bytes"
        lines.append(f"    await connection.recv()  # {what}")
    if target.text is not None and seen.wants_message:
        lines += _question(seen, target.text)
        why = "without a message a connection was closed, with one it stayed"
    elif lines:
        why = "the server greets first"
    if lines:
        body = "\n".join(["async def on_connect(connection):", *lines])
        yield body, Argument("on_connect", "on_connect", why)
    if seen.pushes:
        body = (
            "def on_drained(connection, message):\n"
            "    pass  # what the server sends while nobody reads is lost otherwise"
        )
        why = f"{seen.pushes} messages came unasked in {span(seen.longest.seconds)}"
        yield body, Argument("on_drained", "on_drained", why)
    if (mark := seen.longest.heartbeat) is not None:
        yield _control(mark), Argument("control", "control", _why_control(seen))
    if target.text is not None and _needs_messages(seen):
        lines = ["async def keepalive(connection):", *_question(seen, target.text)]
        why = "messages keep a connection, pings do not"
        yield "\n".join(lines), Argument("keepalive", "keepalive", why)


def _question(seen: Observation, text: str) -> list[str]:
    """Return the lines that send the text and read the answer."""
    lines = [f"    await connection.send({literal(text)})"]
    counts = {answer.messages for answer in seen.answers}
    if counts == {1} or (not counts and seen.times("fresh")):
        lines.append("    await connection.recv()  # it is answered")
    elif last_mark(seen.answers) is not None:
        lines += ["    while not is_last(await connection.recv()):", "        pass"]
    elif counts:
        lines.append(f"    for _ in range({max(counts)}):  # it is answered")
        lines.append("        await connection.recv()")
    return lines


def _control(mark: Mark) -> str:
    lines = ["def control(message):"]
    if mark.key:  # most messages need not be decoded
        word = literal(str(mark.value))
        lines.append(f"    if isinstance(message, bytes) or {word} not in message:")
        lines.append("        return None")
    lines.append(f"    return True if {mark.source()} else None")
    return "\n".join(lines)


def _why_control(seen: Observation) -> str:
    watch = seen.longest
    why = f"{watch.heartbeats} heartbeats came as messages in {span(watch.seconds)}"
    if watch.close is not None:
        why += f"; the connection was closed, {watch.close}: answer them, if the server wants that"
    return why


def _address(target: Target) -> Iterator[Argument]:
    if target.has_secrets:
        yield Argument("uri", 'os.environ["WSPOOL_URI"]', "as given; it is not shown in full")
    else:
        yield Argument("uri", literal(target.uri), "as given")
    if target.headers:
        pairs = (f'{literal(n)}: os.environ["{variable(n)}"]' for n in target.headers)
        yield Argument("headers", f"{{{', '.join(pairs)}}}", "as given with -H; not shown")
    if target.is_insecure:
        yield Argument("ssl", "False", "as given: --insecure, the certificate is not verified")


def _handshake(seen: Observation, target: Target) -> Iterator[Argument]:
    totals = seen.times("total")
    slowest = max([*totals, *seen.times("greeting")])
    if (timeout := float(math.ceil(10 * slowest))) > CONNECTION_TIMEOUT:
        of = f"the slowest of {len(totals)} dials took {span(slowest)}"
        yield Argument("connection_timeout", f"{timeout}", of)
    if seen.protocol == "…":
        why = f"of {len(target.protocols)} offered the server took one that may be a key; not shown"
        yield Argument("protocols", '(os.environ["WSPOOL_SUBPROTOCOL"],)', why)
    elif seen.protocol is not None:
        why = f"of {len(target.protocols)} offered the server took this one"
        yield Argument("protocols", f"({literal(seen.protocol)},)", why)
    if seen.is_compressed and (found := compression(seen.answers)) and found[0] >= LEAST_GAIN:
        yield Argument("compress", "15", found[1])


def _idle(seen: Observation) -> Iterator[Argument]:
    close, idle_timeout = seen.idle_close, IDLE_TIMEOUT
    if close is not None:
        after = f"an idle connection was closed after {span(close.after)}"
        if seen.wants_message:
            pass  # on_connect sends it
        elif seen.prevents(seen.pinging) or _needs_messages(seen):
            does = "pings" if seen.prevents(seen.pinging) else "messages"
            interval = _below(close.after, 0.5)
            yield Argument("keepalive_interval", f"{interval}", f"{after}; {does} prevent that")
        else:
            idle_timeout = _below(close.after, 0.8)
            yield Argument("idle_timeout", f"{idle_timeout}", f"{after}, {close.code}")
    elif (idle := _below(seen.longest.seconds, 0.8)) > IDLE_TIMEOUT:
        idle_timeout = idle
        why = f"an idle connection was still open after {span(seen.longest.seconds)}"
        yield Argument("idle_timeout", f"{idle}", why)
    if seen.pings:
        why = f"pings are answered in {span(percentile(seen.pings, 0.99))}"
        check = min(CHECK_AFTER_IDLE, round(idle_timeout / 2, 1))
        yield Argument("check_after_idle", f"{check}", why)


def _needs_messages(seen: Observation) -> bool:
    """Return whether messages, and not pings, keep a connection open."""
    is_closed = seen.silent is not None and seen.silent.close is not None
    is_kept = seen.prevents(seen.sending) and not seen.prevents(seen.pinging)
    return is_closed and is_kept and not seen.wants_message


def _notes(seen: Observation, target: Target) -> Iterator[str]:
    if not seen.pings and not all(dial.close for dial in seen.dials[1:]):
        yield "no check_after_idle, heartbeat or drain_fence: the server does not answer pings"
    if target.protocols and seen.protocol is None:
        yield f"no protocols: the server took none of {len(target.protocols)} offered"
    if (saved := seen.saved()) is not None:
        fresh, reused = (span(percentile(seen.times(name), 0.5)) for name in ("fresh", "reused"))
        yield f"reuse saves {saved:.0%} of a reply's time: {fresh} with the dial, {reused} without"
    if seen.is_compressed:
        found = compression(seen.answers)
        if target.text is None:
            yield "no compress: the server takes it; --send TEXT measures whether that saves time"
        elif found is None:
            yield "no compress: the server takes it, but too few answers came to measure a gain"
        elif found[0] < LEAST_GAIN:
            yield f"no compress: there is no clear gain; {found[1]}"
    if seen.answers and seen.uses is None:
        yield from notes(seen.answers, has_pushes=bool(seen.pushes))
    if seen.greets and seen.listening.close is not None and not seen.wants_message:
        does = "the server greets, and closes if nothing is sent"
        yield f"{does}: --send TEXT --idle 10 tries an answer"
    if seen.capacity is not None and seen.capacity.refusal and seen.capacity.taken:
        if not _is_full(seen.capacity):
            yield _no_is_full(seen.capacity)
    if seen.pushes and seen.times("fresh"):
        yield "replies may not be replies: the server also sends unasked"


def _is_full(capacity: Capacity) -> list[Argument]:
    """Return what is_full must be for a server that refuses in this way, if it must be anything."""
    if not _is_known(capacity):
        for name, value in (("status", capacity.status), ("code", capacity.code)):
            if value is not None and value not in NO_REFUSALS:
                test = f'lambda error: getattr(error, "{name}", None) == {value}'
                return [Argument("is_full", test, f"so the server refuses {_while(capacity)}")]
    return []


def _no_is_full(capacity: Capacity) -> str:
    """Say why there is none."""
    if _is_known(capacity):
        what = capacity.status or capacity.code
        return f"no is_full: the pool knows what {what} means {_while(capacity)}"
    return f"no is_full: nothing tells this refusal, {_while(capacity)}, from other failures"


def _is_known(capacity: Capacity) -> bool:
    return capacity.status in FULL_STATUSES or capacity.code == TRY_AGAIN_LATER


def _while(capacity: Capacity) -> str:
    return f"while {capacity.taken} {'was' if capacity.taken == 1 else 'were'} open"


# In words.


def report(seen: Observation, target: Target) -> str:
    """Return what was seen, for people."""
    lines = [("handshake", f"{'p50':>10}{'p99':>10}   of {len(seen.dials)} dials")]
    for name, part in (("DNS", "dns"), ("TCP", "tcp"), ("TLS", "tls"), ("upgrade", "upgrade")):
        if times := seen.times(part):
            lines.append((f"  {name}", _percentiles(times)))
    lines.append(("  in all", _percentiles(seen.times("total"))))
    pongs = f"{_percentiles(seen.pings)}   of {len(seen.pings)}" if seen.pings else "not answered"
    lines.append(("ping", pongs))
    if target.text is not None:
        for name in ("fresh", "reused"):
            times = seen.times(name)
            lines.append((f"reply, {name}", _percentiles(times) if times else "none"))
        if (saved := seen.saved()) is not None:
            lines.append(("", f"reuse saves {saved:.0%}"))
        if seen.answers:
            lines += rows(seen.answers)
    first, watch = seen.listening.first, seen.longest
    within = f"none in {span(watch.seconds)}"
    greeting = f"{first.kind}, {first.size} bytes, after {span(first.after)}" if first else within
    lines.append(("greeting", greeting if seen.greets else "none"))
    lines.append(
        ("messages unasked", f"{seen.pushes} in {span(watch.seconds)}" if seen.pushes else within)
    )
    if watch.heartbeat is not None:
        lines.append(("heartbeats", f"{watch.heartbeats}, as messages"))
    every = f", every {span(watch.ping_interval)}" if watch.ping_interval else ""
    lines.append(("server's pings", f"{len(watch.pings)}{every}" if watch.pings else within))
    taken = "took none" if seen.protocol is None else f"took {seen.protocol}"
    # By number: a subprotocol may be a token, as where browsers cannot send headers.
    offered = f"offered {len(target.protocols)}; {taken}"
    lines.append(("subprotocol", offered if target.protocols else "none offered"))
    lines.append(("compression", "offered; taken" if seen.is_compressed else "offered; not taken"))
    lines.append(("idle", _shown_idle(seen)))
    if seen.capacity is not None:
        capacity = seen.capacity
        refused = f"; then {capacity.refusal}" if capacity.refusal else ""
        lines.append(("connections", f"{capacity.taken} of {capacity.asked} at once{refused}"))
    return "\n".join(f"{name:<18}{text}".rstrip() for name, text in lines)


def _percentiles(times: list[float]) -> str:
    p50, p99 = (span(percentile(times, share)) for share in (0.5, 0.99))
    return f"{p50:>10}{p99:>10}"


def _shown_idle(seen: Observation) -> str:
    close = seen.idle_close
    if close is None:
        return f"still open after {span(seen.longest.seconds)}"
    tried = {"pings": seen.pinging, "messages": seen.sending, "one message": seen.once}
    does = [
        f"; {name} {_does(name, seen.prevents(watch))} that"
        for name, watch in tried.items()
        if watch is not None
    ]
    return f"closed after {span(close.after)}, {close}{''.join(does)}"


def _does(name: str, prevents: bool) -> str:
    if name.startswith("one "):
        return "prevents" if prevents else "does not prevent"
    return "prevent" if prevents else "do not prevent"


def variable(header: str) -> str:
    """Return the environment variable that the code reads this header's value from."""
    return "WSPOOL_HEADER_" + re.sub("[^A-Z0-9]", "_", header.upper())


def _below(seconds: float, share: float) -> float:
    """Return this share of a time, in tenths of a second."""
    return max(0.1, math.floor(10 * share * seconds) / 10)
