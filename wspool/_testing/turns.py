"""The turns of a recording, and its file: JSON lines, the first of which is a header.

    {"format": "wspool recording", "version": 1, "recorded_at": "…", "subprotocol": null,
     "turns": 2}
    {"connection": 1, "client": [], "server": []}
    {"connection": 1, "client": [{"text": "hi"}], "server": [{"text": "hello", "after": 0.02}]}

A turn is what the client has sent up to an answer, and all that the server did until the client
sent again: messages, as text or in base64, and at last perhaps its close. A connection begins with
a turn in which the client says nothing and the server may greet, or with a refusal, as
{"connection": 2, "refused": 503, "retry_after": "7"}. `after` is in seconds, since the
message before. This file knows neither a server nor a client.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

FORMAT: Final = "wspool recording"
VERSION: Final = 1

LOST: Final = 1006
"""The code that stands for a connection which ended without a close, as RFC 6455 has it."""


class Close(NamedTuple):
    """A close by the server; 1005 is one without a code, `LOST` is none at all."""

    code: int
    reason: str


class Action(NamedTuple):
    """What the server did, and how many seconds after what was before."""

    what: str | bytes | Close
    after: float


class Refusal(NamedTuple):
    """The HTTP status in the place of a handshake, and its header Retry-After."""

    status: int
    retry_after: str | None


@dataclass(eq=False)
class Turn:
    """The client's messages and the server's answer; `line` is where the file has it."""

    connection: int
    client: list[str | bytes]
    server: list[Action]
    refusal: Refusal | None = None
    line: int = 0


class Recorded(NamedTuple):
    """All of a file that matters when it is played."""

    subprotocol: str | None
    turns: list[Turn]


# Writing.


def write(path: Path, subprotocol: str | None, turns: list[Turn]) -> None:
    """Write the file as a whole: whoever reads it meanwhile finds the one before."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "subprotocol": subprotocol,
        "turns": len(turns),
    }
    lines = (json.dumps(line, ensure_ascii=False) for line in [header, *map(_written, turns)])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _written(turn: Turn) -> dict[str, Any]:
    if turn.refusal is None:
        client = [_written_message(message) for message in turn.client]
        server = [_written_action(action) for action in turn.server]
        return {"connection": turn.connection, "client": client, "server": server}
    status, retry_after = turn.refusal
    line: dict[str, Any] = {"connection": turn.connection, "refused": status}
    return line if retry_after is None else line | {"retry_after": retry_after}


def _written_action(action: Action) -> dict[str, Any]:
    if isinstance(action.what, Close):
        code, reason = action.what
        return {"close": code, "reason": reason, "after": action.after}
    return _written_message(action.what) | {"after": action.after}


def _written_message(message: str | bytes) -> dict[str, Any]:
    if isinstance(message, str):
        return {"text": message}
    return {"base64": base64.b64encode(message).decode()}


# Reading.


