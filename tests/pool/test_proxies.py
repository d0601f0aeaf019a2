"""The limits of nginx and HAProxy are learned, and followed when they change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakePool, until
from tests.support.crowd import many
from tests.support.inside import router_of
from tests.support.proxies import Nginx, haproxy
from wspool.testing import Server

PAUSE = 0.3
"""Seconds to the first probe."""


async def test_what_limit_conn_admits_is_learned(
    server: Server, make_pool: MakePool, tmp_path: Path
) -> None:
    """nginx answers 503 at once, before it has asked the server about the others."""
    async with Nginx(server.uri, tmp_path, 5).running() as nginx:
        pool = make_pool(uri=nginx.uri)
        async with many(pool) as outcome:
            await until(lambda: pool.learned_limit == 5, "it is learned")
            await until(lambda: outcome.loans > 100, "many are served")
        assert outcome.errors == []
        assert pool.trouble is None
        assert server.most_open == 5
        await pool.close_all()
        assert nginx.refused <= 10


@pytest.mark.parametrize(("before", "after"), [(5, 10), (10, 5)])
async def test_a_reload_of_nginx_under_demand_is_found(
    before: int, after: int, server: Server, make_pool: MakePool, tmp_path: Path
) -> None:
    async with Nginx(server.uri, tmp_path, before).running() as nginx:
        pool = make_pool(uri=nginx.uri, max_uses=30)
        router_of(pool).limit.first_pause = PAUSE
        async with many(pool) as outcome:
            await until(lambda: pool.learned_limit == before, "it is learned")
            nginx.reload(after)
            await until(lambda: pool.learned_limit == after, "it is found", within=30.0)
            served = outcome.loans
            await until(lambda: outcome.loans > served + 50, "many are served")
        assert outcome.errors == []
        await pool.close_all()


async def test_what_maxconn_admits_is_learned(
    server: Server, make_pool: MakePool, tmp_path: Path
) -> None:
    """HAProxy lets one more wait before it answers 503."""
    async with haproxy(server.uri, tmp_path, 5) as uri:
        pool = make_pool(uri=uri)
        async with many(pool) as outcome:
            await until(lambda: pool.learned_limit == 5, "it is learned")
            await until(lambda: outcome.loans > 100, "many are served")
        assert outcome.errors == []
        assert pool.stats.failures["status 503"] <= 10
        assert server.most_open == 5
        await pool.close_all()
