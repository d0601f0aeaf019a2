"""One quota for a whole fleet, kept in Redis: the extra `redis`.

    quota = RedisQuota("redis://localhost", key="speech", limit=50, dials_per_second=8)
    pool = WebsocketConnectionPool(uri=uri, quota=quota)

Each socket of each process has a lease, an entry of a sorted set that expires by itself. Whatever
happens is a run of one script, which is atomic and reads the time from the server's clock alone.
It takes back, renews and gives leases, all that a process has to ask in one go; one task for each
`RedisQuota` runs it when a dial or a released lease is due, every third of `lease` seconds while
leases are held, and, while dials wait, every 50 ms to 1 s, the sooner the nearer its turn is. A
borrow of an idle connection asks nothing.

- Who waits, waits in a queue of processes, not of dials: each gets one lease in its turn, then
  goes to the end. One that has not asked for `PATIENCE` seconds leaves it.
- Dials are spaced evenly, and the script says up to `AHEAD` seconds before when one may begin.
- Redis does not answer: leases stay what they were, and dials wait. After an outage, that is when
  nobody was heard of for a whole lease although there are leases, nothing expires for a third of
  it, so that all who are alive can renew theirs.
- Redis has lost its data: a lease is entered again when it is renewed, if there is room for it.
- A process that was stopped for longer than its leases last, or that Redis could not hear, finds
  some of them taken: these are lost, and the pool closes their sockets once nobody uses them.

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
import random
import uuid
from typing import TYPE_CHECKING, Final, Self

from wspool.quota import Lease, LeaseQueue, interval_of

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisQuota"]

logger = logging.getLogger("wspool")

AHEAD: Final = 0.5
"""Seconds before a dial may begin at which its lease is given at the earliest."""

PATIENCE: Final = 3.0
"""Seconds for which a process that waits keeps its turn without asking."""

LASTS: Final = 0.9
"""Share of `lease` for which one lasts in Redis: in the rest, somebody who waits comes to ask."""

PAUSES: Final = (0.05, 1.0)
"""Seconds between two questions for a lease: at least, at most."""

_SCRIPT: Final = """
local leases, queue, heard, state = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker, limit, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local interval, ahead, patience = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local wanted, released = tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]  -- all times are in microseconds

-- Nobody was heard of for a whole lease: let those who are alive renew theirs first.
local seen = tonumber(redis.call('HGET', state, 'seen')) or now
local hold = tonumber(redis.call('HGET', state, 'hold')) or 0
if math.abs(now - seen) > lease then
  hold = redis.call('ZCARD', leases) > 0 and now + math.floor(lease / 3) or 0
end

for i = 9 + wanted, 8 + wanted + released do
  redis.call('ZREM', leases, ARGV[i])
end
local lost = {}
for i = 9 + wanted + released, #ARGV do
  if redis.call('ZSCORE', leases, ARGV[i]) or redis.call('ZCARD', leases) < limit then
    redis.call('ZADD', leases, now + lease, ARGV[i])
  else
    lost[#lost + 1] = i - 9 - wanted - released
  end
end
if now >= hold then
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
end

local delays, pause, waits, served = {}, 0, false, false
if wanted > 0 then
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', heard, '-inf', now)) do
    redis.call('ZREM', heard, gone)
    redis.call('ZREM', queue, gone)
  end
  redis.call('ZADD', queue, 'NX', now, worker)
  redis.call('ZADD', heard, now + patience, worker)
  local turn, round = redis.call('ZRANK', queue, worker), redis.call('ZCARD', queue)
  local free = limit - redis.call('ZCARD', leases)
  -- When the next dial may begin; how many may within `ahead`.
  local due = tonumber(redis.call('HGET', state, 'due')) or now
  due = math.max(now, math.min(due, now + ahead + interval))
  local room = free
  if interval > 0 then
    room = math.min(free, math.floor((now + ahead - due) / interval) + 1)
  end
  for i = 1, wanted do
    local id = ARGV[8 + i]
    if redis.call('ZSCORE', leases, id) then  -- given before, and the answer was lost
      delays[i] = 0
    elseif turn < room then
      redis.call('ZADD', leases, now + lease, id)
      delays[i] = due - now
      due, turn, served = due + interval, turn + round, true
    else
      delays[i], waits = -1, true
    end
  end
  redis.call('HSET', state, 'due', due)
  if not waits then
    redis.call('ZREM', queue, worker)
    redis.call('ZREM', heard, worker)
  else
    if served then redis.call('ZADD', queue, now, worker) end
    turn = redis.call('ZRANK', queue, worker)
    pause = math.max(50000 * (turn + 1), due + interval * turn - now - ahead)
  end
else
  redis.call('ZREM', queue, worker)
  redis.call('ZREM', heard, worker)
end

redis.call('HSET', state, 'seen', now, 'hold', hold)
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 86400) end
return {lost, delays, pause}
"""
"""One step of one process, for Redis 5 or newer.

