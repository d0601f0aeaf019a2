"""What a probe has seen of a server, in words, and what to set because of it.

Nothing here touches the network: observations are frozen records, and the advice is a pure function
of them. Times are in seconds. No header value, user-info or query value is in an observation, and
none is in the advice: the code reads them from the environment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from yarl import URL

from wspool._cli.shared import percentile

IDLE_TIMEOUT: Final = 60.0
CONNECTION_TIMEOUT: Final = 2.0
CHECK_AFTER_IDLE: Final = 5.0
"""The pool's default, the least and the usual value of these options."""


@dataclass(frozen=True)
class Target:
    """A server, and how to ask it. `headers` and the URI may hold secrets."""

    uri: str = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    protocols: tuple[str, ...] = ()
    text: str | None = None
    is_insecure: bool = False

    @property
    def has_secrets(self) -> bool:
        """Whether the URI has parts that must not be shown."""
        url = URL(self.uri)
        return bool(url.user or url.password or url.query_string or url.fragment)


@dataclass(frozen=True)
class Close:
    """The server ended a connection, so long after the handshake; 1006: without a CLOSE frame."""

    after: float
    code: int
    reason: str = ""

    def __str__(self) -> str:
        reason = f" {self.reason!r}" if self.reason else ""
        return f"code {self.code}{reason}{' (no CLOSE frame)' if self.code == 1006 else ''}"


@dataclass(frozen=True)
class Message:
    """A message's time since the handshake, its kind, text or binary, and its length in bytes."""

    after: float
    kind: str
    size: int


@dataclass(frozen=True)
class Watch:
    """What came on one connection: `pings` are the times of the server's pings."""

    seconds: float
    messages: int = 0
    first: Message | None = None
    pings: tuple[float, ...] = ()
    close: Close | None = None

    @property
    def ping_interval(self) -> float | None:
        """Seconds from one of the server's pings to the next, or None for fewer than two."""
        if len(self.pings) < 2:
            return None
        return (self.pings[-1] - self.pings[0]) / (len(self.pings) - 1)


@dataclass(frozen=True)
class Dial:
    """One handshake and its parts, None for those that it did not have.

    And what was then tried on the connection, None for what was not tried or not answered. Since
    the dial began: `greeting`, when the first message came unasked, and `fresh`, when a reply came.
    `reused` is the time of the reply to another message. `close` came before all that was done.
    """

    dns: float | None
    tcp: float
    tls: float | None
    upgrade: float
    total: float
    greeting: float | None = None
    pings: tuple[float, ...] = ()
    fresh: float | None = None
    reused: float | None = None
    close: Close | None = None


@dataclass(frozen=True)
class Capacity:
    """How many connections were open at once, of so many asked for, and what said no to more."""

    asked: int
    taken: int
    refusal: str = ""


@dataclass(frozen=True)
class Observation:
    """All that was seen. `listening` and `silent` are of connections on which nothing was sent.

    `protocol` is the subprotocol that the server took, "…" if it may be a key.
    """

    uri: str
    dials: tuple[Dial, ...]
    listening: Watch
    protocol: str | None = None
    is_compressed: bool = False
    silent: Watch | None = None
    pinging: Watch | None = None
    sending: Watch | None = None
    capacity: Capacity | None = None

    @property
    def longest(self) -> Watch:
        """The longest look at a connection on which nothing was sent."""
        return self.silent or self.listening

    @property
    def idle_close(self) -> Close | None:
        return self.longest.close or self.listening.close

    @property
    def greets(self) -> bool:
        """Whether each connection got a message at once, unasked."""
        return all(dial.greeting is not None for dial in self.dials)

    @property
    def pushes(self) -> int:
        """Messages that came unasked, beyond the greeting."""
        return max(0, self.longest.messages - self.greets)

    @property
    def pings(self) -> list[float]:
        return [time for dial in self.dials for time in dial.pings]

    def times(self, name: str) -> list[float]:
        """Return this time of each dial that has it, in order of size."""
        return sorted(time for dial in self.dials if (time := getattr(dial, name)) is not None)

    def saved(self) -> float | None:
        """Return the share of a reply's time that reuse saves, or None without replies."""
        fresh, reused = self.times("fresh"), self.times("reused")
        return 1 - percentile(reused, 0.5) / percentile(fresh, 0.5) if fresh and reused else None

    def prevents(self, watch: Watch | None) -> bool:
        """Return whether what was done on this connection kept it open, unlike the silent one."""
        return watch is not None and watch.close is None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# The advice.


