"""`python -m wspool probe`: find out about a server, and say what to set.

It speaks to the server without a pool, since it wants to see what a pool hides: pings, pongs, the
parts of a handshake, the close code. It is gentle: it says how many dials it will make, makes them
one after the other, and gives no phase longer than it has to have. What it finds goes to `advice`;
no header, user-info or query value is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Final

import aiohttp

from wspool._cli.advice import Advice, advise, report
from wspool._cli.answers import Answer
from wspool._cli.observations import Capacity, Dial, Observation, Target
from wspool._cli.shared import Trouble, program, span
from wspool._cli.tapping import (
    ANSWER_SECONDS,
    PAUSE_SECONDS,
    Dialler,
    Tap,
    is_message,
    tracing,
)
from wspool._connection.scrubbing import scrub_uri, shown_subprotocol
from wspool._pool.gate import EARLY_SECONDS

PINGS: Final = 3
"""Pings on each connection."""

RAMP: Final = 0.05
"""Seconds between two dials of connections that are open at the same time."""

Show = Callable[[str, float, float], None]
"""Shows of a phase how much is done, and of how much."""


def nothing(*_: object) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Plan:
    """What to find out; times are in seconds."""

    dials: int = 5
    listen: float = 2.0
    idle: float | None = None
    connections: int = 0

    def __str__(self) -> str:
        parts = [f"{self.dials} dials one after the other"]
        if self.idle is not None:
            parts.append(f"up to 4 that stay for {self.idle:g} s")
        if self.connections:
            parts.append(f"up to {self.connections} at once")
        return ", ".join(parts)


# The questions.


async def observe(target: Target, plan: Plan, show: Show = nothing) -> Observation:
    """Ask the server all that the plan has, or raise Trouble."""
    connector = aiohttp.TCPConnector(limit=0, use_dns_cache=False)
    async with aiohttp.ClientSession(connector=connector, trace_configs=[tracing()]) as session:
        dialler, number = Dialler(target, session), 1
        try:
            seen = await _listen(dialler, plan, show)
            show("dials", 1, plan.dials)
            for number in range(2, plan.dials + 1):
                await asyncio.sleep(PAUSE_SECONDS)
                seen = replace(seen, dials=(*seen.dials, await _visit(dialler, seen)))
                show("dials", number, plan.dials)
            number += 1
            if plan.idle is not None:
                seen = await _idle(dialler, plan.idle, seen, show)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            why = f"{dialler.why(error)}{f' (at dial {number})' if number > 1 else ''}"
            raise Trouble(f"{scrub_uri(target.uri)}: {why}") from None
        if plan.connections:
            capacity = await _fill(dialler, plan.connections, show)
            seen = replace(seen, capacity=capacity)
    return seen


async def _listen(dialler: Dialler, plan: Plan, show: Show) -> Observation:
    """Make the first dial and send nothing: does the server greet, push, ping, close?"""
    async with dialler.connection() as (dial, tap):
        await tap.wait(plan.listen, lambda done: show("listening", done, plan.listen))
        seen = tap.seen()
        if seen.close is not None and seen.close.after < EARLY_SECONDS:
            how = f"the server closed {span(seen.close.after)} after the handshake: {seen.close}"
            raise Trouble(f"{scrub_uri(dialler.target.uri)}: {how}")
        if seen.first is not None and seen.first.after < EARLY_SECONDS:
            dial = replace(dial, greeting=dial.total + seen.first.after)
        return Observation(
            uri=scrub_uri(dialler.target.uri),
            dials=(dial,),
            listening=seen,
            protocol=shown_subprotocol(tap.websocket.protocol),
            is_compressed=bool(tap.websocket.compress),
        )


async def _visit(dialler: Dialler, seen: Observation) -> Dial:
    """Make another dial and talk: for the greeting, a reply, pongs, a reply on a used connection.

    The third question has a ping behind it. What was not answered on the connection before is not
    asked for again. Every other dial does without compression, where there is a reply to compare.
    """
    text = dialler.target.text
    before = seen.dials[-1]
    is_first = len(seen.dials) == 1
    is_plain = text is not None and len(seen.dials) % 2 == 0
    began = perf_counter()
    async with dialler.connection(compress=not is_plain) as (dial, tap):
        if before.greeting is not None:
            if tap.first is None:
                await tap.ask(is_message, ANSWER_SECONDS)
            if tap.first is not None:
                dial = replace(dial, greeting=dial.total + tap.first.after)
        answers: list[Answer] = []

        async def ask(text: str, *, with_ping: bool = False) -> Answer | None:
            before = [*seen.answers, *answers]
            if (answer := await tap.answer(text, before, with_ping=with_ping)) is not None:
                answers.append(answer)
            return answer

        if text is not None and (is_first or before.answers):
            asked = perf_counter()
            if (answer := await ask(text)) is not None:
                dial = replace(dial, fresh=asked - began + answer.first)
        if is_first or before.pings:
            pings: list[float] = []
            while len(pings) < PINGS and (round_trip := await tap.ping()) is not None:
                pings.append(round_trip)
            dial = replace(dial, pings=tuple(pings))
        if text is not None and answers and (answer := await ask(text)) is not None:
            dial = replace(dial, reused=answer.first)
            await ask(text, with_ping=bool(dial.pings))
        return replace(dial, answers=tuple(answers), close=tap.close)


async def _idle(dialler: Dialler, seconds: float, seen: Observation, show: Show) -> Observation:
    """Leave a connection alone until the server closes it; do others stay that are not silent?"""
    text = dialler.target.text
    taps: list[Tap] = []
    try:
        for _ in range(2 if text is None else 4):
            await asyncio.sleep(RAMP)
            taps.append((await dialler.dial())[1])
        silent, pinging, *rest = taps
        pinging.beat(pinging.websocket.ping)
        if text is not None:
            sending, once = rest
            sending.beat(partial(sending.websocket.send_str, text))
            with suppress(OSError, aiohttp.ClientError):
                await once.websocket.send_str(text)
        await silent.wait(seconds, lambda done: show("idle", done, seconds))
        if silent.close is not None:  # see that the others do not just stay a little longer
            enough = 1.1 * silent.close.after + 1
            await asyncio.gather(*(tap.wait(enough, nothing) for tap in taps[1:]))
        watches = [tap.seen() for tap in taps]
    finally:
        await _hang_up(taps)
    show("idle", seconds, seconds)
    seen = replace(seen, silent=watches[0], pinging=watches[1])
    return replace(seen, sending=watches[2], once=watches[3]) if rest else seen


async def _fill(dialler: Dialler, count: int, show: Show) -> Capacity:
    """Open one connection after the other, and keep them, until the server says no."""
    taps: list[Tap] = []
    refusal, status, code = "", None, None
    try:
        while len(taps) < count and not refusal and not any(tap.close for tap in taps):
            await asyncio.sleep(RAMP)
            try:
                taps.append((await dialler.dial())[1])
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                refusal = dialler.why(error)
                if isinstance(error, aiohttp.WSServerHandshakeError):
                    status = error.status
            show("connections", len(taps), count)
        await asyncio.sleep(EARLY_SECONDS / 2)  # a server that refuses by closing may take its time
        closed = [tap.close for tap in taps if tap.close is not None]
        if closed and not refusal:
            refusal = f"one was closed after {span(closed[-1].after)}, {closed[-1]}"
            if all(tap.close is not None for tap in taps[-len(closed) :]):  # and not the oldest
                code = closed[-1].code
        return Capacity(count, len(taps) - len(closed), refusal, status, code)
    finally:
        await _hang_up(taps)


async def _hang_up(taps: list[Tap]) -> None:
    await asyncio.gather(*(tap.hang_up() for tap in taps))


# Showing.


@contextmanager
def display() -> Iterator[Show]:
    """Give a Show: a bar for each phase where there are a terminal and rich, else nothing."""
    try:
        from rich.console import Console
        from rich.progress import Progress, TaskID
    except ImportError:
        yield nothing
        return
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield nothing
        return
    bars: dict[str, TaskID] = {}
    with Progress(console=console, transient=True) as progress:

        def show(phase: str, done: float, total: float) -> None:
            if phase not in bars:
                bars[phase] = progress.add_task(phase, total=total)
            progress.update(bars[phase], completed=done)

        yield show


# The command.


def run(args: argparse.Namespace) -> int:
    """Probe the server and return the exit status, as `--help` tells it."""
    target = Target(args.uri, dict(args.header), tuple(args.subprotocol), args.send, args.insecure)
    plan = Plan(args.dials, args.listen, args.idle, args.connections)
    try:
        if not args.json:
            print(f"{scrub_uri(target.uri)}: {plan}\n", flush=True)
        with display() as show:
            seen = asyncio.run(observe(target, plan, show))
    except Trouble as trouble:
        print(f"{program()} probe: {trouble}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    advice = advise(seen, target)
    print(_json(seen, advice) if args.json else f"{report(seen, target)}\n\n{advice.code()}")
    return 0


def _json(seen: Observation, advice: Advice) -> str:
    arguments = {a.name: {"value": a.value, "why": a.why} for a in advice.arguments}
    found = {"observation": seen.to_dict(), "arguments": arguments, "notes": advice.notes}
    return json.dumps(found | {"code": advice.code()}, indent=2)
