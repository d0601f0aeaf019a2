"""The group as its users see it: many pools, each for a key, behind one door and under one total.

A group routes between pools as a pool routes between queues. `crowd.py` has those who wait,
`roster.py` the pools, `doors.py` how one borrows.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal, Self, TypeVar, TypeVarTuple

from wspool._connection.borrow import Borrow, lend
from wspool._connection.exporting import exported
from wspool._connection.loan import WebsocketConnection
from wspool._connection.stream import WebsocketStream
from wspool._group import repeating
from wspool._group.doors import CommonDoor, Door, KeyDoor
from wspool._group.members import Member
from wspool._group.pictures import GroupSnapshot, snapshot_group, trouble_of
from wspool._group.roster import OptionsOf, Roster
from wspool._pool.checks import check_grace, check_timeout
from wspool._pool.introspection import Trouble
from wspool._pool.listeners import Listener
from wspool._pool.options import ACQUIRE_TIMEOUT, SETTINGS
from wspool._pool.pool import WebsocketConnectionPool
from wspool._pool.repeating import Attempt, run
from wspool._pool.stats import Stats

logger = logging.getLogger("wspool")

T = TypeVar("T")
Args = TypeVarTuple("Args")

CHOICES: Final = ("spread", "first")

_names = itertools.count(1)


@exported
class WebsocketPools:
    """Pools of connections to many destinations, each for a key, under one total.

    options_of: what the pool of each key is made with: a mapping from keys to dicts of the
        arguments of `WebsocketConnectionPool`, whose pools are members from the beginning. Or an
        async callable that returns such a dict for a key: then each pool is made at the first use
        of its key, once, and closed when it has been empty for its `idle_timeout`. If the callable
        raises, those get the error who wait for it, and the next use calls it again.
    max_connections: sockets at most, of all pools together. Whoever waits at this total has the
        connection closed that is idle for longest, of whichever pool.
    choose: which member serves whoever borrows without a key: "spread" begins with another one each
        time, "first" with the first of the mapping. A member that has an idle connection comes
        before those that would have to dial, and nobody waits while any that is in has one to lend.
        With "first", a member that is in again takes over from those behind it, whose connections
        close as they come back.
    acquire_timeout: seconds for which borrowing waits for capacity. 0: not at all; None: for ever.
    name: for logs; None makes one up. The pools are named after it, with a number, unless their
        options have a name: keys may be secrets.
    defaults: arguments of all pools, where `options_of` has none of their own.

    A member of a mapping is out after a dial that has failed for good, or 5 connections lost in
    loans in a row, unless half of the members are out already. Then nobody who borrows without a
    key gets a connection of it, and those who name its key use it all the same. After 10 s the
    group itself dials, and the member is in again when that connection has lived for a second;
    after the n-th of these dials that fails in a row, it is out for another 10 s times n, 300 s at
    most. With all out, the one is asked that is due first.

    Raises TypeError or ValueError for wrong arguments, those of the pools included.
    """

    name: str
    """For logs."""

    max_connections: int
    """The limit of all pools together."""

    choose: str
    """How a member is chosen for whoever borrows without a key."""

    acquire_timeout: float | None
    """Seconds for which borrowing waits; None: for ever."""

    def __init__(
        self,
        options_of: OptionsOf,
        *,
        max_connections: int,
        choose: Literal["spread", "first"] = "spread",
        acquire_timeout: float | None = 0.0,
        name: str | None = None,
        **defaults: Any,
    ) -> None:
        if not (isinstance(options_of, Mapping) or callable(options_of)):
            raise TypeError(
                f"options_of is of type {type(options_of).__name__}; it must be a mapping from "
                "keys to dicts of options, or an async callable that returns one for a key"
            )
        if isinstance(options_of, Mapping) and (not options_of or None in options_of):
            raise ValueError("options_of must have a key at least, and None is none")
        if choose not in CHOICES:
            raise ValueError(f'choose is {choose!r}; it must be "spread" or "first"')
        SETTINGS["max_connections"].check("max_connections", max_connections)
        SETTINGS["acquire_timeout"].check("acquire_timeout", acquire_timeout)
        SETTINGS["name"].check("name", name)
        self.name = name or f"pools-{next(_names)}"
        self.max_connections = max_connections
        self.choose = choose
        self.acquire_timeout = acquire_timeout
        self._roster = Roster(
            *(self.name, options_of, {"acquire_timeout": acquire_timeout, **defaults}),
            max_connections,
            is_spreading=choose == "spread",
        )
        self._door = CommonDoor(self._roster, acquire_timeout)
        self._closing_task: asyncio.Task[None] | None = None

    # What people look at.

    @property
    def is_closed(self) -> bool:
        """Whether `close_all()` was called; there may still be goodbyes under way."""
        return self._roster.is_closing

    @property
    def waiters(self) -> int:
        """How many wait for a connection, of one pool or of any."""
        return self._roster.waiting

    @property
    def total_connections(self) -> int:
        """The connections that are open: idle, busy and draining, of all pools."""
        return self._roster.open

    def __getitem__(self, key: Any) -> WebsocketConnectionPool:
        """Return the pool of a key. Raises KeyError if there is none, or none yet.

        It is to look at: one that an async `options_of` has made closes when it is empty.
        """
        return self._roster.members[key].pool

    def __contains__(self, key: object) -> bool:
        """Whether a key has a pool now."""
        return key in self._roster.members

    def __iter__(self) -> Iterator[Any]:
        """Give the keys that have a pool now."""
        return iter(list(self._roster.members))

    def __len__(self) -> int:
        """Return how many pools there are now."""
        return len(self._roster.members)

    @property
    def stats(self) -> Stats:
        """What has happened since the group was made, in all pools; a copy."""
        return self._roster.account.total

    @property
    def trouble(self) -> Trouble | None:
        """Why no pool can be dialled, for health endpoints: None while the dials of one are well.

        Otherwise the trouble of the pool whose next attempt is due first.
        """
        return trouble_of(self._roster)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each event of each pool; return a callable that ends that.

        Pools that are made later are included. An event names its pool; one of a check-out without
        a key, as long as no pool has served it, names the group, and those that are served at once
        have no `ConnectionCheckOutStarted`. Otherwise as `WebsocketConnectionPool.subscribe`.
        """
        return self._roster.account.subscribe(listener)

    def snapshot(self) -> GroupSnapshot:
        """Return a frozen picture of the group; its `.to_dict()` is fit for JSON."""
        return snapshot_group(self._roster, self.choose)

    def __repr__(self) -> str:
        if not hasattr(self, "_roster"):  # a wrong argument: in a traceback with local variables
            return "<WebsocketPools, not made>"
        return f"<WebsocketPools {self._roster!r}>"

    # Borrowing.

    async def acquire(
        self, key: Any = None, *, prefer: Any = None, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> WebsocketConnection:
        """Return a connection to be given back with `release`; otherwise as `get_connection`."""
        loan = self.get_connection(key, prefer=prefer, timeout=timeout)
        return await lend(loan, sys._getframe(1))

    def get_connection(
        self, key: Any = None, *, prefer: Any = None, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> WebsocketConnection:
        """Return a connection that is acquired and given back by `async with`.

        `key`: of the pool of this key; None: of any member. Raises KeyError for a key that the
        mapping does not have, TypeError for None where `options_of` is a callable. `prefer`,
        `timeout`, in seconds, and the errors in the block's beginning are those of
        `WebsocketConnectionPool.acquire`. That the dials of a member fail is an error only where no
        other has a connection; ConnectionPoolExhaustedError is raised at the total, too.
        """
        return WebsocketConnection(self._door_of(key), timeout, prefer=prefer)

    async def release(self, connection: WebsocketConnection, *, force_remove: bool = False) -> None:
        """Give a connection back; with `force_remove` it is closed.

        Releasing what is not lent by this group, or not any more, is a warning in the log.
        """
        member = self._member_of(connection)
        if member is not None:
            await member.pool.release(connection, force_remove=force_remove)

    async def run(
        self,
        work: Callable[[WebsocketConnection, *Args], Awaitable[T]],
        *args: *Args,
        key: Any = None,
        prefer: Any = None,
        timeout: float | None = ACQUIRE_TIMEOUT,
    ) -> T:
        """Return what `await work(connection, *args)` does, with a connection on loan.

        For work that does no harm if it is done twice: it may be, as `WebsocketConnectionPool.run`
        says. Without a key the second connection is another member's, where one has it. `key`,
        `prefer`, `timeout` and the errors are as in `get_connection`.
        """
        loan = self.get_connection(key, prefer=prefer, timeout=timeout)
        again = partial(self._again, key, timeout)
        return await run(loan, again, work, args, sys._getframe(1))

    def _again(
        self, key: Any, timeout: float | None, attempt: Attempt
    ) -> WebsocketConnection | None:
        """Return a loan to do work in once more, if it is to be."""
        if key is None and timeout is ACQUIRE_TIMEOUT:  # else it is the pool's that counts
            timeout = self.acquire_timeout
        return repeating.again(self._roster, attempt, timeout, is_keyed=key is not None)

    async def acquire_stream(
        self, key: Any = None, *, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> WebsocketStream:
        """Return a stream to be given back with `release_stream`; otherwise as `get_stream`."""
        stream = self.get_stream(key, timeout=timeout)
        return await lend(stream, sys._getframe(1))

    def get_stream(
        self, key: Any = None, *, timeout: float | None = ACQUIRE_TIMEOUT
    ) -> WebsocketStream:
        """Return a stream that is acquired and given back by `async with`.

        `key`, `timeout` and the errors are as in `get_connection`; a stream is as that of
        `WebsocketConnectionPool.get_stream`. Raises ValueError where a pool that is asked has no
        `route`: without a key, that is each.
        """
        door = self._door_of(key)
        if key is None:
            for member in self._roster.members.values():
                member.router.streaming.check_route()
        return WebsocketStream(door, timeout)

    async def release_stream(self, stream: WebsocketStream, *, force_remove: bool = False) -> None:
        """Give a stream back; with `force_remove` its connection closes when its neighbours go.

        Releasing what is not lent by this group, or not any more, is a warning in the log.
        """
        member = self._member_of(stream)
        if member is not None:
            await member.pool.release_stream(stream, force_remove=force_remove)

    def _door_of(self, key: Any) -> Door:
        """Return what lends a connection of this key, or of any."""
        roster = self._roster
        if key is None:
            if not roster.is_fixed:
                raise TypeError("key is None; where options_of is a callable it must be given")
            return self._door
        if roster.is_fixed and key not in roster.members:
            raise KeyError(key)
        return KeyDoor(roster, self.acquire_timeout, key)

    def _member_of(self, lent: Borrow) -> Member | None:
        """Return the member that has lent something; if none has, say so."""
        link = lent._link
        member = self._roster.member_of(link) if link is not None else None
        if member is None:
            logger.warning("%r is not lent by this group; releasing it does nothing", lent)
        return member

    # Steering.

    def eject(self, key: Any, seconds: float) -> None:
        """Let a member be out for so long, and then until a probe of it has lived.

        For those who borrow without a key, however many are out. Raises KeyError for a key without
        a pool, TypeError or ValueError for what is no number of seconds, TypeError where
        `options_of` is a callable.
        """
        check_timeout(seconds)
        if not self._roster.is_fixed:
            raise TypeError("eject is for a mapping; with a callable every use names its key")
        self._roster.enter()
        self._roster.eject(self._roster.members[key], seconds)

    def remove(self, key: Any) -> None:
        """Take a member away: its loans may end in peace, and its connections close.

        Raises KeyError for a key without a pool. Where `options_of` is a callable, the next use of
        the key makes a new one.
        """
        self._roster.enter()
        self._roster.remove(key, None)

    def expire_connections(self, key: Any = None, grace: float = 0.0) -> None:
        """Replace every connection, or those of one key, as a pool's `expire_connections` does.

        Raises KeyError for a key without a pool, TypeError or ValueError for what is no number of
        seconds.
        """
        check_grace(grace)
        self._roster.enter()
        members = self._roster.members
        for member in list(members.values()) if key is None else [members[key]]:
            member.pool.expire_connections(grace)

    # Starting and closing.

    async def start(self) -> None:
        """Start the pools of a mapping, and return when their warm-up is over.

        Borrowing does that, too, without waiting for the warm-up.
        """
        if not self.is_closed:
            self._roster.enter()
            pools = [member.pool for member in self._roster.members.values()]
            await asyncio.gather(*(pool.start() for pool in pools))

    async def close_all(self, timeout: float | None = 0.0) -> None:
        """Close all pools and everything in them, and return when the last socket is gone.

        Borrowers get `timeout` seconds to finish first, with None as long as they need. Waiters
        get ConnectionPoolUnavailableError at once. A second call waits for the first; cancelled,
        the closing goes on.
        """
        check_timeout(timeout)
        if not self._roster.is_started:
            self._roster.is_closing = True
            return
        if self._closing_task is None or self._closing_task.cancelled():
            self._roster.begin_closing()
            loop = asyncio.get_running_loop()
            self._closing_task = asyncio.Task(self._roster.finish(timeout), loop=loop)
        await asyncio.shield(self._closing_task)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close_all()
