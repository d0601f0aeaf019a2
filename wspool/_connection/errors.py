"""Every error that the pool raises. This module knows nothing of connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from wspool._connection.exporting import exported

ENDS_PROGRAM: Final = (KeyboardInterrupt, SystemExit)
"""What a user's callable may raise and is passed on; anything else, be it an Exception or not (a
panic of a Rust extension, gevent's Timeout), is an error of the callable's."""


@exported
class WebsocketError(RuntimeError):
    """The base of all errors of this package. Without a message it carries its default one."""

    message: str
    """What was asked, what was found, what to do; without secrets."""
    default_message: ClassVar[str] = "WebSocket error"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or self.default_message
        super().__init__(self.message)


@exported
class ConnectionPoolExhaustedError(WebsocketError):
    """All connections are in use, and the caller may not wait (any longer) for one."""

    default_message = "All connections of the pool are in use"


@exported
class ConnectionPoolTimeoutError(ConnectionPoolExhaustedError, TimeoutError):
    """No connection could be had within the caller's timeout; the message has the pool's counts.

    It is a `TimeoutError`, and with that an `OSError`: a rule "retry every OSError" would see it.
    """

    default_message = "No connection within the timeout"


@exported
class ConnectionPoolUnavailableError(WebsocketError):
    """The pool is closed."""

    default_message = "The pool is closed"


@exported
class ConnectionUnavailableError(WebsocketError):
    """A dial failed for good. `__cause__` is the last failure, without secrets.

    `kind` says in a word what failed: "dns", "network", "timeout", "tls", "proxy", "status 503"
    (the server's HTTP status), "handshake" (an answer that is none), "closed", "quota" (no lease
    within the time) or "error", which includes the user's callables. `status` is that status if
    there is one, `attempts` how many attempts were made, `retry_after` the seconds that the server
    asked to wait, if it did. `headers` are those of the server's answer, without cookies and
    without what was a secret of the request; empty where there was no answer.
    """

    kind: str
    status: int | None
    attempts: int
    retry_after: float | None
    headers: Mapping[str, str]

    default_message = "No connection could be made"

    def __init__(
        self,
        message: str | None = None,
        *,
        kind: str = "error",
        status: int | None = None,
        attempts: int = 0,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.attempts = attempts
        self.retry_after = retry_after
        self.headers = headers if headers is not None else {}


@exported
class ConnectionClosedError(WebsocketError):
    """The connection is closed. `code` and `reason` are those of the CLOSE frame.

    Without a CLOSE frame `code` is 1006, for one without a code 1005 (RFC 6455, 7.1.5).
    """

    code: int | None
    reason: str

    default_message = "The connection is closed"

    def __init__(
        self, message: str | None = None, *, code: int | None = None, reason: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


@exported
class ConnectionBusyError(WebsocketError):
    """The right to send and to receive belongs to somebody else just now."""

    default_message = "The connection is in use by another owner"


@exported
class StreamOverflowError(WebsocketError):
    """More than `max_unread` bytes came for a stream that did not read, while others did.

    What had come by then could be read; the rest is lost. Its neighbours have lost nothing.
    """

    default_message = "The stream was read too slowly, and something is missing"


@exported
class ConnectionDrainTimeoutError(WebsocketError):
    """A drain did not end within `drain_timeout`; kept as the `cause` of the connection's close."""

    default_message = "The connection was still receiving data at the end of drain_timeout"


@exported
class IllegalTransitionError(WebsocketError):
    """A trigger that the state machine does not allow in this state. Nothing has moved."""

    default_message = "The state machine does not allow this"
