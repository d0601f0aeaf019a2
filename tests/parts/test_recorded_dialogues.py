"""Dialogues with real servers, recorded once: what came out then comes out of each replay.

In any order of the tasks and over pools of any size. The stored recordings need no server. What
records anew needs Chromium, or what `tests/support/dialogues` lists, and is skipped elsewhere.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests import IS_WHOLE
from tests.support.dialogues.clients import DIALOGUES, Dialogue
from wspool._connection.borrow import Borrow
from wspool.testing import Server, record, replay

pytestmark = pytest.mark.once

CANARY = "canary-7531"
REPLAYS = 30 if IS_WHOLE else 5

each_dialogue = pytest.mark.parametrize(
    "dialogue", [pytest.param(each, id=each.name) for each in DIALOGUES]
)


async def play(dialogue: Dialogue, file: Path, connections: int, seed: int) -> Any:
    async with Server(replay(file, ignore=dialogue.ignore)) as server:
        return await dialogue.run(server.uri, connections, seed)


@each_dialogue
@pytest.mark.parametrize("connections", [1, 3, 10])
async def test_each_replay_has_the_recorded_results(dialogue: Dialogue, connections: int) -> None:
    asyncio.get_running_loop().set_debug(False)  # it takes a tenth of the time
    for seed in range(REPLAYS):
        assert await play(dialogue, dialogue.file, connections, seed) == dialogue.results


@each_dialogue
async def test_a_client_that_says_one_thing_otherwise_fails_with_the_difference(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last message of one task, or in binary its last byte, is another."""
    sent = 0
    send = Borrow.send

    async def mutate(self: Borrow, message: str | bytes) -> None:
        nonlocal sent
        sent += 1
        if sent == 8:
            if isinstance(message, str):
                message = json.dumps(json.loads(message) | {"type": "mutated"})
            else:
                message = message[:-1] + bytes([message[-1] ^ 1])
        await send(self, message)

    monkeypatch.setattr(Borrow, "send", mutate)
    with pytest.raises(BaseExceptionGroup) as failed:
        await play(dialogue, dialogue.file, 1, 0)
    [note, *_] = failed.value.__notes__
    assert f"says what is in no unused turn of {dialogue.file}" in note
    assert '+  "type": "mutated"' in note or "\\n+000000  " in note, note


@each_dialogue
async def test_a_new_recording_is_played_as_the_stored_one_and_has_no_token(
    dialogue: Dialogue, tmp_path: Path
) -> None:
    file = tmp_path / "turns.jsonl"
    token = {"Authorization": f"Bearer {CANARY}"}
    async with dialogue.server() as uri:
        async with Server(record(f"{uri}?token={CANARY}", file, headers=token)) as server:
            results = await dialogue.run(server.uri, connections=3, seed=1)
    assert CANARY not in file.read_text(encoding="utf-8")
    for connections in (1, 3, 10):
        assert await play(dialogue, file, connections, seed=2) == results
