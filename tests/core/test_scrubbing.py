"""What is known of a dial's secrets is found in each form in which a server may write it."""

from __future__ import annotations

import base64
import html
import re
import time
import traceback
import warnings
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from wspool._connection.scrubbing import (
    SHORTEST_PART,
    SHORTEST_PIECE,
    SHORTEST_SECRET,
    given_by,
    scrub_error,
    scrub_text,
    secrets_in,
    secrets_of,
    shown_subprotocol,
)

SHORT = "k3y+ü/9z"
"""Too short for a piece of it to be told from a word: it has to be found as a whole."""

AWKWARD = "<pä'ss&w\"örd/+>"
"""Has a character for each way of escaping."""


def based(text: str, encoding: str = "utf-8") -> str:
    return base64.b64encode(text.encode(encoding)).decode()


def in_header(value: str) -> tuple[str, ...]:
    return secrets_of("ws://host/", {"Authorization": value})


def lower_escapes(text: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda escape: escape[0].lower(), text)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(str, id="as it is"),
        pytest.param(quote, id="percent-encoded"),
        pytest.param(lambda text: quote(text, safe=""), id="percent-encoded, slashes too"),
        pytest.param(lambda text: lower_escapes(quote(text)), id="percent-encoded in lower case"),
        pytest.param(based, id="base64"),
        pytest.param(lambda text: based(text).rstrip("="), id="base64 without padding"),
        pytest.param(lambda text: base64.urlsafe_b64encode(text.encode()).decode(), id="base64url"),
        pytest.param(repr, id="repr"),
        pytest.param(lambda text: repr(text.encode()), id="repr of bytes"),
        pytest.param(html.escape, id="HTML"),
    ],
)
@pytest.mark.parametrize("secret", [SHORT, AWKWARD])
def test_a_secret_is_found_in_each_form(form: Any, secret: str) -> None:
    quoted = form(secret).strip("b'\"=")
    assert scrub_text(f"key ({quoted}) is not valid", in_header(secret)).count(quoted) == 0


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(f"Token {SHORT}", id="after a scheme"),
        pytest.param(f"Token id:{SHORT}", id="after a colon"),
        pytest.param(f"Token key='{SHORT}'", id="in quotes"),
        pytest.param(f"a=1; session={SHORT}", id="a cookie"),
        pytest.param(f"Basic {based('user:' + SHORT)}", id="Basic"),
        pytest.param(f"basic  {based('user:' + SHORT)}", id="Basic with two blanks"),
        pytest.param(f"Basic {based('user:' + SHORT, 'latin-1')}", id="Basic in Latin-1"),
        pytest.param(f"Basic {based('user:' + SHORT).rstrip('=')}", id="Basic without padding"),
        pytest.param(
            f"Basic {base64.urlsafe_b64encode(f'?>?>:{SHORT}'.encode()).decode()}",
            id="Basic in base64url",
        ),
    ],
)
def test_a_part_of_a_value_is_found(value: str) -> None:
    assert SHORT not in scrub_text(f"key {SHORT} is not valid", in_header(value))


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("eyJhbGciOiJIUzI1NiJ9.{}.c2lnbmF0dXJl", id="claims"),
        pytest.param("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{}", id="signature"),
        pytest.param("eyJhbGciOiJub25lIn0.{}.", id="unsigned"),
        pytest.param("eyJhbGciOiJkaXIifQ..aXYxMjM0NTY3.{}.dGFnMTIz", id="encrypted"),
        pytest.param("ewogICJhbGciOiJIUzI1NiJ9.{}.c2ln", id="a header with white space"),
    ],
)
@pytest.mark.parametrize("where", ["header", "query", "protocol"])
def test_each_part_of_a_token_is_found(token: str, where: str) -> None:
    part = "dG9rZW4x"  # as short as a part may be
    token = token.format(part)
    uri = f"ws://host/?token={token}" if where == "query" else "ws://host/"
    headers = {"Authorization": f"Bearer {token}"} if where == "header" else {}
    given = given_by(uri, {"protocols": [f"bearer.{token}"]} if where == "protocol" else {})
    assert part not in scrub_text(f"bad part {part}", secrets_of(uri, headers, given))


