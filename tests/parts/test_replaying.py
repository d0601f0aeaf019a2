"""A replay goes by turns, on whichever connection, and what does not go by them fails the test."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.parts.test_recording import ask, connected, ending
from wspool._testing import replaying
from wspool.testing import Server, replay

Line = dict[str, Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "turns.jsonl"


def as_message(said: object) -> Line:
    """Return a text as it is, and anything else as its JSON."""
    return {"text": said if isinstance(said, str) else json.dumps(said)}


def turn(connection: int, client: list[Any], *server: Any, after: float = 0.5) -> Line:
    actions = [s if isinstance(s, dict) and "close" in s else as_message(s) for s in server]
    return {
        "connection": connection,
        "client": [as_message(message) for message in client],
        "server": [action | {"after": after} for action in actions],
    }


def refusal(connection: int, status: int) -> Line:
    return {"connection": connection, "refused": status}


def write(file: Path, *lines: Line, subprotocol: str | None = None) -> Path:
    header = {
        "format": "wspool recording",
        "version": 1,
        "recorded_at": "2026-11-28T12:00:00+00:00",
        "subprotocol": subprotocol,
        "turns": len(lines),
    }
    written = "".join(json.dumps(line) + "\n" for line in [header, *lines])
    file.write_text(written, encoding="utf-8")
    return file


async def ask_json(client: Any, *messages: object) -> Any:
    return json.loads(await ask(client, *(json.dumps(message) for message in messages)))


async def failing(server: Server, *messages: Any) -> None:
    """Say these on one connection, of which the last is a miss."""
    async with server, connected(server.uri) as client:
        for message in messages[:-1]:
            await ask(client, message)
        last = messages[-1]
        await (client.send_bytes(last) if isinstance(last, bytes) else client.send_str(last))
        code, _ = await ending(client)
        assert code == 1011, "the client is not left waiting"


# Which turn is played.


async def test_json_is_compared_as_values(file: Path) -> None:
    write(file, turn(1, []), turn(1, [{"a": 1, "b": [1, {}]}], "yes"), turn(1, ["1.50"], "and"))
    async with Server(replay(file)) as server, connected(server.uri) as client:
        assert await ask(client, '{"b":[1.0,{}],\n"a":1}') == "yes"
        assert await ask(client, "1.5") == "and"


@pytest.mark.parametrize(
    "other", ['{"a": 2}', '{"a": true}', '{"a": "1"}', '{"a": 1, "b": null}', "{}", "{a: 1}"]
)
async def test_another_value_is_another_message(file: Path, other: str) -> None:
    write(file, turn(1, []), turn(1, [{"a": 1}], "yes"))
    with pytest.raises(AssertionError, match="nearest is line 3"):
        await failing(Server(replay(file)), other)


async def test_text_and_bytes_are_never_the_same(file: Path) -> None:
    write(file, turn(1, []), turn(1, ["hello"], "yes"))
    with pytest.raises(AssertionError, match="68 65 6c 6c 6f"):
        await failing(Server(replay(file)), b"hello")


@pytest.mark.parametrize("connections", [1, 2, 5])
async def test_equal_questions_are_answered_in_the_order_of_the_file(
    file: Path, connections: int
) -> None:
    """On whichever connections they were asked, and are."""
    turns = [turn(n % 2, ["next"], f"{n}") for n in range(10)]
    write(file, turn(0, []), turn(1, []), *turns)
    async with Server(replay(file)) as server, aiohttp.ClientSession() as session:
        clients = [await session.ws_connect(server.uri) for _ in range(connections)]
        answers = [await ask(clients[n % connections], "next") for n in range(10)]
        for client in clients:
            await client.close()
    assert answers == [f"{n}" for n in range(10)]


async def test_a_turn_of_several_messages_is_answered_after_the_last(file: Path) -> None:
    write(
        file,
        turn(1, []),
        turn(1, ["a", "b", "c"], "abc"),
        turn(1, ["a", "b"], "ab"),
        turn(1, ["b"]),
    )
    async with Server(replay(file)) as server, connected(server.uri) as client:
        assert await ask(client, "a", "b") == "ab", "a turn that is complete goes first"
        assert await ask(client, "b", "a", "b", "c") == "abc"


async def test_an_answer_has_all_its_messages_and_the_close_in_order(file: Path) -> None:
    close = {"close": 4001, "reason": "enough"}
    write(file, turn(1, []), turn(1, ["a"], "1", "2", close))
    async with Server(replay(file)) as server, connected(server.uri) as client:
        assert [await ask(client, "a"), await client.receive_str()] == ["1", "2"]
        assert await ending(client) == (4001, "enough")


@pytest.mark.parametrize("pace", [0.0, 1.0, 0.1])
async def test_the_pace_is_a_share_of_the_recorded_one(
    file: Path, pace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, turn(1, [], "hi", after=3.0), turn(1, ["a"], "1", "2", after=2.0))
    slept: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            slept.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(replaying.asyncio, "sleep", sleep)
    async with Server(replay(file, pace=pace)) as server, connected(server.uri) as client:
        assert await client.receive_str() == "hi"
        assert [await ask(client, "a"), await client.receive_str()] == ["1", "2"]
    assert slept == ([3.0 * pace, 2.0 * pace, 2.0 * pace] if pace else [])


# Ids.


async def test_ignored_fields_may_have_any_value_and_are_echoed(file: Path) -> None:
    """At any depth; a number only in the field of its own name; what need not be changed is not."""
    write(
        file,
        turn(1, []),
        turn(
            1,
            [{"id": 7, "item": {"event_id": "e7"}, "text": "hello"}],
            {"id": 7, "count": 7, "of": "e7", "event_id": "e7"},
            {"item": {"id": "e7", "event_id": 7}},
            '{"id" :  8, "x": 1.0}',
            "7",
        ),
    )
    async with Server(replay(file, ignore=("id", "event_id"))) as server:
        async with connected(server.uri) as client:
            question = {"id": 1, "item": {"event_id": "mine"}, "text": "hello"}
            answer = await ask_json(client, question)
            assert answer == {"id": 1, "count": 7, "of": "e7", "event_id": "mine"}
            answer = json.loads(await client.receive_str())
            assert answer == {"item": {"id": "mine", "event_id": 7}}
            assert await client.receive_str() == '{"id" :  8, "x": 1.0}'
            assert await client.receive_str() == "7"


async def test_each_connection_has_ids_of_its_own(file: Path) -> None:
    turns = [turn(n, [{"id": 1, "n": n}], {"id": 1, "is": n}) for n in (1, 2)]
    write(file, turn(1, []), turn(2, []), *turns)
    async with Server(replay(file, ignore=["id"])) as server:
        async with connected(server.uri) as one, connected(server.uri) as other:
            assert await ask_json(one, {"id": "a", "n": 2}) == {"id": "a", "is": 2}
            assert await ask_json(other, {"id": "b", "n": 1}) == {"id": "b", "is": 1}


def pages(*names: str) -> list[Line]:
    """Return the turns of a server that names a page, is told what it is, and is asked for it."""
    lines: list[Line] = [turn(1, [])]
    for number, name in enumerate(names):
        page, ids = f"P{number}", [10 * number + n for n in range(3)]
        lines += [
            turn(1, [{"id": ids[0], "do": "new"}], {"id": ids[0], "page": page}),
            turn(1, [{"id": ids[1], "page": page, "go": name}], {"id": ids[1], "ok": True}),
            turn(1, [{"id": ids[2], "page": page, "do": "title"}], {"id": ids[2], "title": name}),
        ]
    return lines


async def test_what_the_server_has_named_stays_one_thing_though_the_order_is_another(
    file: Path,
) -> None:
    """The first page that it names is told to be the recorded third: it goes on as that one."""
    write(file, *pages("a", "b", "c"))
    async with Server(replay(file, ignore=("id", "page"))) as server:
        async with connected(server.uri) as client:
            live = [(await ask_json(client, {"id": n, "do": "new"}))["page"] for n in range(3)]
            assert len(set(live)) == 3
            for page, name in zip(live, ("c", "a", "b"), strict=True):
                assert (await ask_json(client, {"id": 5, "page": page, "go": name}))["ok"]
            for page, name in zip(live[::-1], ("b", "a", "c"), strict=True):
                answer = await ask_json(client, {"id": 6, "page": page, "do": "title"})
                assert answer == {"id": 6, "title": name}


async def test_what_is_named_later_is_another_thing_and_numbers_of_the_client_say_nothing(
    file: Path,
) -> None:
    """The first page turns out to be the recorded second, before the next one is named.

    Here the recorded client numbered by pages, and this one always says the same.
    """
    lines: list[Line] = [turn(1, [])]
    for n, name in enumerate(("a", "b")):
        page = {"id": n, "page": f"P{n}"}
        lines += [
            turn(1, [{"id": n, "do": "new"}], page),
            turn(1, [page | {"do": "enable"}], page),
            turn(1, [page | {"go": name}], page | {"ok": True}),
            turn(1, [page | {"do": "title"}], page | {"title": name}),
        ]
    write(file, *lines)
    async with Server(replay(file, ignore=("id", "page"))) as server:
        async with connected(server.uri) as client:

            async def do(**what: str) -> Any:
                return await ask_json(client, {"id": 7} | what)

            first = (await do(do="new"))["page"]
            assert await do(page=first, do="enable") == {"id": 7, "page": first}
            assert await do(page=first, go="b") == {"id": 7, "page": first, "ok": True}
            second = (await do(do="new"))["page"]
            assert second != first
            assert await do(page=second, do="enable") == {"id": 7, "page": second}
            assert await do(page=second, go="a") == {"id": 7, "page": second, "ok": True}
            for page, title in ((first, "b"), (second, "a")):
                answer = await do(page=page, do="title")
                assert answer == {"id": 7, "page": page, "title": title}


async def test_without_ids_to_ignore_the_same_is_a_miss(file: Path) -> None:
    write(file, *pages("a", "b"))
    with pytest.raises(AssertionError, match="nearest is line 4"):
        await failing(
            Server(replay(file, ignore=["id"])),
            '{"id": 1, "do": "new"}',
            '{"id": 2, "page": "P0", "go": "b"}',
        )


# Openings, and what every connection begins with.


async def test_handshakes_are_answered_in_their_order_and_further_ones_as_the_last(
    file: Path,
) -> None:
    """As the last that was accepted and stayed open."""
    bye = {"close": 4000, "reason": "full"}
    openings = [turn(2, [], "one"), refusal(3, 429), turn(4, [], "two"), turn(5, [], "three", bye)]
    write(file, refusal(1, 503), *openings)
    came: list[object] = []
    async with Server(replay(file)) as server:
        for _ in range(7):
            try:
                async with connected(server.uri) as client:
                    came.append(await client.receive_str())
            except aiohttp.WSServerHandshakeError as refused:
                came.append(refused.status)
    assert came == [503, "one", 429, "two", "three", "two", "two"]


async def test_a_login_is_played_to_as_many_connections_as_there_are(file: Path) -> None:
    """Of several steps, with ids, and on a connection that does nothing else."""
    steps = [({"id": 1, "do": "hello"}, {"id": 1, "is": "who?"}), ({"do": "login"}, {"is": "ok"})]
    login = [turn(n, [said], answer) for n in (1, 2) for said, answer in steps]
    write(file, turn(1, []), turn(2, []), *login, turn(2, ["question"], "answer"))
    for size in (1, 2, 7):
        async with Server(replay(file, ignore=["id"])) as server:
            for number in range(size):
                async with connected(server.uri) as client:
                    answer = await ask_json(client, {"id": 100 + number, "do": "hello"})
                    assert answer == {"id": 100 + number, "is": "who?"}
                    assert await ask_json(client, {"do": "login"}) == {"is": "ok"}
                    if number == size - 1:
                        assert await ask(client, "question") == "answer"


async def test_a_login_in_the_middle_of_a_connection_is_a_miss(file: Path) -> None:
    login = [turn(n, ["login"], "ok") for n in (1, 2)]
    write(file, turn(1, []), turn(2, []), *login, turn(2, ["question"], "answer"))
    with pytest.raises(AssertionError, match="asks once more"):
        await failing(Server(replay(file)), "login", "login", "login")


async def test_a_login_that_nobody_makes_is_missing(file: Path) -> None:
    write(file, turn(1, []), turn(1, ["login"], "ok"), turn(1, ["question"], "answer"))
    with pytest.raises(AssertionError, match="line 3: login"):
        await say(Server(replay(file)), "question")


async def test_a_question_that_is_all_of_its_connection_is_no_login(file: Path) -> None:
    write(file, turn(1, []), turn(1, ["question"], "answer"))
    server = Server(replay(file))
    with pytest.raises(AssertionError, match="line 3, and was played already:\nquestion"):
        await say(server, "question", "question")


async def say(server: Server, *messages: str) -> None:
    """Say each on a connection of its own."""
    async with server:
        for message in messages:
            async with connected(server.uri) as client:
                await client.send_str(message)
                await client.receive()


async def test_a_client_that_does_not_offer_the_recorded_subprotocol_fails_the_test(
    file: Path,
) -> None:
    write(file, turn(1, []), subprotocol="speech")
    async with Server(replay(file)) as server:
        async with connected(server.uri, protocols=["other", "speech"]) as client:
            assert client.protocol == "speech"
    with pytest.raises(AssertionError, match="the subprotocol 'speech', and the client does not"):
        await dial_without_it(Server(replay(file)))


async def dial_without_it(server: Server) -> None:
    async with server:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            async with connected(server.uri):
                pass


# What fails the test.


async def test_a_miss_shows_how_the_message_differs_from_the_nearest_turn(file: Path) -> None:
    many = [turn(1, [{"id": n, "method": f"m{n}", "params": list(range(n))}]) for n in range(50)]
    write(file, turn(1, []), *many)
    mutated = '{"id": 0, "method": "m30", "params": [0, 1, 2, 3]}'
    with pytest.raises(AssertionError) as failed:
        await failing(Server(replay(file, ignore=["id"])), mutated)
    text = str(failed.value)
    assert f"--- {file}, line 7\n+++ connection 1\n" in text
    assert '-  "method": "m4",\n+  "method": "m30",\n' in text
    assert '"id"' not in text, "what may have any value is no difference"
    assert failed.value.__notes__ == ["This was in the server's handler of connection 1."]


async def test_a_difference_in_bytes_and_in_long_lines_can_be_seen(file: Path) -> None:
    long = "x" * 10_000
    write(file, turn(1, []), turn(1, [long + "a" + long], "yes"))
    with pytest.raises(AssertionError) as failed:
        await failing(Server(replay(file)), long + "b" + long)
    assert f"+b{'x' * 99}" in str(failed.value)
    assert len(str(failed.value)) < 2000
    binary = {"client": [{"base64": "AAEC"}], "server": [], "connection": 1}
    write(file, turn(1, []), binary)
    with pytest.raises(AssertionError, match=r"-000000  00 01 02\n\+000000  00 01 03"):
        await failing(Server(replay(file)), b"\x00\x01\x03")


async def test_a_miss_in_the_middle_of_a_turn_shows_the_turn(file: Path) -> None:
    write(file, turn(1, []), turn(1, ["a", "b"], "yes"))
    with pytest.raises(AssertionError, match=r" a\n \(message 2\)\n-b\n\+c"):
        await failing_after(Server(replay(file)), "a", "c")


async def failing_after(server: Server, *messages: str) -> None:
    async with server, connected(server.uri) as client:
        for message in messages:
            await client.send_str(message)
        assert (await ending(client))[0] == 1011


async def test_when_all_is_played_any_message_is_a_miss(file: Path) -> None:
    write(file, turn(1, []), turn(1, ["a"], "yes"))
    with pytest.raises(AssertionError, match="no turn that was not played already; connection 1 s"):
        await failing(Server(replay(file)), "a", "b")


async def test_turns_that_are_not_used_fail_the_test_unless_that_is_allowed(file: Path) -> None:
    """At the end of a block that has ended well; the openings of connections are no matter."""
    said = [turn(1, [f"question {n}"], "yes") for n in range(8)]
    write(file, turn(1, [], "hi"), turn(2, [], "hi"), *said, refusal(3, 503))
    with pytest.raises(AssertionError) as failed:
        await say(Server(replay(file)), "question 5")
    first, *shown = str(failed.value).splitlines()
    assert first == f"{file} has turns that were not played, 8 in all:"
    assert shown == [f"  line {n + 4}: question {n}" for n in range(5)]
    await say(Server(replay(file, strict=False)), "question 5")
    with pytest.raises(KeyError):
        await fall_over(Server(replay(file)))


async def fall_over(server: Server) -> None:
    async with server:
        raise KeyError("the test's own")


async def test_a_refusal_that_no_handshake_meets_was_not_used(file: Path) -> None:
    write(file, turn(1, []), refusal(2, 503))
    with pytest.raises(AssertionError, match="line 3: a refusal"):
        await say(Server(replay(file)))


async def test_a_client_that_waits_in_the_middle_of_a_turn_is_told_of_it(file: Path) -> None:
    """The test's own time limit is what fails it; a note says why nothing came."""
    write(file, turn(1, []), turn(1, ["a", "b"], "yes"))
    with pytest.raises(TimeoutError) as failed:
        await wait_in_vain(Server(replay(file)))
    [note] = failed.value.__notes__
    assert note.startswith("Connection 1 has begun a turn")


