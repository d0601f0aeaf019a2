"""What tests of the quota in Redis share: its script on a clock, and several of one key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis

from tests.support.redis_server import RedisServer
from wspool._redis.script import SCRIPT
from wspool.redis import AHEAD, PATIENCE, PAUSES, RedisQuota

LEASE: Final = 10.0

KEYS: Final = [f"{{k}}:{part}" for part in ("leases", "queue", "heard", "state")]

PROMISES: Final = "{k}:promises"


class Clockwork:
    """Runs the script for whom a test wants, at the time that a test wants."""

    def __init__(self, client: Redis, limit: int, interval: float = 0.0) -> None:
        time = "redis.call('TIME')"
        assert SCRIPT.count(time) == 1
        source = SCRIPT.replace(time, "{KEYS[6], 0}")
        self._script = client.register_script(source)
        self._client = client
        self.limit, self.interval = limit, interval
        self.now = 1_000_000.0
        # By how much somebody has set the server's clock.
        self.skew = 0.0
        # What each process knows of the data that it has something in.
        self.epochs: dict[str, str] = {}

    async def step(
        self,
        worker: str,
        wanted: Sequence[str] = (),
        released: Sequence[str] = (),
        renewed: Sequence[str] = (),
        needed: int = 0,
        offered: Sequence[str] = (),
        withdrawn: Sequence[str] = (),
    ) -> tuple[list[str], dict[str, float], float]:
        """Return the lost leases, those given with their delays, and the pause."""
        self.now += 0.000001  # no two at once, as with the server's clock
        times = (LEASE, self.interval, AHEAD, PATIENCE, PAUSES[0])
        args: list[Any] = [worker, self.limit, *(round(one * 1e6) for one in times)]
        args += [self.epochs.get(worker, ""), needed]
        args += [len(ids) for ids in (wanted, released, offered, withdrawn)]
        args += [*wanted, *released, *offered, *withdrawn, *renewed]
        keys = [*KEYS, PROMISES, repr(self.now + self.skew)]
        answer = await self._script(keys=keys, args=args)
        lost, delays, pause, self.gone, epoch, self.taken, self.is_missing = answer
        given = {id: delay / 1e6 for id, delay in zip(wanted, delays, strict=True) if delay >= 0}
        has_some = pause or given or len(lost) < len(renewed)
        self.epochs[worker] = epoch if has_some else ""
        assert await self.leases() <= self.limit
        return [renewed[index] for index in lost], given, pause / 1e6

    async def leases(self) -> int:
        return int(await self._client.zcard("{k}:leases"))


class Quotas:
    """Several `RedisQuota` of one key, as several processes have them."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.made: list[RedisQuota] = []

    def __call__(self, limit: int, lease: float = 30.0, **options: Any) -> RedisQuota:
        self.made.append(RedisQuota(self.server.url, "key", limit, lease=lease, **options))
        return self.made[-1]


def counted(quota: RedisQuota) -> list[list[Any]]:
    """Return a list to which the arguments of each step are added."""
    steps = []
    script = quota._script

    async def step(*, keys: list[str], args: list[Any]) -> Any:
        steps.append(args)
        return await script(keys=keys, args=args)

    quota._script = step  # type: ignore[assignment]
    return steps
