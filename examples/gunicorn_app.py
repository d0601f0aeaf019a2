"""A WSGI application that asks a server over a pool of WebSockets, served by gunicorn's workers.

    pip install wspool gunicorn
    export WSPOOL_URI=ws://localhost:8080/
    gunicorn --workers 4 --threads 8 --preload examples.gunicorn_app:app
    curl 'localhost:8000/ask?text=hello'

The pool is made with the module. It starts at its first use, in the worker: with --preload the
module is imported before gunicorn forks, and a pool that had been started there would be of no use
in the workers. Each worker has a pool, and so the server sees up to workers × max_connections.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from wspool import (
    BlockingWebsocketConnectionPool,
    ConnectionClosedError,
    ConnectionPoolExhaustedError,
    ConnectionUnavailableError,
)

pool = BlockingWebsocketConnectionPool(
    uri=os.environ["WSPOOL_URI"],
    max_connections=10,
    acquire_timeout=5.0,
)
atexit.register(pool.close_all)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/ask":
        text = parse_qs(environ["QUERY_STRING"]).get("text", ["hello"])[0]
        status, answer = ask(text)
    else:
        status, answer = "200 OK", {"pid": os.getpid(), "pool": pool.snapshot().to_dict()}
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]


def ask(text: str) -> tuple[str, dict[str, Any]]:
    try:
        with pool.get_connection() as connection:
            connection.send(text)
            reply = connection.recv(timeout=10.0)
    except ConnectionPoolExhaustedError as error:
        return "503 Service Unavailable", {"error": str(error)}
    except (ConnectionClosedError, ConnectionUnavailableError, TimeoutError) as error:
        return "502 Bad Gateway", {"error": str(error)}
    return "200 OK", {"pid": os.getpid(), "reply": reply, "connection": connection.id}
