"""The dial: from a link that is only a plan to one with an open WebSocket.

This file says what is transient, how long to wait, and when to give up. It does not know who
waits for the link, nor how many there may be.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, Final

import aiohttp
import backoff

from wspool._connection.errors import (
    ConnectionClosedError,
    ConnectionUnavailableError,
    WebsocketError,
)
from wspool._connection.link import Link
from wspool._connection.loan import lend_to_hook
from wspool._connection.scrubbing import scrub_error, scrub_uri, secrets_of
from wspool._pool.options import Options, check_uri
from wspool._pool.permits import Permits

_exponential = backoff.expo(factor=1.0, max_value=10.0)
next(_exponential)
WAITS_SECONDS: Final = tuple(islice(_exponential, 5))
"""How long to wait at most after one, two, … failures in a row; the last for all further ones."""

MAX_RETRY_AFTER_SECONDS: Final = 30.0
"""A server that asks for a longer wait is not waited for."""

EARLY_SECONDS: Final = 1.0
"""A close within this time, of a connection that was of no use yet, is a refusal.

Many servers refuse a token so: a handshake, an error message, a close.
"""

RESTARTING: Final = frozenset({1012, 1013})
"""Close codes "service restart" and "try again later" (IANA's WebSocket registry)."""

_TRANSIENT_STATUSES: Final = frozenset({408, 425, 429})
_UNREACHABLE: Final = frozenset(
    {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)


class Gate:
    """What every dial of a pool goes through: a turn, and a wait after failures.

    At most `limit` dials are at work at a time, those that wait out a failure included: a server
    that is down sees no more than `limit` times `max_retries` attempts, however many wait. The
    wait grows with each round of failures; attempts that were under way together are one round,
    those that full jitter has spread over a wait are several. So the more dials there are, the
    sooner the wait is at its longest, and the fewer attempts a server that is down has to see.
    """

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float],
        permits: Permits | None = None,
        waits: Sequence[float] = WAITS_SECONDS,
    ) -> None:
        self._limit = limit
        self._clock = clock
        # What each attempt needs of a quota, if there is one.
        self.permits = permits
        self._waits = waits
        self._at_work: set[Dial] = set()
        self._turns: OrderedDict[Dial, asyncio.Future[None]] = OrderedDict()
        # Rounds of failures so far, and those since the last success.
        self.round = 0
        self.streak = 0
        self._failed_at = self._not_before = float("-inf")
        # The streak that the last success ended, in case it was none.
        self._ended_streak = 0
        self._succeeded_at = float("-inf")
        self._waiters: set[asyncio.Future[None]] = set()
        # Why the last dial failed, until one succeeds.
        self.failure: BaseException | None = None

    def is_at_work(self, dial: object) -> bool:
        return dial in self._at_work

    @asynccontextmanager
    async def turn(self, dial: Dial) -> AsyncIterator[None]:
        """Wait, in order of arrival, until this dial may work; then let the next."""
        try:
            if self._turns or len(self._at_work) >= self._limit:
                turn = asyncio.get_running_loop().create_future()
                self._turns[dial] = turn
                await turn
            self._at_work.add(dial)
            yield
        finally:
            self._turns.pop(dial, None)
            self._at_work.discard(dial)
            while self._turns and len(self._at_work) < self._limit:
                following, turn = self._turns.popitem(last=False)
                if not turn.done():
                    # At work from now on: a newcomer in this tick does not overtake it.
                    self._at_work.add(following)
                    turn.set_result(None)

    async def wait(self, at_least: float = 0.0) -> None:
        """Wait until the next attempt is due; a success in the meantime makes it due at once."""
        if at_least > 0:
            await asyncio.sleep(at_least)
        pause = self._not_before - self._clock()
        if self.streak:
            longest = self._waits[min(self.streak, len(self._waits)) - 1]
            pause = max(pause, self._failed_at + backoff.full_jitter(longest) - self._clock())
        if pause > 0:
            opened = asyncio.get_running_loop().create_future()
            self._waiters.add(opened)
            try:
                await asyncio.wait({opened}, timeout=pause)
            finally:
                self._waiters.discard(opened)

    def failed(self, round: int, retry_after: float = 0.0) -> None:
        """Count a failure of an attempt that began in this round."""
        now = self._clock()
        self._not_before = max(self._not_before, now + min(retry_after, MAX_RETRY_AFTER_SECONDS))
        if round == self.round:
            self.round += 1
            self.streak += 1
            self._failed_at = now

    def succeeded(self) -> None:
        """End the wait for all."""
        now = self._clock()
        is_one_of_many = now - self._succeeded_at <= EARLY_SECONDS
        self._ended_streak = max(self.streak, self._ended_streak if is_one_of_many else 0)
        self._succeeded_at = now
        self.streak = 0
        self.failure = None
        self._not_before = float("-inf")
        for opened in self._waiters:
            if not opened.done():
                opened.set_result(None)

    def lost(self, link: Link) -> bool:
        """Count a link that the server closed, if that says something about the next dial.

        Returns whether it was closed so early that its handshake was no success after all.
        """
        now = self._clock()
        is_young = link.opened_at is not None and now - link.opened_at <= EARLY_SECONDS
        was_heard = link.wire is not None and link.wire.received_messages > 0
        if is_young and not (was_heard and link.uses):
            if link.round == self.round:
                self.streak = max(self.streak, self._ended_streak)
            self.failed(link.round)
            return True
        if link.close_code in RESTARTING and now - self._failed_at > EARLY_SECONDS:
            self.failed(self.round)
        return False