async def wait_in_vain(server: Server) -> None:
    async with server, connected(server.uri) as client:
        await client.send_str("a")
        await client.receive(timeout=0.1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ignore": "id"}, TypeError),
        ({"pace": -1.0}, ValueError),
        ({"pace": float("nan")}, ValueError),
    ],
)
def test_wrong_options_are_errors_at_once(
    file: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"^{next(iter(options))} is"):
        replay(write(file), **options)


# Bad files.

HEADER = (
    '{"format": "wspool recording", "version": 1, "recorded_at": "…", "subprotocol": null, '
    '"turns": %s}\n'
)
OPENING = '{"connection": 1, "client": [], "server": []}\n'


def changed(before: str, after: str) -> str:
    return OPENING.replace(before, after, 1)


def with_line(line: str) -> str:
    return HEADER % 2 + OPENING + line + "\n"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "the file is empty"),
        ("hello\n", 1, "this is no recording"),
        ("[1]\n", 1, "this is no recording"),
        ('{"format": "har", "version": 1}\n', 1, "this is no recording"),
        ("\0\xff\n", 1, "this is no recording"),
        (HEADER.replace(": 1,", ": 2,") % 0, 1, "of version 2, and this wspool reads version 1"),
        (HEADER.replace(": 1,", ': "1",') % 0, 1, "'version' has to be of type int"),
        (HEADER % '"2"', 1, """'turns' has to be of type int, and it is "2\""""),
        (HEADER % 0 + "\n", 2, "no JSON"),
        (HEADER % 3 + OPENING, 2, "ends after 1 turns, and line 1 says that there are 3"),
        ((HEADER % 1 + OPENING)[:-9], 2, "no JSON"),
        (with_line("[" * 100_000), 3, "no JSON"),
        (with_line("7"), 3, "there has to be an object, and it is 7"),
        (with_line("{}"), 3, "the field 'connection' is missing"),
        (with_line('{"connection": true}'), 3, "'connection' has to be of type int"),
        (with_line('{"connection": 1}'), 3, "the field 'client' is missing"),
        (with_line(OPENING), 3, "connection 1 is open, and the client says nothing here"),
        (with_line(changed("[]", '[{"text": "a"}]').replace("1", "2")), 3, "no opening"),
        (with_line(changed("}", ', "sever": []}').replace("1", "2")), 3, "name 'sever'"),
        (with_line(changed("[]", "{}")), 3, "'client' has to be of type list"),
        (with_line(changed("[]", "[1]")), 3, "item 1 of 'client': there has to"),
        (with_line(changed("[]", "[{}]")), 3, "neither a 'text' nor a 'base64'"),
        (with_line(changed("[]", '[{"text": 1}]')), 3, "'text' has to be of type str"),
        (with_line(changed("[]", '[{"text": "\\ud800"}]')), 3, "half of a surrogate pair"),
        (with_line(changed("[]", '[{"base64": "a"}]')), 3, "it is no base64"),
        (with_line(changed("[]", '[{"base64": "ä"}]')), 3, "it is no base64"),
        (with_line(changed("[]}", '[{"text": "a"}]}')), 3, "'after' is missing"),
        (with_line(changed("[]}", '[{"text": "a", "after": -1}]}')), 3, "'after' is -1"),
        (with_line(changed("[]}", '[{"text": "a", "after": NaN}]}')), 3, "'after' is nan"),
        (with_line(changed("[]}", '[{"close": 7, "reason": "", "after": 0}]}')), 3, "7 is no"),
        (
            with_line(
                changed(
                    "[]}",
                    '[{"close": 1000, "reason": "", "after": 0}, {"text": "a", "after": 0}]}',
                )
            ),
            3,
            "after its close the server has done something else",
        ),
        (with_line('{"connection": 2, "refused": 101}'), 3, "101 is no HTTP status that refuses"),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_said_in_one_line_with_file_and_line(
    file: Path, text: str, line: int, what: str
) -> None:
    file.write_bytes(text.encode("latin-1") if "\xff" in text else text.encode())
    with pytest.raises(ValueError) as failed:
        replay(file)
    assert str(failed.value).startswith(f"{file}, line {line}")
    assert what in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_file_that_is_missing_is_said_to_be_made_by_recording(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make it with record") as failed:
        replay(file)
    assert failed.value.filename == str(file)
