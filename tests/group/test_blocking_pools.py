"""The group without `await`: the same members, total and failover, for threads."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from tests.group.conftest import uris
from wspool import (
    BlockingWebsocketConnection,
    BlockingWebsocketPools,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionPoolUnavailableError,
)
from wspool.testing import Peer, Server

Servers = dict[str, Server]


def ask(pools: BlockingWebsocketPools, key: Any = None) -> str:
    """Return to which server a question went that was answered."""
    with pools.get_connection(key) as connection:
        connection.send("hello")
        assert connection.recv(timeout=10) == "hello"
        return connection.uri


async def moody(peer: Peer) -> None:
    async for message in peer:
        if message == "drop":
            return peer.drop()
        await peer.send(message)
    return None


async def test_threads_borrow_with_a_key_and_without(servers: Servers) -> None:
    def work() -> None:
        with BlockingWebsocketPools(
            uris(servers, "ab"), max_connections=4, acquire_timeout=10.0, close_timeout=1.0
        ) as pools:
            assert ask(pools, "b") == servers["b"].uri
            answers: list[str] = []
            threads = [
                threading.Thread(target=lambda: answers.extend(ask(pools) for _ in range(5)))
                for _ in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(answers) == 30
            assert pools.total_connections <= 4
            connection = pools.acquire("a", prefer="x")
            connection.context = "x"
            pools.release(connection)
            with pools.get_connection(prefer="x") as connection:
                assert connection.context == "x"
            assert [member.key for member in pools.snapshot().members] == ["a", "b"]

    await asyncio.to_thread(work)


async def test_the_errors_and_the_steering_are_those_of_the_async_one(servers: Servers) -> None:
    def work() -> None:
        pools = BlockingWebsocketPools(
            uris(servers, "ab"), max_connections=1, choose="first", close_timeout=1.0
        )
        with pools.get_connection() as connection:
            assert connection.uri == servers["a"].uri
            with pytest.raises(ConnectionPoolExhaustedError):
                pools.acquire()
        with pytest.raises(KeyError):
            pools.acquire("c")
        pools.eject("a", 60)
        assert ask(pools) == servers["b"].uri
        pools.expire_connections()
        pools.remove("a")
        assert ask(pools) == servers["b"].uri
        pools.close_all()
        assert pools.is_closed
        with pytest.raises(ConnectionPoolUnavailableError):
            pools.acquire()

    await asyncio.to_thread(work)


async def test_a_callable_is_called_in_the_loops_thread(servers: Servers) -> None:
    seen: list[str] = []

    async def options_of(key: str) -> dict[str, Any]:
        seen.append(threading.current_thread().name)
        return {"uri": servers["a"].uri}

    def work() -> None:
        with BlockingWebsocketPools(options_of, max_connections=2, name="keys") as pools:
            assert ask(pools, "k") == servers["a"].uri

    await asyncio.to_thread(work)
    assert seen == ["wspool keys"]


async def test_one_that_was_never_started_closes_at_once(servers: Servers) -> None:
    pools = BlockingWebsocketPools(uris(servers, "ab"), max_connections=1)
    pools.close_all()
    assert pools.is_closed


async def test_run_does_work_once_more_by_another_member(servers: Servers) -> None:
    servers["a"].handler = moody
    asked: list[str] = []

    def question(connection: BlockingWebsocketConnection, word: str) -> str | bytes:
        asked.append(connection.uri)
        connection.send(word)
        return connection.recv(timeout=10)

    def work() -> None:
        with BlockingWebsocketPools(
            uris(servers, "ab"), max_connections=2, choose="first", close_timeout=1.0
        ) as pools:
            assert pools.run(question, "hello") == "hello"
            assert pools.run(question, "drop") == "drop"
            assert asked == [servers["a"].uri, servers["a"].uri, servers["b"].uri]
            assert pools.run(question, "hello", key="a") == "hello"
            with pytest.raises(ConnectionClosedError):
                pools.run(question, "drop", key="a")
            assert asked[4:] == [servers["a"].uri] * 2

    await asyncio.to_thread(work)


async def test_work_whose_member_is_gone_before_it_is_done_once_more_hears_so(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers["a"].handler = moody
    has_lost = threading.Event()

    def work() -> None:
        with BlockingWebsocketPools(
            uris(servers, "ab"), max_connections=2, close_timeout=1.0
        ) as pools:
            held = pools.acquire("a")
            ask(pools, "a")
            call = pools._portal.call

            def slowly(function: Any) -> Any:
                result = call(function)
                if has_lost.is_set():
                    has_lost.clear()
                    pools.release(held)
                    while len(pools.pools._roster.known) == 2:
                        time.sleep(0.001)
                return result

            def lose(connection: BlockingWebsocketConnection) -> None:
                pools.remove("a")
                connection.send("drop")
                try:
                    connection.recv(timeout=10)
                finally:
                    has_lost.set()

            monkeypatch.setattr(pools._portal, "call", slowly)
            with pytest.raises(ConnectionPoolUnavailableError):
                pools.run(lose, key="a")

    await asyncio.to_thread(work)


async def test_what_a_thread_has_given_back_is_counted(servers: Servers) -> None:
    def work() -> None:
        options = uris(servers, "a")
        with BlockingWebsocketPools(options, max_connections=2, close_timeout=1.0) as pools:
            for count in range(1, 50):
                with pools.get_connection() as connection:
                    connection.retire()
                assert sum(pools.stats.closes.values()) == count

    await asyncio.to_thread(work)
