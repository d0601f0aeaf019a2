"""What there is to see of a connection, for borrowers, hooks and watchers."""

from __future__ import annotations

from wspool._connection.link import Link, Transition
from wspool._connection.states import State


class ConnectionFacts:
    """What may be read at any time, also when the loan is over."""

    __slots__ = ()

    def _served(self) -> Link:
        """Return the link, or raise that there is none yet."""
        raise NotImplementedError

    @property
    def id(self) -> int:
        """Counts the pool's connections from 1. A later loan of the same connection has it too."""
        return self._served().id

    @property
    def uri(self) -> str:
        """That of the last dial attempt, secrets included."""
        return self._served().uri

    @property
    def headers(self) -> dict[str, str]:
        """Those of the last dial attempt, secrets included."""
        return self._served().headers

    @property
    def state(self) -> State:
        """Where in its life the connection is."""
        return self._served().state

    @property
    def is_connected(self) -> bool:
        """Whether messages can be exchanged, as far as the event loop has heard."""
        return self._served().is_connected

    @property
    def is_busy(self) -> bool:
        """Whether it is lent, or the pool itself uses it for a check or a keepalive."""
        return self._served().state is State.BUSY

    @property
    def is_draining(self) -> bool:
        """Whether it was given back and is being cleaned."""
        return self._served().state is State.DRAINING

    @property
    def created_at(self) -> float:
        """When its dial was decided on, in Unix seconds."""
        return self._served().created_at

    @property
    def last_activity(self) -> float:
        """When a message was last sent or received, in Unix seconds; before that, `created_at`.

        Of several messages that came together, that of the last.
        """
        link = self._served()
        return max(link.created_at, link.wire.last_activity if link.wire is not None else 0.0)

    @property
    def uses(self) -> int:
        """Loans of the connection so far, the present one included."""
        return self._served().uses

    @property
    def rtt(self) -> float | None:
        """Seconds that the last ping's round trip took, the pool's own included, or None."""
        wire = self._served().wire
        return wire.rtt if wire is not None else None

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose, or None."""
        wire = self._served().wire
        return wire.websocket.protocol if wire is not None else None

    @property
    def history(self) -> tuple[Transition, ...]:
        """The last 16 transitions, oldest first."""
        return self._served().history

    @property
    def close_code(self) -> int | None:
        """Code of the CLOSE frame; 1006: there was none, 1005: it had no code. None while open."""
        return self._served().close_code

    @property
    def close_reason(self) -> str:
        """Text of the CLOSE frame."""
        return self._served().close_reason

    @property
    def cause(self) -> BaseException | None:
        """The error that closed it, if one did."""
        return self._served().cause
