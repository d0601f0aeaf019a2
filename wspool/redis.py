"""One quota for a whole fleet, kept in Redis: the extra `redis`.

    quota = RedisQuota("redis://localhost", key="speech", limit=50, dials_per_second=8)
    pool = WebsocketConnectionPool(uri=uri, quota=quota)

Each socket of each process has a lease, an entry of a sorted set that ends by itself. Whatever
happens is a run of one script (`_redis/script.py`), which is atomic and reads the time from the
server's clock alone. It takes back, renews and gives leases, all that a process has to ask in one
go; one task for each `RedisQuota` runs it when a dial or a released lease is due, every sixth of
`lease` seconds while leases are held, and, while dials wait, every 50 ms to 1 s, the sooner the
nearer its turn is. A borrow of an idle connection asks nothing.

- Who waits, waits in a queue of processes, not of dials: each gets one lease in its turn, then
  goes to the end. One that has not asked for `PATIENCE` seconds leaves it.
- Whoever leaves room publishes that to those in line whom it is for, and they ask at once. This is
  a hint: who does not hear it asks in time.
- Who waits says for how many leases somebody really does. When some begin to be missing, all hear
  it, and each offers what it has idle, the sooner the longer that is (`_redis/offers.py`). Redis
  takes as much of it as is missing: each promise counts as a lease to come, until it is kept,
  withdrawn, or `PATIENCE` seconds old. Who does not hear it learns of it with the next renewal.
- Dials are spaced evenly, and the script says up to `AHEAD` seconds before when one may begin.
- Redis does not answer: leases stay what they were, and dials wait. After an outage, and likewise
  when the server's clock was set forward, nothing ends for a while, so that all who are alive can
  renew theirs. While the clock goes back, the fleet's time goes on from where it was.
- Redis has lost its data, or some of it: what is left is dropped, and there is a new epoch. Whoever
  learns of it enters its leases again, if there is room for them. Who waited while the data was
  lost knows that, too, and has none given for as long as the others take to enter theirs; one that
  comes from outside and is the first to ask finds an empty quota.
- A process that was stopped for longer than its leases last, or that Redis could not hear, finds
  some of them taken: these are lost, and the pool closes their sockets once nobody uses them.
- As long as there is a lease or a queue, no key has a time to live, for which a server short of
  memory could evict it under any policy of the kind `volatile-*`.

A cut between one process and a Redis that others reach cannot be told from an outage. Its
connections are kept working, and from `lease` seconds on the fleet may have as many too many.

Why a script of our own: of the libraries for limits in Redis, pyrate-limiter and limits count
rates and know no leases; self-limiters (redis-rate-limiters) and async-redis-rate-limiters do not
renew theirs, so that a socket's life would have to be known beforehand; asyncio-advanced-semaphores
renews them by the clients' clocks, and tells nobody of one that was lost; none spaces dials.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import uuid
from typing import TYPE_CHECKING, Final, Self

from wspool._redis.listening import Listener
from wspool._redis.offers import Offers
from wspool._redis.script import SCRIPT
from wspool.quota import Holder, Lease, LeaseQueue, interval_of

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisQuota"]

logger: logging.Logger = logging.getLogger("wspool")

AHEAD: Final = 0.5
"""Seconds before a dial may begin at which its lease is given at the earliest."""

PATIENCE: Final = 3.0
"""Seconds for which a process that waits keeps its turn without asking."""

LASTS: Final = 0.7
"""Share of `lease` for which one lasts in Redis.

