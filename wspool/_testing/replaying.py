"""Playing a recording: a script that answers what the recorded server has answered.

It goes by turns, not by connections. The unused turns are a tree of the client's messages, so that
a connection, wherever it is in a turn, is at one node: there the turn ends and its answer is
played, or messages follow, or there is nothing and the test has failed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Final

from aiohttp import WSMsgType, hdrs, web

from wspool._testing import turns
from wspool._testing.matching import Ids, Message, Scrub, difference, ids_of, key, nearest, shown
from wspool._testing.server import Admission, Peer, Script
from wspool._testing.turns import Close, Turn

LISTED: Final = 5
"""Unused turns that an error shows."""


def replay(
    path: str | os.PathLike[str],
    *,
    ignore: Iterable[str] = (),
    pace: float = 0.0,
    strict: bool = True,
    scrub: Callable[[str | bytes], str | bytes] | None = None,
) -> Script:
    """Return what lets a `Server` play a recording; each server needs one of its own.

    The messages of a client are answered as in the first unused turn with the same ones, on
    whichever connection that was. Text that is JSON is compared as values. Other messages than
    recorded close the connection with 1011 and fail the test, with the difference from the nearest
    turn. Turns that are not used fail it too, at the end of a block that has ended well.

    Handshakes are answered as in the recording, one after the other, and further ones as the last
    that was accepted and stayed open. The turns that every recorded connection begins with, such
    as a login, are played to each connection that begins with them.

    path: the file.
    ignore: names of JSON fields, at any depth, that may have any value: ids. A recorded id in such
        a field of an answer is replaced by the client's own. Where turns are the same without
        these fields, one with the ids that the server has given to this connection goes first.
    pace: 0.0 plays without a pause, 1.0 with the recorded ones, 2.0 takes twice as long.
    strict: whether unused turns fail the test.
    scrub: what is applied to each message of the client before it is compared: that of `record`.

    Raises FileNotFoundError, and ValueError for what is no recording, with the file and the line.
    """
    if isinstance(ignore, str):
        raise TypeError(f"ignore is {ignore!r}; it must be names, as in ignore=({ignore!r},)")
    if not pace >= 0:
        raise ValueError(f"pace is {pace!r}; it must be 0 or more")
    return Replay(Path(path), frozenset(ignore), pace, strict, scrub)


class _Node:
    """The turns of which the client's messages begin in the same way."""

    def __init__(self, parent: _Node | None = None) -> None:
        self.parent = parent
        self.children: dict[Message, _Node] = {}
        self.ending: list[Turn] = []
        """The unused turns that have no further messages, in the order of the file."""
        self.left = 0
        """How many turns are unused, here and further down."""
        self.was_played = False

    def child(self, name: Message) -> _Node:
        """Return the node one message further down; it is made where there is none."""
        return self.children.setdefault(name, _Node(self))

    def count(self, change: int) -> None:
        node: _Node | None = self
        while node is not None:
            node.left += change
            node = node.parent


class _Connection:
    """Where a connection is: what it has said in this turn, and how far its beginning has come."""

    def __init__(self, root: _Node, ignored: frozenset[str]) -> None:
        self.node = root
        self.said: list[Message] = []
        self.ids = Ids(ignored)
        self.begun: int | None = 0
        """Turns played so far, if those are what every connection begins with, else None."""