def read(path: Path) -> Recorded:
    """Return what the file has.

    Raises FileNotFoundError, and ValueError with the file, the line and what is wrong there.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        advice = "there is no such recording: make it with record() or --wspool-record"
        raise FileNotFoundError(errno.ENOENT, advice, str(path)) from None
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path}, line 1: the file is empty")
    header = _header(f"{path}, line 1", lines[0])
    subprotocol = header.take("subprotocol", str, None)
    header.take("recorded_at", str)
    expected = header.take("turns", int)
    header.end()
    turns: list[Turn] = []
    opened: set[int] = set()
    for number, line in enumerate(lines[1:], start=2):
        turns.append(_turn(_Fields(f"{path}, line {number}", line), opened, number))
    if len(turns) != expected:
        raise ValueError(
            f"{path}, line {len(lines)}: the file ends after {len(turns)} turns, and line 1 says "
            f"that there are {expected}: it was cut short, or edited and that number was not"
        )
    return Recorded(subprotocol, turns)


class _Fields:
    """The fields of an object: each is taken once, with its type, and none may be left over."""

    def __init__(self, where: str, line: object) -> None:
        self._where = where
        if isinstance(line, bytes):
            try:
                line = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                cut = "the file was cut short, or edited by mistake"
                self.wrong(f"it is no JSON ({error}): {cut}")
        if not isinstance(line, dict):
            self.wrong(f"there has to be an object, and it is {_shown(line)}")
        self._left: dict[str, Any] = line

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, kind: type, *default: Any) -> Any:
        """Return a field of this type; one with a default may be null or missing."""
        if name not in self._left and not default:
            self.wrong(f"the field {name!r} is missing")
        value = self._left.pop(name, None)
        if value is None and default:
            return default[0]
        allowed = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or isinstance(value, bool):
            self.wrong(f"{name!r} has to be of type {kind.__name__}, and it is {_shown(value)}")
        return value

    def objects(self, name: str) -> Iterable[_Fields]:
        """Give the objects of a list."""
        for number, item in enumerate(self.take(name, list), start=1):
            yield _Fields(f"{self._where}, item {number} of {name!r}", item)

    def end(self) -> None:
        if self._left:
            self.wrong(f"there is no field of the name {next(iter(self._left))!r} here")

    def wrong(self, what: str) -> NoReturn:
        raise ValueError(f"{self._where}: {what}") from None


def _header(where: str, line: bytes) -> _Fields:
    try:
        header = _Fields(where, line)
        is_ours = header.take("format", str) == FORMAT
    except ValueError:
        is_ours = False
    if not is_ours:
        raise ValueError(f"{where}: this is no recording, which begins with a header of its own")
    version = header.take("version", int)
    if version != VERSION:
        header.wrong(
            f"the recording is of version {version}, and this wspool reads version {VERSION}: "
            "use a newer wspool, or record it anew"
        )
    return header


def _turn(fields: _Fields, opened: set[int], line: int) -> Turn:
    connection = fields.take("connection", int)
    is_opening = connection not in opened
    opened.add(connection)
    turn = Turn(connection, [], [], line=line)
    if "refused" in fields:
        status = fields.take("refused", int)
        if not 200 <= status <= 599:
            fields.wrong(f"{status} is no HTTP status that refuses a handshake")
        turn.refusal = Refusal(status, fields.take("retry_after", str, None))
    else:
        turn.client = [_message(item) for item in fields.objects("client")]
        turn.server = [_action(item) for item in fields.objects("server")]
        if any(isinstance(action.what, Close) for action in turn.server[:-1]):
            fields.wrong("after its close the server has done something else")
    if is_opening and turn.client:
        fields.wrong(f"connection {connection} has no opening before it, with an empty 'client'")
    if not is_opening and not turn.client:
        fields.wrong(f"connection {connection} is open, and the client says nothing here")
    fields.end()
    return turn


def _message(fields: _Fields, *, ends: bool = True) -> str | bytes:
    message: str | bytes
    if "text" in fields:
        message = text = str(fields.take("text", str))
        if any("\ud800" <= character <= "\udfff" for character in text):
            fields.wrong("the text has half of a surrogate pair, which cannot be sent")
    elif "base64" in fields:
        try:
            message = base64.b64decode(fields.take("base64", str), validate=True)
        except (binascii.Error, UnicodeEncodeError, ValueError) as error:
            fields.wrong(f"it is no base64 ({error})")
    else:
        fields.wrong("there is neither a 'text' nor a 'base64'")
    if ends:
        fields.end()
    return message


def _action(fields: _Fields) -> Action:
    what: str | bytes | Close
    if "close" in fields:
        code = fields.take("close", int)
        if not (1000 <= code <= 1014 or 3000 <= code <= 4999):
            fields.wrong(f"{code} is no code of a close")
        what = Close(code, fields.take("reason", str))
    else:
        what = _message(fields, ends=False)
    after = fields.take("after", float)
    if not (math.isfinite(after) and after >= 0):
        fields.wrong(f"'after' is {after}, and has to be a number of seconds")
    fields.end()
    return Action(what, float(after))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"