The rest is for a third of this share in which nothing ends, after an outage, and for somebody who
waits to come and ask.
"""

RENEWED: Final = 1 / 6
"""Share of `lease` after which one is renewed."""

PAUSES: Final = (0.05, 1.0)
"""Seconds between two questions for a lease: at least, at most."""


class RedisQuota(LeaseQueue):
    """A limit on the sockets, and the dials per second, of all processes that use this key.

    client: a URL, or a `redis.asyncio` client, which is not closed. One of its connections is used
        for each question, and one more is kept while leases are held or dials wait.
    key: names the quota, in Redis and in errors, so it is no place for a secret; it is not empty
        and does not begin with `}`.
    limit: sockets at most.
    dials_per_second: attempts of dials that may begin in a second, evenly spaced; None: no limit.
    lease: seconds after which a process that has died gives its share back.

    Who waits has idle connections closed to be served, those of other processes too. One object may
    serve all pools of an event loop. Close it after them, or use `async with`.
    Raises ValueError for another key, and for a limit, a rate or a lease of 0 or less.
    """

    def __init__(
        self,
        client: Redis | str,
        key: str,
        limit: int,
        dials_per_second: float | None = None,
        lease: float = 30.0,
    ) -> None:
        super().__init__()
        if not isinstance(key, str) or not key or key.startswith("}"):
            raise ValueError(
                f"key is {key!r}; it must be a string that is not empty and does not begin with "
                "'}', or a cluster would keep its parts in different places"
            )
        key.encode()  # a lone surrogate could not be sent
        if limit < 1:
            raise ValueError(f"limit is {limit!r}; it must be at least 1")
        if not 0 < lease < math.inf:
            raise ValueError(f"lease is {lease!r}; it must be a number of seconds above 0")
        self.key = key
        self.limit = limit
        self.lease = lease
        self._interval = interval_of(dials_per_second)
        self._owns_client = isinstance(client, str)
        if isinstance(client, str):
            from redis.asyncio import Redis

            client = Redis.from_url(client)
        self._client = client
        self._script = client.register_script(SCRIPT)
        # In one hash slot, for a cluster: that of what is between the first { and the next }.
        parts = ("leases", "queue", "heard", "state", "promises")
        self._keys = [f"{{{key}}}:{part}" for part in parts]
        self._call = f"{self._keys[1]}:needed"
        # Leases that Redis has not been told of yet, and who waits for that.
        self._releases: dict[Lease, asyncio.Future[None]] = {}
        # Why Redis has not answered the last time, if it has not; the loop's time when it last has.
        self._failure: Exception | None = None
        self._answered_at = 0.0
        # The task that asks, and what wakes it up.
        self._keeper: asyncio.Task[None] | None = None
        self._woken: asyncio.Future[None] | None = None
        self._renew_at = 0.0
        # Which data in Redis our leases or our turn are in, since it may be lost.
        self._epoch: bytes | str = ""
        # What hears when it is our turn, and when somebody waits; how often it has heard that.
        self._listener = Listener(client, lease, self._hear, lambda: self._is_in_use)
        self._calls = 0
        # What others may have, and how much of it Redis may have been promised.
        self._offers = Offers(self._holders, self._wake)
        self._promises: list[str] = []
        # For how many of our waiting leases somebody was waiting when Redis was last asked.
        self._needed = 0
        self._is_closed = False

    def __repr__(self) -> str:
        failure = ""
        if self._failure is not None:
            failure = f" no answer from Redis: {type(self._failure).__name__} {self._failure}"
        return (
            f"<RedisQuota {self.key!r} limit={self.limit} leases={len(self._held)} "
            f"waiting={len(self._waiting)}{failure}>"
        )

    async def _acquire(self, holder: Holder | None) -> Lease:
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed; close it after its pools")
        lease = await super()._acquire(holder)
        try:
            await asyncio.sleep(lease.begins - self._enter().time())
        except BaseException:
            self.release(lease)
            raise
        return lease

    def release(self, lease: Lease) -> asyncio.Future[None]:
        """Take a lease back, and return a future that is done when Redis knows of it."""
        told = self._enter().create_future()
        self._held.discard(lease)
        self._leaving.discard(lease)
        if self._is_closed:  # it expires
            told.set_result(None)
        else:
            told = self._releases.setdefault(lease, told)
            self._serve()
        return told

    async def close(self) -> None:
        """Wait, for a third of `lease` at most, until Redis knows of all that was released."""
        self._is_closed = True
        if self._releases and self._failure is None:
            await asyncio.wait(list(self._releases.values()), timeout=self.lease / 3)
        if tasks := [one for one in (self._keeper, self._listener.task) if one is not None]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        self._offers.stop()
        if self._owns_client:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        super()._begin(loop)
        self._releases.clear()
        # Not before: a process that was forked is another one.
        self._worker = uuid.uuid4().hex
        self._ids = itertools.count(1)
        self._keeper = self._woken = self._listener.task = None
        self._offers = Offers(self._holders, self._wake)
        self._promises.clear()
        self._needed = 0
        self._answered_at = loop.time()
        self._renew_at = 0.0
        self._epoch = ""

    @property
    def _is_in_use(self) -> bool:
        return bool(self._waiting or self._releases or self._held)

    def _reclaim(self) -> None:
        """Ask at once if somebody has begun to wait for dials that had been nobody's."""
        if not self._needed and self._need():
            self._wake()

    def _is_owed(self, holder: Holder) -> bool:
        return False  # who waits has what is idle; a new dial for each loan would slow all down

    def _need(self) -> int:
        return sum(holder.wanted(leases) for holder, leases in self._leases_of().items())

    def _hear(self, channel: str, said: str | None) -> None:
        """Hear what a process has published, or that it is heard from now on."""
        if channel == self._call and said is not None:
            self._calls += 1
            if self._is_in_use:  # else nobody would hear that it is over
                self._offers.hear(is_wanted=said == "1")
            return
        if said is None:
            self._renew_at = 0.0  # something may have been said before
        self._wake()

    def _make(self) -> Lease:
        return Lease(f"{self._worker}:{next(self._ids)}")

    def _serve(self) -> None:
        """Let the keeper ask at once."""
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.Task(self._keep(), loop=self._enter())
        self._wake()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _keep(self) -> None:
        """Ask Redis for what is due, for as long as there is anything to ask for."""
        loop, task = self._enter(), asyncio.current_task()
        assert task is not None
        while True:
            self._woken = loop.create_future()
            failure: Exception | None = None
            try:
                pause = await self._step(loop)
            except Exception as error:
                failure = error
            if task.cancelling():  # the client has swallowed that
                return
            self._note(failure)
            if failure is not None:
                if loop.time() - self._answered_at > self.lease:
                    self._forget(list(self._releases))  # they expire by themselves
                # With the timeout of a step, soon enough to renew while nothing expires.
                await asyncio.sleep(random.uniform(0.0, min(PAUSES[1], self.lease / 12)))
                continue
            self._answered_at = loop.time()
            if not self._is_in_use:
                self._offers.stop()
                return
            if self._held:
                pause = min(pause, self._renew_at - loop.time())
            await asyncio.wait({self._woken}, timeout=max(0.0, pause))

    def _forget(self, released: list[Lease]) -> None:
        for lease in released:
            told = self._releases.pop(lease)
            if not told.done():
                told.set_result(None)

    def _note(self, failure: Exception | None) -> None:
        if failure is not None and self._failure is None:
            logger.warning(
                "no answer from Redis, %s: %s; until there is, connections stay and dials wait: %r",
                *(type(failure).__name__, failure, self),
            )
        has_failed, self._failure = self._failure is not None, failure
        if failure is None and has_failed:
            logger.info("Redis answers again: %r", self)

    async def _step(self, loop: asyncio.AbstractEventLoop) -> float:
        """Run the script once, with all that there is to ask; return when to ask again."""
        began, calls = loop.time(), self._calls
        wanted, released = list(self._waiting), list(self._releases)
        renewed: list[Lease] = []
        if began >= self._renew_at:
            renewed = list(self._held)
            self._renew_at = began + self.lease * RENEWED
        # As many stand as leases are about to be given back.
        withdrawn = self._promises[len(self._leaving) :]
        offered = [f"{self._worker}:{next(self._ids)}" for _ in range(self._offers.count())]
        if not (wanted or released or renewed or withdrawn or offered):
            return self.lease
        self._needed = self._need()
        times = (self.lease * LASTS, self._interval, AHEAD, PATIENCE, PAUSES[0])
        args: list[bytes | str | int] = [self._worker, self.limit]
        args += [round(one * 1e6) for one in times]
        args += [self._epoch, self._needed]
        args += [len(some) for some in (wanted, released, offered, withdrawn)]
        args += [lease.id for lease in (*wanted, *released)]
        args += [*offered, *withdrawn, *(lease.id for lease in renewed)]
        # Should there be no answer, Redis may have taken them.
        self._promises += offered
        try:
            async with asyncio.timeout(self.lease / 8):
                answer = await self._script(keys=self._keys, args=args)
        except BaseException:
            self._renew_at = 0.0
            raise
        lost, delays, pause, gone, epoch, taken, is_wanted = answer
        if self._epoch not in ("", epoch) and not renewed:
            self._renew_at = began
        self._forget(released)
        self._lose([renewed[index] for index in lost], gone)
        for lease, delay in zip(wanted, delays, strict=True):
            if delay >= 0 and lease in self._waiting:
                lease.begins = loop.time() + delay / 1e6
                self._give(lease)
        over = {*withdrawn, *offered[taken:]}
        self._promises = [promise for promise in self._promises if promise not in over]
        self._offers.give_up(taken)
        if calls == self._calls:  # else what was heard meanwhile is newer
            self._offers.hear(is_wanted=bool(is_wanted))
        # Where nothing of ours is left, another epoch is no loss.
        self._epoch = epoch if pause or self._held else ""
        if self._is_in_use:
            self._listener.start(f"{self._keys[1]}:{self._worker}", self._call)
        if len(self._promises) > len(self._leaving):
            return 0.0  # some were lent meanwhile: others have to give theirs
        if not pause:  # nobody waits
            return self.lease
        least, most = PAUSES
        # Often enough to find what the dead have left before a whole lease is over.
        seconds: float = max(least, min(most, self.lease / 30, pause / 1e6))
        return seconds * random.uniform(0.8, 1.2)

    def _lose(self, leases: list[Lease], gone: int) -> None:
        for lease in leases:
            lease.is_lost = True
            self._held.discard(lease)
        if gone:
            logger.warning(
                "Redis did not know %d leases any more: its data was lost, or they were renewed "
                "too late. %d have been entered again; for %d there was no room, and their "
                "connections are closed when nobody uses them: %r",
                *(gone, gone - len(leases), len(leases), self),
            )