class Replay(Script):
    """See `replay`."""

    def __init__(
        self, path: Path, ignored: frozenset[str], pace: float, strict: bool, scrub: Scrub | None
    ) -> None:
        self._path = path
        self._ignored = ignored
        self._pace = pace
        self._is_strict = strict
        self._scrub = scrub
        self._subprotocol, recorded = turns.read(path)
        self._root = _Node()
        self._nodes: dict[Turn, _Node] = {}
        """Where each turn ends."""
        self._unused: set[Turn] = set()
        self._openings = [turn for turn in recorded if not turn.client]
        staying = [t for t in self._openings if not (t.refusal or _closes(t))]
        # A recording without connections accepts them, and answers nothing.
        self._further = (staying or self._openings or [Turn(0, [], [])])[-1]
        self._named: dict[Turn, set[object]] = {}
        """The ids that the server has made up, by the turn in which they come first."""
        known: set[object] = set()
        for turn in recorded:
            if turn.client:
                self._plant(turn)
            known |= ids_of(turn.client, ignored)
            said = [what for what, _ in turn.server if not isinstance(what, Close)]
            self._named[turn] = ids_of(said, ignored) - known
            known |= self._named[turn]
        self._beginnings = self._find_beginnings()
        self._connections: dict[int, _Connection] = {}

    def _plant(self, turn: Turn) -> None:
        node = self._root
        for message in turn.client:
            node = node.child(key(message, self._ignored))
        node.ending.append(turn)
        node.count(1)
        self._nodes[turn] = node
        self._unused.add(turn)

    def _find_beginnings(self) -> list[list[Turn]]:
        """Return the turns that every recorded connection begins with, by their place there.

        At least one connection goes on after them. With a single connection it is not known where
        its beginning ends: it counts as one turn.
        """
        by_connection: dict[int, list[Turn]] = {}
        for turn in self._nodes:
            by_connection.setdefault(turn.connection, []).append(turn)
        dialogues = list(by_connection.values())
        most = max(map(len, dialogues), default=1) - 1
        places = [list(place) for place in zip(*dialogues, strict=False)]
        if len(dialogues) == 1:
            most = min(most, 1)
        return list(takewhile(self._are_one, places[:most]))

    def _are_one(self, place: list[Turn]) -> bool:
        return len({id(self._nodes[turn]) for turn in place}) == 1

    # Playing.

    async def admit(self, request: web.Request) -> web.Response | Admission:
        opening = self._openings.pop(0) if self._openings else self._further
        if opening.refusal is not None:
            status, retry_after = opening.refusal
            headers = {} if retry_after is None else {hdrs.RETRY_AFTER: retry_after}
            return web.Response(status=status, headers=headers)
        if self._subprotocol is None:
            return Admission((), partial(self._serve, opening))
        offered = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "")
        if self._subprotocol not in [name.strip() for name in offered.split(",")]:
            raise AssertionError(
                f"{self._path} was recorded with the subprotocol {self._subprotocol!r}, and the "
                "client does not offer it"
            )
        return Admission((self._subprotocol,), partial(self._serve, opening))

    async def _serve(self, opening: Turn, peer: Peer) -> None:
        connection = _Connection(self._root, self._ignored)
        self._connections[peer.number] = connection
        await self._play(opening, connection, peer)
        if _closes(opening):
            return
        async for message in peer:
            turn = self._take(self._scrub(message) if self._scrub else message, connection, peer)
            if turn is not None:
                await self._play(turn, connection, peer)
                if _closes(turn):
                    return

    def _take(self, message: Message, connection: _Connection, peer: Peer) -> Turn | None:
        """Return the turn that ends with this message, or None if more have to come."""
        connection.said.append(message)
        node = connection.node.children.get(key(message, self._ignored))
        beginning = self._beginning(connection)
        if node is None or not (node.left or self._leads_to(node, beginning)):
            why = self._miss(connection, peer)
            connection.said = []
            raise AssertionError(why)
        if node.ending:
            candidates = [turn.client for turn in node.ending]
            turn = node.ending.pop(connection.ids.choose(connection.said, candidates))
            node.count(-1)
            self._unused.discard(turn)
        elif beginning is not None and self._nodes[beginning] is node:
            turn = beginning
        else:
            connection.node = node
            return None
        node.was_played = True
        connection.ids.learn(connection.said, turn.client)
        connection.node = self._root
        connection.said = []
        if beginning is not None and self._nodes[beginning] is node:
            assert connection.begun is not None
            connection.begun += 1
        else:
            connection.begun = None
        return turn

    def _beginning(self, connection: _Connection) -> Turn | None:
        """Return the turn that is next on this connection if it begins as every connection does."""
        begun = connection.begun
        if begun is None or begun >= len(self._beginnings):
            return None
        return self._beginnings[begun][0]

    def _leads_to(self, node: _Node, turn: Turn | None) -> bool:
        at = self._nodes[turn] if turn is not None else None
        while at is not None and at is not node:
            at = at.parent
        return at is not None

    async def _play(self, turn: Turn, connection: _Connection, peer: Peer) -> None:
        for what, after in turn.server:
            if self._pace:
                await asyncio.sleep(after * self._pace)
            if not isinstance(what, Close):
                await peer.send(connection.ids.put_into(what, self._named.get(turn, set())))
            elif what.code == turns.LOST:
                peer.drop()
            elif what.code == 1005:
                await peer.websocket.send_frame(b"", WSMsgType.CLOSE)
                async for _ in peer:  # to the client's answer
                    pass
            else:
                await peer.close(what.code, what.reason)

    # What is wrong.

    def _miss(self, connection: _Connection, peer: Peer) -> str:
        """Say which turn the client may have meant, and how that differs."""
        said = [key(message, self._ignored) for message in connection.said]
        for turn in self._in_order(self._nodes.keys() - self._unused):
            if [key(message, self._ignored) for message in turn.client] == said:
                return (
                    f"connection {peer.number} asks once more what is recorded in {self._path}, "
                    f"line {turn.line}, and was played already:\n" + "\n".join(self._shown(turn))
                )
        received = shown(connection.said, self._ignored)
        if not self._root.left:
            all_used = f"{self._path} has no turn that was not played already"
            return "\n".join([f"{all_used}; connection {peer.number} says:", *received])
        unused = self._in_order(self._unused)
        recorded = [shown(turn.client, self._ignored) for turn in unused]
        best = nearest(received, recorded)
        where = f"{self._path}, line {unused[best].line}"
        names = (where, f"connection {peer.number}")
        return (
            f"connection {peer.number} says what is in no unused turn of {self._path}; the nearest "
            f"is line {unused[best].line}:\n{difference(recorded[best], received, names)}"
        )

    def _in_order(self, some: Iterable[Turn]) -> list[Turn]:
        return sorted(some, key=lambda turn: turn.line)

    def _shown(self, turn: Turn) -> list[str]:
        return shown(turn.client, self._ignored)

    async def finish(self, error: BaseException | None) -> None:
        if error is not None:
            for number, connection in self._connections.items():
                if connection.said:
                    error.add_note(
                        f"Connection {number} has begun a turn of {self._path}: the answer comes "
                        "after further messages of the client."
                    )
            return
        if not self._is_strict:
            return
        repeated = {turn for place in self._beginnings for turn in place}
        missing = {t for t in self._unused if t not in repeated or not self._nodes[t].was_played}
        missing.update(turn for turn in self._openings if turn.refusal is not None)
        if missing:
            lines = [f"{self._path} has turns that were not played, {len(missing)} in all:"]
            for turn in self._in_order(missing)[:LISTED]:
                said = " ".join(map(str.strip, self._shown(turn))) or f"a refusal, {turn.refusal}"
                lines.append(f"  line {turn.line}: {said[:100]}")
            raise AssertionError("\n".join(lines))


def _closes(turn: Turn) -> bool:
    return bool(turn.server) and isinstance(turn.server[-1].what, Close)