class Dial:
    """The owner of a link that is connecting."""

    __slots__ = ("link",)

    def __init__(self, link: Link) -> None:
        self.link = link

    async def run(self, options: Options, session: aiohttp.ClientSession, gate: Gate) -> None:
        """Open the link's WebSocket and run `on_connect`; it stays in the state connecting.

        Raises ConnectionUnavailableError, whose cause shows no secrets. Ends silently when
        somebody else has closed the link meanwhile.
        """
        link = self.link
        async with gate.turn(self):
            failure: BaseException
            retry_after = 0.0
            attempt = 0
            while True:
                await gate.wait(retry_after)
                if gate.permits is not None:
                    try:
                        link.permit = await gate.permits.acquire()
                    except ConnectionUnavailableError as error:
                        error.attempts = attempt
                        if error.kind != "quota":  # a full one says nothing of the next dial
                            gate.failed(gate.round)
                        raise
                attempt += 1
                link.round = gate.round
                try:
                    await self._attempt(options, session)
                except asyncio.CancelledError as error:
                    task = asyncio.current_task()
                    if task is None or task.cancelling():
                        raise
                    failure = error  # not of the dial: of something that a callable waited for
                except Exception as error:
                    failure = error
                else:
                    gate.succeeded()
                    return
                await link.drop_wire(options.close_timeout)
                if link.owner is not self:
                    return
                retry_after = _retry_after(failure) or 0.0
                gate.failed(link.round, retry_after)
                is_final = attempt >= options.max_retries or retry_after > MAX_RETRY_AFTER_SECONDS
                if is_final or not is_transient(failure):
                    break
        # Raised out here, the error has no unscrubbed context.
        raise _unavailable(link, failure, attempt)

    async def _attempt(self, options: Options, session: aiohttp.ClientSession) -> None:
        link = self.link
        began = link.clock()
        async with asyncio.timeout(options.connection_timeout):
            link.uri = check_uri(await _fresh(options.uri))
            link.headers = dict(await _fresh(options.headers))
            link.params = options.connect_options.get("params")
            called = link.clock()
            websocket = await session.ws_connect(
                link.uri,
                headers=link.headers,
                autoping=False,
                autoclose=False,
                timeout=aiohttp.ClientWSTimeout(ws_receive=None, ws_close=options.close_timeout),
                **options.connect_options,
            )
            link.handshake_seconds = link.clock() - called
            wire = link.attach(websocket)
            if options.on_connect is not None:
                await lend_to_hook(link, options.on_connect)
                if wire.is_lost:
                    raise ConnectionClosedError(
                        "the server closed the connection during on_connect"
                    )
        link.dial_seconds = link.clock() - began


async def _fresh(value: Any) -> Any:
    """Return a setting, asked anew if it is a callable."""
    if callable(value):
        value = value()
        if inspect.isawaitable(value):
            value = await value
    return value


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt may go better: the network failed, or the server is busy."""
    match error:
        case ConnectionClosedError():
            return True
        case WebsocketError():  # of another pool: ConnectionPoolTimeoutError is an OSError too
            return False
        case aiohttp.ClientResponseError():
            return error.status in _TRANSIENT_STATUSES or error.status >= 500
        case aiohttp.ClientSSLError():
            return False
        case aiohttp.ClientConnectionError() | TimeoutError() | ConnectionError():
            return True
        case socket.gaierror():
            return True
        case OSError():
            return error.errno in _UNREACHABLE
    return False


def kind_of(error: BaseException) -> str:
    """Return in a word what failed."""
    match error:
        case ConnectionClosedError():
            return "closed"
        case WebsocketError():
            return "error"
        case aiohttp.ClientResponseError():
            return f"status {error.status}"
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return "dns"
        case aiohttp.ClientSSLError():
            return "tls"
        case aiohttp.ClientConnectionError() | OSError():
            return "network"
    return "error"


def _retry_after(error: BaseException) -> float | None:
    """Return the seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    if not isinstance(error, aiohttp.ClientResponseError) or not error.headers:
        return None
    value = error.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _unavailable(link: Link, failure: BaseException, attempts: int) -> ConnectionUnavailableError:
    cause = scrub_error(failure, secrets_of(link.uri, link.headers, link.params))
    status = failure.status if isinstance(failure, aiohttp.ClientResponseError) else None
    retry_after = _retry_after(failure)
    what = str(cause) or type(cause).__name__
    if isinstance(failure, TimeoutError) and not str(failure):
        what = "no answer within connection_timeout"
    if status is not None:
        what = f"the server answered {status} instead of a WebSocket handshake"
    until = ""
    if retry_after is not None:
        until = f"; it asks to wait {retry_after:.0f} s"
    times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    error = ConnectionUnavailableError(
        f"No connection to {scrub_uri(link.uri)} after {times}: {what}{until}",
        kind=kind_of(failure),
        status=status,
        attempts=attempts,
        retry_after=retry_after,
    )
    error.__cause__ = cause
    return error