ARGV: the process, limit, lease, interval, ahead, patience, how many ids of leases it wants, how
many it gives back; then the ids of these, those, and the ones that it renews.

Returns which of the latter are lost; for each that it wants, in how many microseconds its dial may
begin, or -1; in how many microseconds to ask again.
"""


class RedisQuota(LeaseQueue):
    """A limit on the sockets, and the dials per second, of all processes that use this key.

    client: a `redis.asyncio` client, which is not closed, or a URL.
    key: names the quota, in Redis and in errors, so it is no place for a secret.
    limit: sockets at most.
    dials_per_second: attempts of dials that may begin in a second, evenly spaced; None: no limit.
    lease: seconds after which a process that has died gives its share back.

    One object may serve all pools of an event loop. Close it after them, or use `async with`.
    Raises ValueError for a limit, a rate or a lease of 0 or less.
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
        if limit < 1:
            raise ValueError(f"limit is {limit!r}; it must be at least 1")
        if not lease > 0:
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
        self._script = client.register_script(_SCRIPT)
        # In one hash slot, for a cluster.
        self._keys = [f"{{{key}}}:{part}" for part in ("leases", "queue", "heard", "state")]
        # Leases that Redis has not been told of yet, and who waits for that.
        self._releases: dict[Lease, asyncio.Future[None]] = {}
        # Why Redis has not answered the last time, if it has not; the loop's time when it last has.
        self._failure: Exception | None = None
        self._answered_at = 0.0
        # The task that asks, and what wakes it up.
        self._keeper: asyncio.Task[None] | None = None
        self._woken: asyncio.Future[None] | None = None
        self._renew_at = 0.0
        self._is_closed = False

    def __repr__(self) -> str:
        failure = ""
        if self._failure is not None:
            failure = f" no answer from Redis: {type(self._failure).__name__} {self._failure}"
        return (
            f"<RedisQuota {self.key!r} limit={self.limit} leases={len(self._held)} "
            f"waiting={len(self._waiting)}{failure}>"
        )

    async def acquire(self) -> Lease:
        """Wait for a lease, and then until its dial may begin."""
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed; close it after its pools")
        lease = await super().acquire()
        try:
            await asyncio.sleep(lease.begins - self._enter().time())
        except BaseException:
            self.release(lease)
            raise
        return lease

    def release(self, lease: Lease) -> asyncio.Future[None]:
        """Take a lease back; what is returned is done when Redis knows of it."""
        told = self._enter().create_future()
        self._held.discard(lease)
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
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
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
        self._keeper = self._woken = None
        self._answered_at = loop.time()
        self._renew_at = 0.0

    def _make(self) -> Lease:
        return Lease(f"{self._worker}:{next(self._ids)}")

    def _serve(self) -> None:
        """Let the keeper ask at once."""
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.Task(self._keep(), loop=self._enter())
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
                # Soon enough to renew in that third of a lease in which nothing expires.
                await asyncio.sleep(random.uniform(0.0, min(PAUSES[1], self.lease / 12)))
                continue
            self._answered_at = loop.time()
            if not (self._waiting or self._releases or self._held):
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
        began = loop.time()
        wanted, released = list(self._waiting), list(self._releases)
        is_due = began >= self._renew_at
        renewed = list(self._held) if is_due else []
        if not (wanted or released or renewed):
            return self.lease
        times = (self.lease * LASTS, self._interval, AHEAD, PATIENCE)
        args: list[str | int] = [self._worker, self.limit]
        args += [round(one * 1e6) for one in times]
        args += [len(wanted), len(released)]
        args += [lease.id for lease in (*wanted, *released, *renewed)]
        async with asyncio.timeout(self.lease / 6):
            lost, delays, pause = await self._script(keys=self._keys, args=args)
        if is_due:
            self._renew_at = began + self.lease * LASTS / 3
        self._forget(released)
        self._lose([renewed[index] for index in lost])
        for lease, delay in zip(wanted, delays, strict=True):
            if delay >= 0 and lease in self._waiting:
                lease.begins = loop.time() + delay / 1e6
                self._give(lease)
        if not pause:  # nobody waits
            return self.lease
        least, most = PAUSES
        seconds: float = min(most, max(least, pause / 1e6))
        return seconds * random.uniform(0.8, 1.2)

    def _lose(self, leases: list[Lease]) -> None:
        for lease in leases:
            lease.is_lost = True
            self._held.discard(lease)
        if leases:
            logger.warning(
                "%d leases were lost; their connections are closed when nobody uses them: %r",
                *(len(leases), self),
            )
