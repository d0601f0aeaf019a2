"""What the errors say and are, and what is taken out of those that are passed on."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

import wspool
from wspool import (
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionDrainTimeoutError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    IllegalTransitionError,
    StreamOverflowError,
    WebsocketError,
)
from wspool._connection.scrubbing import scrub_error, scrub_uri, secrets_of

SECRET = "hunter2"

ERRORS: list[type[WebsocketError]] = [
    WebsocketError,
    ConnectionPoolExhaustedError,
    ConnectionPoolTimeoutError,
    ConnectionPoolUnavailableError,
    ConnectionUnavailableError,
    ConnectionClosedError,
    ConnectionBusyError,
    ConnectionDrainTimeoutError,
    StreamOverflowError,
    IllegalTransitionError,
]


# The classes.


def test_every_error_of_the_package_is_in_this_list() -> None:
    public = [getattr(wspool, name) for name in wspool.__all__]
    errors = {e for e in public if isinstance(e, type) and issubclass(e, BaseException)}
    assert errors == set(ERRORS)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("message", [None, ""])
def test_no_message_means_the_default_one(error: type[WebsocketError], message: str | None) -> None:
    assert error.default_message
    assert error(message).message == error.default_message
    assert str(error(message)) == error.default_message
    assert str(error()) == error.default_message


@pytest.mark.parametrize("error", ERRORS)
def test_a_message_is_kept_and_shown(error: type[WebsocketError]) -> None:
    assert error("it broke").message == "it broke"
    assert str(error("it broke")) == "it broke"
    assert error("it broke").args == ("it broke",)


def test_each_error_has_a_default_message_of_its_own() -> None:
    assert len({error.default_message for error in ERRORS}) == len(ERRORS)


def test_a_subclass_needs_only_its_default_message() -> None:
    class OurError(ConnectionClosedError):
        default_message = "ours"

    assert str(OurError(code=1001)) == "ours"


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_is_a_websocket_error_and_a_runtime_error(error: type[WebsocketError]) -> None:
    assert issubclass(error, WebsocketError)
    assert issubclass(error, RuntimeError)


def test_only_the_timeout_of_a_wait_is_an_exhausted_pool_and_a_timeout_error() -> None:
    assert issubclass(ConnectionPoolTimeoutError, ConnectionPoolExhaustedError)
    others = [error for error in ERRORS if error is not ConnectionPoolTimeoutError]
    assert issubclass(ConnectionPoolTimeoutError, TimeoutError)
    assert not any(issubclass(error, OSError) for error in others)


def test_no_error_but_that_is_a_kind_of_another() -> None:
    others = [e for e in ERRORS if e not in (WebsocketError, ConnectionPoolTimeoutError)]
    assert [error.__bases__ for error in others] == [(WebsocketError,)] * len(others)


def test_a_failed_dial_tells_the_status_the_attempts_and_the_wait() -> None:
    error = ConnectionUnavailableError("no", status=503, attempts=3, retry_after=2.5)
    assert (error.status, error.attempts, error.retry_after) == (503, 3, 2.5)
    error = ConnectionUnavailableError()
    assert (error.status, error.attempts, error.retry_after) == (None, 0, None)


def test_a_closed_connection_tells_code_and_reason() -> None:
    error = ConnectionClosedError("gone", code=1001, reason="bye")
    assert (error.code, error.reason) == (1001, "bye")
    error = ConnectionClosedError()
    assert (error.code, error.reason) == (None, "")


@pytest.mark.parametrize(
    "error",
    [
        *(error("it broke") for error in ERRORS),
        *(error() for error in ERRORS),
        ConnectionUnavailableError("no", status=503, attempts=3, retry_after=2.5),
        ConnectionClosedError("gone", code=1001, reason="bye"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("way", ["copy", "deepcopy", *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_an_error_that_is_pickled_or_copied_is_the_same(error: Any, way: str | int) -> None:
    if isinstance(way, int):
        twin = pickle.loads(pickle.dumps(error, protocol=way))
    else:
        twin = getattr(copy, way)(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.args == error.args
    assert vars(twin) == vars(error)


# Scrubbing.


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("ws://host/path", "ws://host/path"),
        ("wss://host:8443/a/b", "wss://host:8443/a/b"),
        ("ws://host", "ws://host"),
        (f"ws://user:{SECRET}@host/path", "ws://host/path"),
        (f"ws://{SECRET}@host/path", "ws://host/path"),
        (f"ws://:{SECRET}@host/path", "ws://host/path"),
        (f"ws://host/path?token={SECRET}", "ws://host/path?…"),
        (f"ws://host/path?{SECRET}", "ws://host/path?…"),
        (f"ws://host/path#{SECRET}", "ws://host/path"),
        (f"ws://u:{SECRET}@host:1/p?a={SECRET}&b={SECRET}#{SECRET}", "ws://host:1/p?…"),
        (URL(f"ws://u:{SECRET}@host/p?a={SECRET}"), "ws://host/p?…"),
    ],
)
def test_a_uri_is_shown_without_user_info_query_values_and_fragment(
    uri: object, shown: str
) -> None:
    assert scrub_uri(uri) == shown


@pytest.mark.parametrize(
    "uri",
    [
        f"ws://user:{SECRET}@[::1/",
        f"ws://user:{SECRET}@host:99999/",
        f"user:{SECRET}@host",
        f"//user:{SECRET}@host/",
        f"?token={SECRET}",
        f"/path?token={SECRET}",
        f"#{SECRET}",
    ],
)
def test_what_is_no_whole_uri_shows_no_secret_either(uri: str) -> None:
    assert SECRET not in scrub_uri(uri)


def test_the_secrets_of_a_dial_are_its_header_user_info_and_query_values() -> None:
    secrets = secrets_of(
        "ws://an-user:pass%20word@host/p?token=long%2Btoken", {"Key": "a-key", "Empty": ""}
    )
    assert {"a-key", "an-user", "pass word", "pass%20word", "long+token"} <= set(secrets)
    assert "" not in secrets
    assert "host" not in secrets


def test_a_uri_that_cannot_be_parsed_is_a_secret_as_a_whole() -> None:
    assert "ws://user:pw@[::1/" in secrets_of("ws://user:pw@[::1/", {})


def request_info(url: str) -> aiohttp.RequestInfo:
    headers = CIMultiDictProxy(CIMultiDict({"Authorization": f"Bearer {SECRET}"}))
    return aiohttp.RequestInfo(URL(url), "GET", headers, URL(url))


@pytest.mark.parametrize("kind", [aiohttp.ClientResponseError, aiohttp.WSServerHandshakeError])
def test_a_refused_handshake_keeps_its_class_status_and_message_alone(
    kind: type[aiohttp.ClientResponseError],
) -> None:
    info = request_info(f"ws://user:{SECRET}@host/path?token={SECRET}")
    error = kind(
        info, (), status=401, message="Unauthorized", headers=CIMultiDict({"Set-Cookie": SECRET})
    )
    assert SECRET in f"{error} {error!r}"
    clean = scrub_error(error, [])
    assert type(clean) is kind
    assert isinstance(clean, aiohttp.ClientResponseError)
    assert (clean.status, clean.message) == (401, "Unauthorized")
    assert "host/path" in str(clean)
    assert SECRET not in f"{clean} {clean!r} {vars(clean)}"


def test_the_message_of_a_refused_handshake_may_be_a_secret_too() -> None:
    """A server's reason phrase may quote the token that it refuses."""
    error = aiohttp.WSServerHandshakeError(
        request_info("ws://host/"), (), status=401, message=f"bad token {SECRET}"
    )
    clean = scrub_error(error, [SECRET])
    assert SECRET not in f"{clean} {clean!r} {vars(clean)}"


