"""What tests look at inside, named in one place."""

from __future__ import annotations

from collections.abc import Iterable

from wspool import WebsocketConnection, WebsocketConnectionPool
from wspool._connection.link import Link
from wspool._connection.queues import Queues
from wspool._connection.wire import Wire
from wspool._pool.routing import Router


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
