"""What both pools are given: the constructor's arguments, and the attributes that show them.

The arguments stand here with their defaults and their descriptions, for editors and for the
reference; what each may be stands in `options.py`. What a pool does with them is its own affair.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Self, Unpack

import aiohttp

from wspool._connection.idioms import ELSEWHERE, Elsewhere
from wspool._connection.loan import WebsocketConnection
from wspool._connection.routes import Route
from wspool._connection.wire import Control
from wspool._pool.connect_options import ConnectOptions
from wspool._pool.options import (
    SETTINGS,
    DrainConditionCallback,
    Headers,
    Hook,
    IsFull,
    Options,
    Settings,
    StreamHook,
    Uri,
)
from wspool.quota import Quota


class Configured(Settings):
    """A pool as far as it is what it was given."""

    _options: Options

    def __init__(
        self,
        uri: Uri,
        *,
        headers: Headers | None = None,
        idle_timeout: float = 60.0,
        max_connections: int = 50,
        max_retries: int = 3,
        cleanup_interval: float = 5.0,
        connection_timeout: float = 10.0,
        warmup_connections: int = 0,
        check_server_data_on_release: bool = False,
        drain_timeout: float = 10.0,
        drain_quiet_period: float = 2.0,
        drain_condition: DrainConditionCallback | None = None,
        session: aiohttp.ClientSession | Callable[[], aiohttp.ClientSession] | None = None,
        name: str | None = None,
        acquire_timeout: float | None = 0.0,
        max_waiting: int | None = None,
        max_connecting: int = 10,
        min_connections: int = 0,
        min_idle: int = 0,
        max_lifetime: float | None = None,
        max_uses: int | None = None,
        check_after_idle: float | None = None,
        keepalive: Hook | None = None,
        keepalive_interval: float | None = None,
        on_connect: Hook | None = None,
        on_release: Hook | StreamHook | None = None,
        on_close: Hook | None = None,
        drain_until: DrainConditionCallback | None = None,
        drain_fence: bool = False,
        on_drained: Callable[[WebsocketConnection, str | bytes], object] | None = None,
        control: Control | None = None,
        close_timeout: float = 5.0,
        leak_threshold: float | None = None,
        quota: Quota | None = None,
        learn_limit: bool = True,
        is_full: IsFull | None = None,
        max_streams: int = 1,
        route: Route | None = None,
        max_unread: int = 4 * 1024 * 1024,
        **connect_options: Unpack[ConnectOptions],
    ) -> None:
        """Check the arguments; nothing is opened before the pool starts.

        Times are in seconds. Each argument is an attribute of the pool too, to be read.

        Limits – how many connections there are, and how long a caller waits for one.

        Args:
            max_connections: Sockets at most, those being opened or closed included.
            warmup_connections: Connections that `start()` opens.
            acquire_timeout: How long `acquire` waits for capacity. 0: not at all; None: for ever.
            max_waiting: How many callers may wait for capacity; None: no limit.
            min_connections: Connections that are kept open, and refilled after losses.
            min_idle: Connections that are kept ready beyond those in use, `idle_timeout` or not,
                and refilled at each checkout as far as the limits allow.
            quota: Is asked before each attempt of a dial and told when the socket is gone, so that
                several pools keep one limit: see `LocalQuota` and `wspool.redis`; None: no other
                limit than `max_connections`.
            learn_limit: Learn from refusals, while others are open, how many connections the server
                admits, and dial no more than those, but for one at a time that asks again: see
                `learned_limit`.
            is_full: Says of the error of a refusal whether the server is full, beside the statuses
                429 and 503 and an early close with 1013. It gets a `ConnectionUnavailableError`,
                with its `status`, or a `ConnectionClosedError`, with its `code`.

        Streams – how several borrowers share a connection.

        Args:
            max_streams: Borrowers that `get_stream` lets share a connection; needs `route`.
            route: Where a message says whose it is: a path into its JSON such as
                `"header.task_id"`, several of which the first present counts, or a callable that
                takes the message and returns its key, or None if it belongs to nobody. None: there
                are no streams.
            max_unread: Bytes that are kept for a stream that does not read, while others do.

        Dialling and closing – how a connection comes about, and how it ends.

        Args:
            uri: `ws://` or `wss://`, or a callable, plain or async, that is called for each attempt
                of a dial.
            headers: Of the handshake, a mapping that is read at each attempt; or such a callable.
            max_retries: Attempts of a dial in all.
            connection_timeout: For one attempt: handshake, `on_connect`, callables for `uri` and
                `headers`.
            session: An aiohttp session to share; it is never closed. Or a plain callable that makes
                one, called in the pool's loop when the pool starts: that is the pool's, and closed
                with it. None: the pool makes one itself.
            max_connecting: Dials at work at a time.
            close_timeout: For the server to answer a close; then the socket is aborted.
            connect_options: Further options of `aiohttp.ClientSession.ws_connect`, such as
                `protocols`, `heartbeat`, `compress`, `ssl`, `proxy`, `origin`, `params` and
                `max_msg_size`: see `ConnectOptions`.

        Idle connections – how long one stays, and how a dead one is noticed.

        Args:
            idle_timeout: A connection that is idle for longer is closed, at the next cleanup.
            cleanup_interval: Between two looks for what is too old.
            max_lifetime: Age at which a connection is retired, less up to 10 % of jitter; None:
                never.
            max_uses: Loans after which a connection is retired; None: no limit.
            check_after_idle: A connection that is idle for longer must answer a ping before anybody
                gets it; None: it is not asked.
            keepalive: Async hook on a connection that is idle: send what the server counts as
                activity, and read its reply if there is one. None: send a ping and wait for its
                pong.
            keepalive_interval: Between two of those, less up to 10 % of jitter; None: there are
                none. It does not count as a use, nor does the time since the last use begin anew.

        Draining – what says that a connection is clean after a use.

        Args:
            check_server_data_on_release: Drain a connection after each use until it is quiet.
            drain_timeout: For a drain; a connection that takes longer is closed.
            drain_quiet_period: Silence after which a connection counts as clean.
            drain_condition: Is asked of each message drained; False closes the connection. None:
                any message that is not empty is fine.
            drain_until: Says of a message whether it is the last: then the connection is clean at
                once.
            drain_fence: Send a ping when the drain begins; what the server had sent comes before
                its pong.

        Hooks – callables of yours, those that are async with a connection that nobody else has.

        Args:
            on_connect: Async hook on a fresh connection, before anybody gets it.
            on_release: Async hook, the first step of draining: cancel, unsubscribe. In a pool with
                `route` it gets the stream that was given back.
            on_close: Async hook, the last word on each open connection that the pool closes,
                whatever the reason; it has `close_timeout`, the goodbye included.
            on_drained: Is called with (connection, message) for each message that no borrower
                reads.
            control: Is asked of each message, in whatever state, before anybody gets it. None: it
                is an ordinary one. True: it was the server's heartbeat. A str or bytes: that is the
                answer to it.

        Observing – who this pool is, and who keeps a connection for too long.

        Args:
            name: Printable text for logs and metrics; None makes one up.
            leak_threshold: A loan that lasts longer is a warning in the log, which says who has the
                connection; None: never.

        Raises:
            TypeError: An argument is unknown or of a wrong type, or a hook is not async.
            ValueError: A number, the URI or the name is none that is allowed.
        """
        given = {setting: value for setting, value in locals().items() if setting in SETTINGS}
        self._options = Options(given)
        self._set_up(sys._getframe(1))

    @classmethod
    def _of(cls, options: Options, maker: FrameType) -> Self:
        """Return a pool with settings that were checked for another one."""
        pool = cls.__new__(cls)
        pool._options = options
        pool._set_up(maker)
        return pool

    def _set_up(self, maker: FrameType) -> None:
        """Make the rest of a pool that was made in this frame."""
        raise NotImplementedError

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in ELSEWHERE or hasattr(self, name)]


for _name in ELSEWHERE:
    setattr(Configured, _name, Elsewhere(_name))