@dataclass(frozen=True)
class Argument:
    """An argument of the pool, its value as source code, and the observation behind it."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Advice:
    """The call to make, what it needs to be defined, and what no argument can say."""

    arguments: tuple[Argument, ...]
    definitions: tuple[str, ...]
    notes: tuple[str, ...]

    def code(self) -> str:
        """Return the call with all that it needs, as Python."""
        imports = ["from wspool import WebsocketConnectionPool"]
        if any("os.environ" in argument.value for argument in self.arguments):
            imports = ["import os", "", *imports]
        call = [f"# {note}" for note in self.notes] + ["pool = WebsocketConnectionPool("]
        call += [f"    {a.name}={a.value},  # {a.why}" for a in self.arguments] + [")"]
        between = "\n\n\n" if self.definitions else "\n\n"
        return between.join(["\n".join(imports), *self.definitions, "\n".join(call)])


def advise(seen: Observation, target: Target) -> Advice:
    """Return what to set for this server."""
    definitions = []
    arguments = [*_address(target), *_handshake(seen, target)]
    if seen.greets and seen.listening.first is not None:
        first = seen.listening.first
        definitions.append(
            "async def read_greeting(connection):\n"
            f"    await connection.recv()  # {first.kind}, {first.size} bytes"
        )
        arguments.append(Argument("on_connect", "read_greeting", "the server greets first"))
    if seen.pushes:
        definitions.append(
            "def on_drained(connection, message):\n"
            "    pass  # what the server sends while nobody reads is lost otherwise"
        )
        why = f"{seen.pushes} messages came unasked in {span(seen.longest.seconds)}"
        arguments.append(Argument("on_drained", "on_drained", why))
    if target.text is not None and _needs_messages(seen):
        definitions.append(_keepalive(seen, target.text))
    arguments += _idle(seen)
    if seen.times("fresh") and all(dial.close for dial in seen.dials[1:]):
        why = f"the server closed each connection after a reply, {seen.dials[-1].close}"
        arguments.append(Argument("max_uses", "1", why))
    if seen.capacity is not None and seen.capacity.refusal and seen.capacity.taken:
        why = f"more were refused: {seen.capacity.refusal}"
        arguments.append(Argument("max_connections", str(seen.capacity.taken), why))
    return Advice(tuple(arguments), tuple(definitions), tuple(_notes(seen, target)))


def _address(target: Target) -> Iterator[Argument]:
    if target.has_secrets:
        yield Argument("uri", 'os.environ["WSPOOL_URI"]', "as given; it is not shown in full")
    else:
        yield Argument("uri", _literal(target.uri), "as given")
    if target.headers:
        pairs = (f'{_literal(n)}: os.environ["{variable(n)}"]' for n in target.headers)
        yield Argument("headers", f"{{{', '.join(pairs)}}}", "as given with -H; not shown")
    if target.is_insecure:
        yield Argument("ssl", "False", "as given: --insecure, the certificate is not verified")


def _handshake(seen: Observation, target: Target) -> Iterator[Argument]:
    totals = seen.times("total")
    slowest = max([*totals, *seen.times("greeting")])
    timeout = max(CONNECTION_TIMEOUT, float(math.ceil(10 * slowest)))
    of = f"the slowest of {len(totals)} dials took {span(slowest)}"
    yield Argument("connection_timeout", f"{timeout}", of)
    if seen.protocol == "…":
        why = f"of {len(target.protocols)} offered the server took one that may be a key; not shown"
        yield Argument("protocols", '(os.environ["WSPOOL_SUBPROTOCOL"],)', why)
    elif seen.protocol is not None:
        why = f"of {len(target.protocols)} offered the server took this one"
        yield Argument("protocols", f"({_literal(seen.protocol)},)", why)
    if seen.is_compressed:
        yield Argument("compress", "15", "the server took permessage-deflate")


def _idle(seen: Observation) -> Iterator[Argument]:
    close, idle_timeout = seen.idle_close, IDLE_TIMEOUT
    if close is not None:
        after = f"an idle connection was closed after {span(close.after)}"
        if seen.prevents(seen.pinging) or _needs_messages(seen):
            if not seen.prevents(seen.pinging):
                yield Argument("keepalive", "keepalive", "messages keep a connection, pings do not")
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
    return is_closed and seen.prevents(seen.sending) and not seen.prevents(seen.pinging)


def _keepalive(seen: Observation, text: str) -> str:
    lines = [f"async def keepalive(connection):\n    await connection.send({_literal(text)})"]
    if seen.times("fresh"):
        lines.append("    await connection.recv()  # it is answered")
    return "\n".join(lines)


def _notes(seen: Observation, target: Target) -> Iterator[str]:
    if not seen.pings and not all(dial.close for dial in seen.dials[1:]):
        yield "no check_after_idle, heartbeat or drain_fence: the server does not answer pings"
    if target.protocols and seen.protocol is None:
        yield f"no protocols: the server took none of {len(target.protocols)} offered"
    if (saved := seen.saved()) is not None:
        fresh, reused = (span(percentile(seen.times(name), 0.5)) for name in ("fresh", "reused"))
        yield f"reuse saves {saved:.0%} of a reply's time: {fresh} with the dial, {reused} without"
    if seen.pushes and seen.times("fresh"):
        yield "replies may not be replies: the server also sends unasked"


# In words.


def report(seen: Observation, target: Target) -> str:
    """Return what was seen, for people."""
    rows = [("handshake", f"{'p50':>10}{'p99':>10}   of {len(seen.dials)} dials")]
    for name, part in (("DNS", "dns"), ("TCP", "tcp"), ("TLS", "tls"), ("upgrade", "upgrade")):
        if times := seen.times(part):
            rows.append((f"  {name}", _percentiles(times)))
    rows.append(("  in all", _percentiles(seen.times("total"))))
    pongs = f"{_percentiles(seen.pings)}   of {len(seen.pings)}" if seen.pings else "not answered"
    rows.append(("ping", pongs))
    if target.text is not None:
        for name in ("fresh", "reused"):
            times = seen.times(name)
            rows.append((f"reply, {name}", _percentiles(times) if times else "none"))
        if (saved := seen.saved()) is not None:
            rows.append(("", f"reuse saves {saved:.0%}"))
    first, watch = seen.listening.first, seen.longest
    within = f"none in {span(watch.seconds)}"
    greeting = f"{first.kind}, {first.size} bytes, after {span(first.after)}" if first else within
    rows.append(("greeting", greeting if seen.greets else "none"))
    rows.append(
        ("messages unasked", f"{seen.pushes} in {span(watch.seconds)}" if seen.pushes else within)
    )
    every = f", every {span(watch.ping_interval)}" if watch.ping_interval else ""
    rows.append(("server's pings", f"{len(watch.pings)}{every}" if watch.pings else within))
    taken = "took none" if seen.protocol is None else f"took {seen.protocol}"
    # By number: a subprotocol may be a token, as where browsers cannot send headers.
    offered = f"offered {len(target.protocols)}; {taken}"
    rows.append(("subprotocol", offered if target.protocols else "none offered"))
    rows.append(("compression", "offered; taken" if seen.is_compressed else "offered; not taken"))
    rows.append(("idle", _shown_idle(seen)))
    if seen.capacity is not None:
        capacity = seen.capacity
        refused = f"; then {capacity.refusal}" if capacity.refusal else ""
        rows.append(("connections", f"{capacity.taken} of {capacity.asked} at once{refused}"))
    return "\n".join(f"{name:<18}{text}".rstrip() for name, text in rows)


def _percentiles(times: list[float]) -> str:
    p50, p99 = (span(percentile(times, share)) for share in (0.5, 0.99))
    return f"{p50:>10}{p99:>10}"


def _shown_idle(seen: Observation) -> str:
    close = seen.idle_close
    if close is None:
        return f"still open after {span(seen.longest.seconds)}"
    tried = {"pings": seen.pinging, "messages": seen.sending}
    does = [
        f"; {name} {'prevent' if seen.prevents(watch) else 'do not prevent'} that"
        for name, watch in tried.items()
        if watch is not None
    ]
    return f"closed after {span(close.after)}, {close}{''.join(does)}"


def variable(header: str) -> str:
    """Return the environment variable that the code reads this header's value from."""
    return "WSPOOL_HEADER_" + re.sub("[^A-Z0-9]", "_", header.upper())


def span(seconds: float) -> str:
    """Return a time for people."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _below(seconds: float, share: float) -> float:
    """Return this share of a time, in tenths of a second."""
    return max(0.1, math.floor(10 * share * seconds) / 10)


def _literal(text: str) -> str:
    """Return the text as a Python string, in double quotes where they need no escape."""
    shown = repr(text)
    return shown if '"' in shown else f'"{shown[1:-1]}"'
