"""What a probe has seen of a server: frozen records, and plain questions about them.

Times are in seconds. No header value, user-info or query value is in an observation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from yarl import URL

from wspool._cli.answers import Answer, Mark
from wspool._cli.shared import percentile


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
    """What came on one connection: `pings` are the times of the server's pings.

    `heartbeat` tells those messages that were heartbeats, and there were so many `heartbeats`.
    """

    seconds: float
    messages: int = 0
    first: Message | None = None
    pings: tuple[float, ...] = ()
    close: Close | None = None
    heartbeat: Mark | None = None
    heartbeats: int = 0

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
    `reused` is the time of the reply to another message. `answers` are the whole of those replies.
    `close` came before all that was done.
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
    answers: tuple[Answer, ...] = ()
    close: Close | None = None


@dataclass(frozen=True)
class Capacity:
    """How many connections were open at once, of so many asked for, and what said no to more.

    `status` is the HTTP status that refused the next one, `code` the code by which the newest ones
    were closed; None where it was not that.
    """

    asked: int
    taken: int
    refusal: str = ""
    status: int | None = None
    code: int | None = None


@dataclass(frozen=True)
class Observation:
    """All that was seen. `listening` and `silent` are of connections on which nothing was sent.

    On `pinging` and `sending` pings or messages were sent again and again, on `once` one message at
    once. `protocol` is the subprotocol that the server took, "…" if it may be a key.
    """

    uri: str
    dials: tuple[Dial, ...]
    listening: Watch
    protocol: str | None = None
    is_compressed: bool = False
    silent: Watch | None = None
    pinging: Watch | None = None
    sending: Watch | None = None
    once: Watch | None = None
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
        """Messages that came unasked, beyond the greeting and heartbeats."""
        return max(0, self.longest.messages - self.longest.heartbeats - self.greets)

    @property
    def answers(self) -> list[Answer]:
        return [answer for dial in self.dials for answer in dial.answers]

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

    @property
    def wants_message(self) -> bool:
        """Whether one message right after the handshake keeps a connection open, and nothing else
        that was seen would be needed."""
        is_closed = self.silent is not None and self.silent.close is not None
        return is_closed and self.prevents(self.once)

    @property
    def uses(self) -> int | None:
        """How many answers the server gave on each connection before it closed it, or None."""
        visits = self.dials[1:]
        counts = {len(dial.answers) for dial in visits if dial.close is not None}
        is_each = all(dial.close is not None for dial in visits)
        return counts.pop() or None if is_each and len(counts) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON, without what the server has said at length."""
        found = asdict(self)
        for answer in (answer for dial in found["dials"] for answer in dial["answers"]):
            del answer["texts"]
        return found
