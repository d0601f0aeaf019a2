"""The command line, `wspool` or `python -m wspool`: a subcommand for each thing to be done."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from wspool import __version__
from wspool._cli import demo, probe, recording, top
from wspool._cli.shared import header, program
from wspool._pool.checks import check_uri


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status; wrong arguments raise SystemExit(2)."""
    parser = argparse.ArgumentParser(
        prog=program(), description="A WebSocket client connection pool on aiohttp."
    )
    parser.add_argument("--version", action="version", version=f"wspool {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_demo(commands)
    _add_top(commands)
    _add_probe(commands)
    _add_record(commands)
    args = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except* BrokenPipeError:  # `| head`: what is still buffered must not fail again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="many borrowers share few connections while the server drops some",
        description="Many borrowers share few connections to an echo server, which drops some of "
        "them on purpose. Watch the states, then read the summary. Exit status: 0; 1 if a request "
        "was lost or answered wrongly; 2 for wrong arguments or a server that cannot be reached; "
        "130 after Ctrl-C, which ends the demo with the summary so far.",
    )
    parser.add_argument(
        "--uri",
        help="ws:// or wss:// URI of a server to use instead of the embedded one; it must be an "
        "echo server, and no drops are injected there",
    )
    count, seconds = _number(int, 1), _number(float, 0.1)
    parser.add_argument("--connections", type=count, default=5, help="at most (default: 5)")
    parser.add_argument("--borrowers", type=count, default=50, help="(default: 50)")
    parser.add_argument("--seconds", type=seconds, default=8.0, help="(default: 8)")
    parser.add_argument(
        "--drop-rate",
        type=_number(float, 0, 1),
        default=0.005,
        help="share of the requests at which the embedded server drops the connection, evenly "
        "spread (default: 0.005)",
    )
    parser.set_defaults(run=demo.run)


def _add_top(commands: Any) -> None:
    parser = commands.add_parser(
        "top",
        help="show a pool of another process, live in the terminal",
        description="Show a pool that serves its snapshot by HTTP, live: its states, who waits, "
        "each connection, and the last that have gone. Where there is no terminal, one line for "
        "each time it is read. The live view needs rich: pip install 'wspool[rich]'. There, q "
        "quits, and n and p, or the arrows, show the next pool of the page and the previous one. "
        "Exit status: 0; 2 for wrong arguments or an address without a snapshot, but once there "
        "was one, live, it tries again and says so; 130 after Ctrl-C.",
    )
    parser.add_argument(
        "url",
        metavar="URL",
        help="address of the snapshot, or of the debug page; without a scheme it is http://, and "
        "unless the path ends in /snapshot, that is appended; ?pool=NAME chooses one of several "
        "pools",
    )
    parser.add_argument(
        "--interval",
        type=_number(float, 0.1),
        default=1.0,
        help="seconds between two looks (default: 1)",
    )
    parser.add_argument("--once", action="store_true", help="show one picture, and end")
    parser.add_argument(
        "--json", action="store_true", help="with --once: print the snapshot's JSON, and no more"
    )
    _add_header(parser, "the application's own authentication")
    parser.set_defaults(run=top.run)


def _add_probe(commands: Any) -> None:
    parser = commands.add_parser(
        "probe",
        help="find out about a server, and what to set for it",
        description="Dial a WebSocket server a few times, one after the other. Tell how long the "
        "parts of a handshake take, and whether the server greets, pushes, pings, answers pings. "
        "Then print the call that makes a pool for it, each argument with the observation behind "
        "it. Secrets are not printed: the call reads headers, and a URI with a query or user-info, "
        "from the environment. Progress is shown in a terminal that has rich: pip install "
        "'wspool[rich]'. Exit status: 0; 2 for wrong arguments, or where a connection is refused; "
        "130 after Ctrl-C.",
    )
    parser.add_argument("uri", metavar="URI", type=_uri, help="ws:// or wss:// URI of the server")
    seconds = _number(float, 0.1)
    parser.add_argument(
        "--dials", type=_number(int, 2, 100), default=5, help="for the handshake (default: 5)"
    )
    parser.add_argument(
        "--listen",
        metavar="SECONDS",
        type=seconds,
        default=2.0,
        help="how long to wait for what the server sends unasked (default: 2)",
    )
    parser.add_argument(
        "--idle",
        metavar="SECONDS",
        type=seconds,
        help="wait for so long for an idle connection to be closed; if it is, a little longer to "
        "see whether pings prevent it, and messages, if there is a --send",
    )
    parser.add_argument(
        "--connections",
        metavar="N",
        type=_number(int, 1, 10_000),
        default=0,
        help="open up to so many at once, until the server refuses",
    )
    parser.add_argument(
        "--send",
        metavar="TEXT",
        help="send this message, several times, and find out how long the answer takes on fresh "
        "and on reused connections, of how many messages it is, and how the pool can tell its end; "
        "where a connection needs this message, the call that is printed contains it",
    )
    _add_handshake(parser, "offer")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, and no more")
    parser.set_defaults(run=probe.run)


def _add_record(commands: Any) -> None:
    parser = commands.add_parser(
        "record",
        help="write down what a server says, to be played in tests",
        description="Stand in front of a WebSocket server, and write down what it and its clients "
        "say: wspool.testing.replay plays it. Point a client to the address that is printed; "
        "Ctrl-C ends it. With --send there is a client already. Headers and the query are not "
        "written. Exit status: 0; 2 for wrong arguments, or where the server cannot be reached; "
        "130 after Ctrl-C while it sends.",
    )
    parser.add_argument("uri", metavar="URI", type=_uri, help="ws:// or wss:// URI of the server")
    parser.add_argument("file", metavar="FILE", help="what is written; it is replaced")
    parser.add_argument(
        "--send",
        metavar="TEXT",
        action="append",
        default=[],
        help="send this message, and wait for the answer; may be repeated",
    )
    parser.add_argument(
        "--quiet",
        metavar="SECONDS",
        type=_number(float, 0.1),
        default=1.0,
        help="with --send: an answer is complete after so much silence (default: 1)",
    )
    _add_handshake(parser, "with --send: offer")
    parser.set_defaults(run=recording.run)


def _add_handshake(parser: argparse.ArgumentParser, offer: str) -> None:
    parser.add_argument(
        "--subprotocol",
        metavar="NAME",
        action="append",
        default=[],
        help=f"{offer} a subprotocol; may be repeated",
    )
    _add_header(parser, "a token")
    parser.add_argument("--insecure", action="store_true", help="do not verify the certificate")


def _add_header(parser: argparse.ArgumentParser, example: str) -> None:
    parser.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        type=header,
        metavar="'NAME: VALUE'",
        help=f"send a header, such as {example}; may be repeated",
    )


def _uri(text: str) -> str:
    try:
        return str(check_uri(text))
    except ValueError as error:  # argparse would quote the text
        raise argparse.ArgumentTypeError(str(error)) from None


def _number(kind: type, least: float, most: float = math.inf) -> Callable[[str], Any]:
    """Return a type for argparse: a finite number within bounds."""
    what = f"a {'whole ' if kind is int else ''}number of at least {least}"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and value < math.inf):
            up_to = f" and at most {most}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}{up_to}")
        return value

    return parse
