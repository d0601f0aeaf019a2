"""A Redis server, and quotas in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.support.redis_quotas import Quotas
from tests.support.redis_server import RedisServer


@pytest.fixture
async def server_of_redis() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def client(server_of_redis: RedisServer) -> AsyncIterator[Redis]:
    async with server_of_redis.client() as client:
        yield client


@pytest.fixture
async def make_quota(server_of_redis: RedisServer) -> AsyncIterator[Quotas]:
    quotas = Quotas(server_of_redis)
    yield quotas
    for quota in quotas.made:
        await quota.close()
