"""Snapshots of another process, read as JSON over HTTP, as the debug page serves them.

Nothing of what is read is believed: the JSON must have the fields and types of a `PoolSnapshot` or
a `GroupSnapshot`. No header, user-info or query value is shown.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Hashable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from http import HTTPStatus
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from wspool._cli.shared import Trouble, printable, status_name
from wspool._connection.scrubbing import scrub_error, scrub_uri, secrets_of
from wspool._connection.states import State
from wspool._group.pictures import GroupSnapshot
from wspool._pool.introspection import PoolSnapshot

ANSWER_SECONDS: Final = 5.0
"""For the server to answer."""

MAX_ANSWER_BYTES: Final = 2**26
"""A picture of 5,000 connections has a sixth of that."""

Snapshot = PoolSnapshot | GroupSnapshot


class Source:
    """An address that serves the snapshot of a pool or a group."""

    def __init__(self, url: str, headers: list[tuple[str, str]]) -> None:
        self._url = _address(url)
        self._headers = CIMultiDict(headers)
        self._secrets = secrets_of(url, {str(n): value for n, (_, value) in enumerate(headers)})
        # The JSON of the last picture.
        self.json: Any = None

    async def read(self, session: aiohttp.ClientSession) -> Snapshot:
        """Return the pool or the group as it is now, or raise Trouble."""
        found = await self._json(session, self._url)
        is_group = isinstance(found, dict) and "members" in found
        try:
            snapshot: Snapshot = as_made(GroupSnapshot if is_group else PoolSnapshot, found)
            if missing := set(State) - snapshot.counts.keys():
                raise ValueError(f"counts has no {str(min(missing))!r}")
        except ValueError as error:
            raise self._trouble(f"the answer is not the snapshot of a pool: {error}") from None
        self.json = found
        return snapshot

    async def switch(self, session: aiohttp.ClientSession, shown: str, step: int) -> None:
        """Read another pool of the same page from now on: so many after the one shown."""
        path = self._url.raw_path.removesuffix("/snapshot") + "/pools"
        names = await self._json(session, self._url.with_path(path, encoded=True))
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and names):
            raise self._trouble("the answer has no names of pools")
        index = names.index(shown) + step if shown in names else 0
        self._url = self._url.update_query(pool=names[index % len(names)])

    async def _json(self, session: aiohttp.ClientSession, url: URL) -> Any:
        try:
            body = await self._fetch(session, url)
        except TimeoutError:
            raise self._trouble(f"no answer within {ANSWER_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            scrubbed = scrub_error(error, self._secrets)
            raise self._trouble(str(scrubbed) or type(error).__name__) from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise self._trouble("the answer is not JSON") from None

    async def _fetch(self, session: aiohttp.ClientSession, url: URL) -> bytes:
        # A redirect would take the headers to another server.
        get = session.get(url, headers=self._headers, allow_redirects=False)
        async with asyncio.timeout(ANSWER_SECONDS), get as response:
            if response.status != HTTPStatus.OK:
                raise self._trouble(f"the server answered {_status(response.status)}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise self._trouble(f"the answer has more than {MAX_ANSWER_BYTES:,} bytes")
            return bytes(body)

    def _trouble(self, what: str) -> Trouble:
        return Trouble(printable(f"{scrub_uri(self._url)}: {what}"))


def _address(url: str) -> URL:
    """Return the address of the snapshot; `url` may be that of the page, a prefix of it."""
    try:
        found = URL(url if "://" in url else f"http://{url}")
        is_http = found.scheme in ("http", "https") and found.host and found.port
        is_http = is_http and not re.search(r"\s", url)
    except ValueError:
        is_http = False
    if not is_http:  # and it may have a password anywhere
        raise Trouble("the address is not a URL like http://host/path or https://host/path")
    path = found.raw_path.rstrip("/")
    if not path.endswith("/snapshot"):
        path += "/snapshot"
    query = f"?{found.raw_query_string}" if found.raw_query_string else ""
    return URL(f"{found.with_path(path, encoded=True)}{query}", encoded=True)


def _status(status: int) -> str:
    name = status_name(status)
    if status == HTTPStatus.UNAUTHORIZED:
        return f"{name}; -H 'Name: value' sends what the application asks for"
    if status == HTTPStatus.NOT_FOUND:
        return f"{name}; is that the prefix of the debug page, and the ?pool= one of its pools?"
    return name


_hints = cache(get_type_hints)


@cache
def _optional(kind: Any) -> set[str]:
    """Return the fields that a snapshot of an older version may be without."""
    found = fields(kind) if is_dataclass(kind) else ()
    return {field.name for field in found if field.default is not MISSING}


def as_made(kind: Any, value: Any, where: str = "it") -> Any:
    """Return a value of a snapshot's JSON as the object that it was made from.

    Raise ValueError where it is none; fields of a newer version are left out, and those that an
    older one does not have are as their class says.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else as_made(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(as_made(arguments[0], item, f"an item of {where}") for item in value)
    if origin in (dict, Counter) and isinstance(value, dict):
        number = arguments[1] if origin is dict else int
        return origin({k: as_made(number, n, f"an item of {where}") for k, n in value.items()})
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind in (str, bool, int) and type(value) is kind:
        return value
    if kind is Hashable and type(value) is str:  # a key
        return value
    if kind is State and value in list(State):
        return State(value)
    if isinstance(kind, type) and (hints := _hints(kind)) and isinstance(value, dict):
        given = hints.keys() & value.keys()
        if missing := hints.keys() - given - _optional(kind):
            raise ValueError(f"{where} has no {min(missing)!r}")
        return kind(**{name: as_made(hints[name], value[name], name) for name in given})
    raise ValueError(f"{where} is of another type")
