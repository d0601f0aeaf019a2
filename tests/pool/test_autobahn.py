"""The Autobahn test suite's cases against what the pool lends, and every place back after them.

The server is kosoku's, which plays the cases of the suite with a runner of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
import pytest

from tests.conftest import MakePool, echoes, skip, until
from tests.support.inside import queues_of, router_of
from wspool import ConnectionClosedError, ConnectionUnavailableError, WebsocketConnectionPool
from wspool.testing import Server

CONNECTIONS = 4

FAMILIES = {
    "framing": ["1.*", "2.*", "3.*", "4.*"],
    "fragments": ["5.*"],
    "UTF-8": ["6.*"],
    "closing": ["7.*", "10.*"],
    "limits": ["9.*"],
    "compression": ["12.*", "13.*"],
}


async def play(pool: WebsocketConnectionPool, outcomes: Counter[str]) -> None:
    """Echo what a case sends, for as long as it lasts, as the suite wants it of a client."""
    try:
        async with pool.get_connection() as connection:
            async for message in connection:
                await connection.send(message)
    except ConnectionClosedError as closed:
        outcomes[f"closed {closed.code}"] += 1
    except ConnectionUnavailableError as unavailable:
        outcomes[unavailable.kind] += 1
    else:
        outcomes["ended"] += 1


@pytest.mark.once
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.long if name in ("limits", "compression") else ())
        for name in FAMILIES
    ],
)
async def test_the_cases_of_the_autobahn_suite_pass_and_cost_no_place(
    server: Server, make_pool: MakePool, family: str
) -> None:
    """Whatever a case does: at its end the pool has all its places, and borrows work."""
    try:
        from kosoku import run_fuzzingserver
    except ImportError:
        skip("kosoku is not installed")
    async with (
        run_fuzzingserver(FAMILIES[family], port=0) as suite,
        aiohttp.ClientSession() as us,
    ):
        base = f"ws://{suite.address}:{suite.port}"
        async with us.ws_connect(f"{base}/getCaseCount") as counting:
            count = int(await counting.receive_str())
        assert count > 0
        begun = 0
        is_over = False

        def next_case() -> str:
            nonlocal begun
            if is_over:
                return server.uri
            if begun == count:
                raise LookupError("all cases have begun")
            begun += 1
            return f"{base}/runCase?case={begun}&agent=wspool"

        pool = make_pool(
            uri=next_case,
            max_connections=CONNECTIONS,
            max_retries=1,
            max_msg_size=32 * 1024 * 1024,
            compress=15 if family == "compression" else 0,
        )
        # A case that closes at once looks like a refusal.
        router_of(pool).gate.waits = (0.001,)
        outcomes: Counter[str] = Counter()

        async def work() -> None:
            while begun < count:
                await play(pool, outcomes)

        await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
        is_over = True
        await until(lambda: not queues_of(pool).closed, "the last goodbyes are said", within=30.0)
        lent = [await pool.acquire(timeout=10.0) for _ in range(CONNECTIONS)]
        for connection in lent:
            assert await echoes(connection)
            await pool.release(connection)
        async with us.ws_connect(f"{base}/updateReports?agent=wspool") as reporting:
            await reporting.receive()
        async with asyncio.timeout(30.0):
            results = await suite.get_result()
        assert len(results) == count
        assert [result.case_id for result in results if not result.passed] == []