def test_an_invalid_url_is_shown_scrubbed() -> None:
    clean = scrub_error(aiohttp.InvalidURL(f"ws://u:{SECRET}@host/?t={SECRET}", "odd"), [])
    assert type(clean) is aiohttp.InvalidURL
    assert SECRET not in f"{clean} {clean!r}"
    assert "odd" in str(clean)


def test_an_error_without_a_secret_is_passed_on_as_it_is() -> None:
    error = OSError(111, "refused")
    error.__cause__ = ValueError("why")
    assert scrub_error(error, [SECRET]) is error


def test_an_error_that_shows_a_secret_is_replaced_by_its_text_without() -> None:
    clean = scrub_error(ValueError(f"cannot use {SECRET} here"), ["other", SECRET])
    assert str(clean) == "ValueError: cannot use … here"
    assert SECRET not in repr(clean)


def chained(*errors: BaseException, by: str) -> BaseException:
    for error, cause in itertools.pairwise(errors):
        setattr(error, by, cause)
    return errors[0]


def all_of(error: BaseException | None) -> list[BaseException]:
    """The error with everything that a traceback may print below it."""
    if error is None:
        return []
    return [error, *all_of(error.__cause__), *all_of(error.__context__)]


@pytest.mark.parametrize("by", ["__cause__", "__context__"])
def test_a_secret_in_a_chained_error_is_out_too(by: str) -> None:
    error = chained(OSError("no"), ValueError("why"), KeyError(SECRET), by=by)
    clean = scrub_error(error, [SECRET])
    assert "no" in str(clean)
    assert not any(SECRET in f"{e} {e!r}" for e in all_of(clean))


def test_a_secret_in_the_context_beside_a_cause_is_out_too() -> None:
    """A traceback prints the cause alone, but a reporting tool may walk the context as well."""
    error = OSError("no")
    error.__cause__ = ValueError("why")
    error.__context__ = KeyError(SECRET)
    assert not any(SECRET in f"{e} {e!r}" for e in all_of(scrub_error(error, [SECRET])))


def test_a_secret_in_the_cause_of_a_refused_handshake_is_out_too() -> None:
    error = aiohttp.WSServerHandshakeError(request_info("ws://host/"), (), status=401)
    error.__cause__ = KeyError(SECRET)
    assert not any(SECRET in f"{e} {e!r}" for e in all_of(scrub_error(error, [SECRET])))


def test_a_secret_in_a_note_is_out_too() -> None:
    error = OSError("no")
    error.add_note(f"while using {SECRET}")
    clean = scrub_error(error, [SECRET])
    assert SECRET not in "".join(getattr(clean, "__notes__", []))


def test_a_secret_that_repr_escapes_is_out_too() -> None:
    """A header value with a quote, a backslash or a control character looks different in a repr."""
    secret = "pass'w\\ord\""
    clean = scrub_error(KeyError(secret), secrets_of("ws://host/", {"X-Key": secret}))
    assert "ord" not in f"{clean} {clean!r}"


class ShownTooOften(BaseException):
    """Makes an endless walk along a chain a failure instead of a suite that hangs."""


def test_a_chain_that_bites_its_tail_comes_to_an_end() -> None:
    class CountedError(OSError):
        shown = 0

        def __str__(self) -> str:
            CountedError.shown += 1
            if CountedError.shown > 100:
                raise ShownTooOften
            return "no"

    first, second = CountedError(), CountedError()
    first.__cause__, second.__cause__ = second, first
    assert str(scrub_error(first, [SECRET])) == "no"
