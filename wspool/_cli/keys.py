"""Keys that are pressed in a terminal while a command shows something, one by one and unseen.

Ctrl-C stays what it is. Where there is no terminal to read from, or none as on Unix, no key is ever
pressed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_NAMES: Final = {
    "q": "quit",
    **dict.fromkeys(["n", "\t", "\x1b[C", "\x1bOC"], "next"),
    **dict.fromkeys(["p", "\x1b[D", "\x1bOD"], "previous"),
}
"""What each key means: letters, the tabulator, and the arrows as terminals send them."""


class Keys:
    """What was pressed and not yet asked for."""

    def __init__(self, are_read: bool) -> None:
        self.are_read = are_read
        self._pressed: asyncio.Queue[str] = asyncio.Queue()

    def press(self, text: str) -> None:
        """Take in what a terminal sends at once: one key, or letters that were typed ahead."""
        for key in [text] if text in _NAMES else text.lower():
            if (name := _NAMES.get(key)) is not None:
                self._pressed.put_nowait(name)

    async def within(self, seconds: float) -> str:
        """Return the meaning of the next key; "" if there is none for so long."""
        try:
            async with asyncio.timeout(seconds):
                return await self._pressed.get()
        except TimeoutError:
            return ""


def _is_in_background(terminal: int) -> bool:
    """Return whether a change of the terminal would stop this process."""
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # it is not the one that controls this process
        return False


@contextmanager
def pressed(*, is_wanted: bool) -> Iterator[Keys]:
    """Read keys from the terminal until the block ends, which leaves it as it was."""
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if sys.platform == "win32" or not (is_wanted and is_terminal):
        yield Keys(are_read=False)
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    if _is_in_background(terminal):
        yield Keys(are_read=False)
        return
    before = termios.tcgetattr(terminal)
    keys = Keys(are_read=True)
    loop = asyncio.get_running_loop()

    def read() -> None:
        text = os.read(terminal, 1024).decode(errors="replace")
        if text:
            keys.press(text)
        else:
            loop.remove_reader(terminal)  # the terminal is gone

    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield keys
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