def test_credentials_are_found_as_they_are_sent() -> None:
    """aiohttp encodes user and password in Latin-1, others in UTF-8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer releases
        auth = aiohttp.BasicAuth("user", "pässwörd")
    for uri, options in (
        ("ws://host/", {"auth": auth}),
        ("ws://host/", {"proxy_auth": auth}),
        ("ws://host/", {"proxy": f"http://user:{quote('pässwörd')}@proxy/"}),
        (f"ws://user:{quote('pässwörd')}@host/", {}),
    ):
        secrets = secrets_of(uri, {}, given_by(uri, options))
        for encoding in ("utf-8", "latin-1"):
            sent = based("user:pässwörd", encoding)
            assert sent[4:] not in scrub_text(f"not valid: {sent}", secrets), (uri, encoding)


def test_a_fragment_is_found() -> None:
    secrets = secrets_of(f"ws://host/#{quote(SHORT)}", {})
    assert SHORT not in scrub_text(SHORT, secrets)
    assert quote(SHORT) not in scrub_text(quote(SHORT), secrets)


def test_the_beginning_and_the_end_of_a_secret_are_found_from_a_length_on() -> None:
    secret = "abcdefghijklmnopqrstuvwxyz"
    for length in range(SHORTEST_PIECE, len(secret)):
        assert scrub_text(f"not {secret[:length]}", in_header(secret)) == "not …"
        assert scrub_text(f"{secret[-length:]}, no", in_header(secret)) == "…, no"
    shorter = secret[: SHORTEST_PIECE - 1]
    assert scrub_text(shorter, in_header(secret)) == shorter


def test_a_short_value_or_part_protects_nothing() -> None:
    assert scrub_text("v13", in_header("v13")) == "v13"
    assert scrub_text("v13b", in_header("v13b")) == "…"
    assert (len("v13"), len("v13b")) == (SHORTEST_SECRET - 1, SHORTEST_SECRET)
    part = "x" * (SHORTEST_PART - 1)
    assert scrub_text(part, in_header(f"a, {part}")) == part
    assert scrub_text(f"{part}x", in_header(f"a, {part}x")) == "…"


def test_a_thousand_closes_of_one_server_find_the_secrets_once() -> None:
    """A long cookie takes 10 ms; a server that restarts closes all connections in one moment."""
    headers = {"Cookie": "; ".join(f"name{n}=value-{n}-abcdefghijklm" for n in range(150))}
    began = time.process_time()
    secrets_of("ws://host/", headers)
    once = time.process_time() - began
    began = time.process_time()
    for _ in range(1000):
        secrets_of("ws://host/", dict(headers))
    assert time.process_time() - began < 20 * once


# In errors.


def refused(uri: str = "ws://host/", **headers: str) -> aiohttp.WSServerHandshakeError:
    sent = CIMultiDictProxy(CIMultiDict({"Host": "host", "Upgrade": "websocket", **headers}))
    return aiohttp.WSServerHandshakeError(
        aiohttp.RequestInfo(URL(uri), "GET", sent, URL(uri)), (), status=401, message="Unauthorized"
    )


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__)


def test_what_was_sent_is_a_secret_whoever_added_it() -> None:
    """A middleware of aiohttp's, a .netrc, the environment's proxy."""
    secrets = secrets_in(refused(X_Signed=SHORT))
    assert scrub_text(f"{SHORT} for websocket at host", secrets) == "… for websocket at host"


def test_a_request_of_a_callable_has_secrets_of_its_own() -> None:
    """As where a token is fetched: the pool was never given the client's secret."""
    error = ValueError("cannot log in")
    error.__cause__ = refused(f"https://login.example/?client_secret={SHORT}", X_Client=SHORT)
    clean = scrub_error(error, secrets_in(error))
    assert SHORT in shown(error)
    assert SHORT not in shown(clean)
    assert quote(SHORT) not in shown(clean)


@pytest.mark.parametrize("by", ["itself", "cause"])
def test_a_secret_in_a_group_is_out_too(by: str) -> None:
    inner: Exception = KeyError(SHORT)
    if by == "cause":
        inner = ValueError("wrong")
        inner.__cause__ = KeyError(SHORT)
    group = ExceptionGroup("two tasks failed", [ExceptionGroup("one", [inner])])
    assert SHORT in shown(group)
    assert SHORT not in shown(scrub_error(group, [SHORT]))


def test_an_error_that_cannot_be_shown_is_named() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise LookupError(SHORT)

    clean = scrub_error(OddError(), [SHORT])
    assert str(clean) == "OddError"


def test_a_response_error_of_another_class_is_built_as_aiohttps() -> None:
    class LoginError(aiohttp.ClientResponseError):
        def __init__(self, text: str) -> None:
            info = refused(X_Key=SHORT).request_info
            super().__init__(info, (), status=401, message=text)

    clean = scrub_error(LoginError(f"not {SHORT}"), [SHORT])
    assert isinstance(clean, aiohttp.ClientResponseError)
    assert (clean.status, clean.message) == (401, "not …")
    assert SHORT not in shown(clean)


def test_frames_of_a_package_with_a_similar_name_are_a_users() -> None:
    """aiohttp_retry is none of ours; yarl, which holds URIs, is."""

    def failed_in(*modules: str) -> BaseException:
        scope: dict[str, Any] = {}
        call = "raise ValueError('no')"
        for module in reversed(modules):
            scope = {"__name__": module, "inner": scope.get("f")}
            exec(f"def f():\n    key = {SHORT!r}\n    {call}", scope)
            call = "inner()"
        try:
            scope["f"]()
        except ValueError as error:
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
            return scrub_error(error, [SHORT])
        raise AssertionError

    def modules(error: BaseException) -> list[str]:
        return [frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)]

    assert modules(failed_in("wspool._pool.dialing", "wspool_app.login")) == ["wspool_app.login"]
    assert modules(failed_in("aiohttp_retry.client")) == ["aiohttp_retry.client"]
    assert modules(failed_in("wspool._pool.dialing", "aiohttp.client", "yarl._url")) == []


# A subprotocol.


@pytest.mark.parametrize(
    "protocol",
    ["graphql-transport-ws", "v10.stomp", "ocpp2.0.1", "wamp.2.msgpack", "mqtt", "realtime", None],
)
def test_the_name_of_a_subprotocol_is_shown(protocol: str | None) -> None:
    assert shown_subprotocol(protocol) == protocol


@pytest.mark.parametrize(
    "protocol", ["openai-insecure-api-key.sk-proj1a2b3c4d5e", "abcdefghijklmnopqrstuvwx"]
)
def test_a_subprotocol_that_looks_like_a_key_is_not_shown(protocol: str) -> None:
    assert shown_subprotocol(protocol) == "…"
