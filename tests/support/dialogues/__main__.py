"""Record all of them anew, or those that are named."""

from __future__ import annotations

import asyncio
import json
import sys

from tests.support.dialogues.clients import DIALOGUES
from wspool.testing import Server, record


async def main(names: list[str]) -> None:
    for dialogue in DIALOGUES:
        if names and dialogue.name not in names:
            continue
        async with dialogue.server() as uri, Server(record(uri, dialogue.file)) as server:
            results = await dialogue.run(server.uri, connections=3, seed=0)
        dialogue.file.with_suffix(".results.json").write_text(
            json.dumps(results, indent=1) + "\n", encoding="utf-8"
        )
        print(f"{dialogue.name}: {dialogue.file.stat().st_size:,} bytes")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
