"""Tests of a client of an Ethereum node, which was asked once; they play what it has said since.

    pip install wspool pytest pytest-asyncio
    python -m pytest -p wspool.pytest_plugin examples/recorded_tests.py

needs neither a node nor a network: `recordings/recorded_tests/` has what anvil has said, a node for
development (https://getfoundry.sh). To ask it again, start `anvil` and add `--wspool-record`.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Self

import pytest

from wspool import WebsocketConnectionPool
from wspool.pytest_plugin import WebsocketRecording

NODE = "ws://127.0.0.1:8545/"


# What is tested.


class Node:
    """Asks an Ethereum node; amounts are in wei."""

    def __init__(self, uri: str, connections: int) -> None:
        self.pool = WebsocketConnectionPool(
            uri=uri, max_connections=connections, acquire_timeout=10.0
        )
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        await self.pool.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.pool.close_all()

    async def accounts(self) -> list[str]:
        return list(await self._ask("eth_accounts"))

    async def balance(self, account: str) -> int:
        return int(await self._ask("eth_getBalance", account, "latest"), 16)

    async def pay(self, sender: str, receiver: str, amount: int) -> bool:
        """Return whether the payment was made."""
        payment = {"from": sender, "to": receiver, "value": hex(amount)}
        transaction = await self._ask("eth_sendTransaction", payment)
        while not (receipt := await self._ask("eth_getTransactionReceipt", transaction)):
            await asyncio.sleep(0.1)  # until the payment is in a block
        return int(receipt["status"], 16) == 1

    async def _ask(self, method: str, *params: Any) -> Any:
        request = {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": params}
        async with self.pool.get_connection() as connection:
            await connection.send_json(request)
            while (reply := await connection.recv_json()).get("id") != request["id"]:
                pass
        if "error" in reply:
            raise ValueError(f"{method}: {reply['error']['message']}")
        return reply["result"]


# The tests.

pytestmark = pytest.mark.asyncio


# The requests are numbered as they come about, and the replies have those numbers: ignore=["id"].


async def test_payments_arrive(websocket_recording: WebsocketRecording) -> None:
    """The order in which tasks ask, and over how many connections, may be another each time."""
    async with (
        websocket_recording(NODE, ignore=["id"]) as server,
        Node(server.uri, connections=3) as node,
    ):
        senders = (await node.accounts())[:5]
        receivers = {n: f"0x{0x1000 + n:040x}" for n in range(len(senders))}
        async with asyncio.TaskGroup() as group:
            for n, sender in enumerate(senders):
                group.create_task(node.pay(sender, receivers[n], amount=n))
        balances = {n: await node.balance(receiver) for n, receiver in receivers.items()}
    assert balances == {n: n for n in receivers}


async def test_who_has_nothing_cannot_pay(websocket_recording: WebsocketRecording) -> None:
    async with (
        websocket_recording(NODE, ignore=["id"]) as server,
        Node(server.uri, connections=1) as node,
    ):
        with pytest.raises(ValueError, match="No Signer available"):
            await node.pay(f"0x{1:040x}", f"0x{2:040x}", amount=1)
