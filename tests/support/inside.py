"""What tests look at inside, named in one place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from wspool import WebsocketConnection, WebsocketConnectionPool
from wspool._connection.link import Link
from wspool._connection.queues import Queues
from wspool._connection.states import State
from wspool._connection.wire import Wire
from wspool._pool.routing import Router

L = TypeVar("L")


def link_of(connection: WebsocketConnection) -> Link:
    """Return the link below a loan or a view."""
    return connection._served()


def wire_of(connection: WebsocketConnection) -> Wire:
    """Return the wire of a connection that has one."""
    wire = link_of(connection).wire
    assert wire is not None
    return wire


def router_of(pool: WebsocketConnectionPool) -> Router:
    return pool._router


def queues_of(pool: WebsocketConnectionPool) -> Queues[Link]:
    return pool._router.queues


def is_lent(connection: WebsocketConnection) -> bool:
    """Whether somebody has the connection in hand."""
    return link_of(connection).loan is not None


def ids_of(connections: Iterable[WebsocketConnection | Link]) -> set[int]:
    """Return which connections these are, whatever loan or view each was got by."""
    return {connection.id for connection in connections}


def move(queues: Queues[L], link: L, source: State, dest: State) -> None:
    """Move whatever stands for a link, as the state machine does."""
    del queues.of[source][link]
    queues.of[dest][link] = None
