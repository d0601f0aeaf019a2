"""A server of its own process for the tests of groups: it says which one it is, and echoes."""

from __future__ import annotations

import os
from typing import Any


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer each text with the name of this server and the text, as ASGI."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text = f"{os.environ['NAME']} {message['text']}"
        await send({"type": "websocket.send", "text": text})
