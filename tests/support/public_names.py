"""The public names with their signatures, as text: `python -m tests.support.public_names --write`.

Public is what the `__all__` of a module of the package has; a module without one is internal. Of
the classes below only the members named here are public, of others all without an underscore.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import wspool
import wspool.redis
import wspool.testing
from wspool._pool.blocking_lender import BlockingLender
from wspool._pool.options import SETTINGS, Setting, Settings

STORED: Final = Path(__file__).with_suffix(".txt")

MEMBERS: Final[dict[type, list[str]]] = {
    wspool.WebsocketConnectionPool: (
        "is_started is_closed "
        "learned_limit trouble total_connections available_connections busy_connections "
        "pending_connections waiters "
        "start acquire acquire_new get_connection get_new_connection release run "
        "get_stream acquire_stream release_stream expire_connections resize close_all "
        "aclose stats connections snapshot subscribe state_diagram"
    ).split(),
    wspool.WebsocketStream: (  # made by pools alone
        "claim send recv ping send_json recv_json connection state number slot keys "
        "reused borrowed_at is_clean outstanding"
    ).split(),
    wspool.WebsocketConnection: (  # made by pools alone
        "send recv ping close retire send_json recv_json websocket "
        "id uri headers subprotocol state is_connected is_busy is_draining "
        "created_at last_activity uses reused borrowed_at rtt history context is_clean outstanding "
        "close_code close_reason cause"
    ).split(),
    wspool.PendingConnection: (
        "__init__ connection drain_timeout drain_condition created_at drain_task pending_id "
        "mark_completed"
    ).split(),
    wspool.Stats: (  # likewise
        "borrows waits wait_seconds timeouts dials dial_seconds dial_failures failures "
        "drained_messages repeats overflows closes copy to_dict"
    ).split(),
    wspool.testing.Peer: (
        "__init__ recv recv_json expect send send_json flood close drop mute unmute"
    ).split(),
    wspool.testing.PeerStream: "__init__ recv recv_json expect send send_json".split(),
    wspool.Quota: "acquire release".split(),
    wspool.LocalQuota: "__init__ acquire release".split(),
    wspool.redis.RedisQuota: "__init__ acquire release close".split(),
    wspool.WebsocketError: "__init__ message default_message".split(),
    wspool.ConnectionUnavailableError: "__init__ kind status attempts retry_after".split(),
    wspool.ConnectionClosedError: "__init__ code reason".split(),
}


SETTING_TYPES: Final = inspect.get_annotations(Settings)


def modules() -> list[ModuleType]:
    """Return the public modules; importing them needs the extras."""
    names = [found.name for found in pkgutil.iter_modules(wspool.__path__, "wspool.")]
    imported = [importlib.import_module(name) for name in names if name != "wspool.__main__"]
    return [wspool, *(module for module in imported if hasattr(module, "__all__"))]


def text() -> str:
    lines: list[str] = []
    for module in modules():
        for name in module.__all__:
            lines += _lines_of(f"{module.__name__}.{name}", getattr(module, name))
    return "\n".join(lines) + "\n"


def members(kind: type) -> list[str]:
    """Return the public members of a class, those that are only declared first."""
    shared = list(vars(BlockingLender)) if issubclass(kind, BlockingLender) else []
    own = [
        name for name in [*vars(kind), *shared] if not name.startswith("_") or name == "__init__"
    ]
    named = MEMBERS.get(kind) or list(dict.fromkeys([*inspect.get_annotations(kind), *own]))
    return ["__init__", *SETTINGS, *named] if issubclass(kind, Settings) else named


def _lines_of(path: str, named: Any) -> Iterator[str]:
    if inspect.isclass(named):
        bases = (base for base in named.__bases__ if not base.__module__.startswith("wspool._"))
        yield f"class {path}({', '.join(base.__name__ for base in bases) or 'object'})"
        yield from (f"    {line}" for line in _lines_of_members(named))
    elif inspect.isroutine(named):
        yield from _signature(path, named)
    else:
        yield f"{path} = {named!r}"


def _shown(annotation: Any) -> str:
    """Return a type as it is written, without the modules that names come from."""
    annotation = getattr(annotation, "__forward_arg__", annotation)  # those of a TypedDict
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(wspool|collections(\.abc)?|yarl|_?asyncio|aiohttp(\.\w+)?)\.", "", text)


def _lines_of_members(kind: type) -> Iterator[str]:
    if issubclass(kind, enum.Enum):
        yield from (f"{member.name} = {member.value!r}" for member in kind)
        return
    declared = inspect.get_annotations(kind)
    is_record = is_dataclass(kind) or hasattr(kind, "_fields")
    for name in members(kind):
        member = inspect.getattr_static(kind, name, None)
        if name in declared:
            yield f"{name}: {_shown(declared[name])}"
        elif isinstance(member, Setting):
            yield f"{name}: {SETTING_TYPES[name].removeprefix('Setting[').removesuffix(']')}"
        elif isinstance(member, property):
            yield f"{name}: {inspect.get_annotations(typing.cast(Any, member.fget))['return']}"
        elif not inspect.isroutine(member):
            yield name
        elif name != "__init__" or not is_record:  # else it is the list of what is declared
            yield from _signature(name, getattr(kind, name))


class _Shown:
    """An annotation or a default that prints the same on each Python."""

    def __init__(self, shown: object) -> None:
        self.shown = shown

    def __repr__(self) -> str:
        text = self.shown if isinstance(self.shown, str) else repr(self.shown)
        return "…" if " at 0x" in text else text


def _signature(path: str, called: Any) -> Iterator[str]:
    """Give `path(arguments) -> type`, one to a line where they are many."""
    signature = inspect.signature(called)
    arguments: list[str] = []
    for each in signature.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not any(a.startswith("*") for a in arguments):
            arguments.append("*")
        if each.annotation is not each.empty:
            each = each.replace(annotation=_Shown(each.annotation))
        if isinstance(each.default, str):
            each = each.replace(default=_Shown(repr(each.default)))
        elif each.default is not each.empty:
            each = each.replace(default=_Shown(each.default))
        arguments.append(str(each))
    is_async = inspect.iscoroutinefunction(inspect.unwrap(called))
    head = f"async {path}(" if is_async else f"{path}("
    tail = f") -> {signature.return_annotation}"
    if len(line := head + ", ".join(arguments) + tail) <= 100:
        yield line
    else:
        yield from (head, *(f"    {argument}," for argument in arguments), tail)


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        STORED.write_text(text(), encoding="utf-8")
    else:
        sys.stdout.write(text())
