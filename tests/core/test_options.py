"""Bad settings are refused when the pool is made, by an error that names the argument."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
from yarl import URL

from wspool import LocalQuota, WebsocketConnectionPool

SECRET = "hunter2"


def make(**options: Any) -> WebsocketConnectionPool:
    if "keepalive" in options:
        options.setdefault("keepalive_interval", 1.0)
    return WebsocketConnectionPool(**{"uri": "ws://localhost/"} | options)


def cases(names: list[str], values: list[Any]) -> list[Any]:
    ids = [repr(value)[:24] for value in values]
    return [
        pytest.param(name, value, id=f"{name}={id}")
        for name in names
        for value, id in zip(values, ids, strict=True)
    ]


# Seconds and counts.

ABOVE_ZERO = ["idle_timeout", "cleanup_interval", "connection_timeout", "drain_timeout"]
FROM_ZERO = ["drain_quiet_period", "close_timeout"]
OPTIONAL_ABOVE_ZERO = ["max_lifetime", "keepalive_interval", "leak_threshold"]
OPTIONAL_FROM_ZERO = ["acquire_timeout", "check_after_idle"]
SECONDS = [*ABOVE_ZERO, *FROM_ZERO, *OPTIONAL_ABOVE_ZERO, *OPTIONAL_FROM_ZERO]

COUNTS_FROM_ONE = ["max_connections", "max_retries", "max_connecting"]
COUNTS_FROM_ZERO = ["warmup_connections", "min_connections", "min_idle"]
OPTIONAL_COUNTS_FROM_ONE = ["max_uses"]
OPTIONAL_COUNTS_FROM_ZERO = ["max_waiting"]
COUNTS = [
    *COUNTS_FROM_ONE,
    *COUNTS_FROM_ZERO,
    *OPTIONAL_COUNTS_FROM_ONE,
    *OPTIONAL_COUNTS_FROM_ZERO,
]

NOT_OPTIONAL = [*ABOVE_ZERO, *FROM_ZERO, *COUNTS_FROM_ONE, *COUNTS_FROM_ZERO]
BOOLEANS = ["check_server_data_on_release", "drain_fence"]
PLAIN_CALLABLES = ["drain_condition", "drain_until", "on_drained", "control"]
HOOKS = ["on_connect", "on_release", "on_close", "keepalive"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *cases([*SECONDS, *COUNTS], [True, False, "1", b"1", [1], 1j, print]),
        *cases(NOT_OPTIONAL, [None]),
        *cases(COUNTS, [1.0, 1.5, math.nan, math.inf]),
        *cases(BOOLEANS, [None, 0, 1, "yes"]),
        *cases([*PLAIN_CALLABLES, *HOOKS], [True, 0, 1.0, "on", [], {}]),
        *cases(["name"], [5, b"pool", True]),
        *cases(["session"], [5, "session", True]),
        *cases(["quota"], [5, "redis://localhost", True, {"limit": 5}]),
        *cases(["headers"], [5, "a: b", [("a", "b")], True]),
        *cases(["uri"], [None, 5, b"ws://localhost/", True, ["ws://localhost/"]]),
    ],
)
def test_a_wrong_type_is_a_type_error_that_names_the_argument(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{name: value})
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *cases(SECONDS, [-1, -0.001, math.nan, math.inf, -math.inf, 10**400]),
        *cases([*ABOVE_ZERO, *OPTIONAL_ABOVE_ZERO], [0, 0.0, -0.0]),
        *cases(COUNTS, [-1, -(10**400)]),
        *cases([*COUNTS_FROM_ONE, *OPTIONAL_COUNTS_FROM_ONE], [0]),
        *cases(["name"], ["a\ud800", "\udcff", "a\nb", "\x00", "a\x1b[2J", "\x85", "a\u2028b"]),
        *cases(["name"], ["a\u202eb", "a\u200bb", "\t", "\ufeffa", "\ud83d"]),
    ],
)
def test_a_wrong_value_is_a_value_error_that_names_the_argument(name: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        make(**{name: value})
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *cases(SECONDS, [0.001, 1, 3600.0]),
        *cases([*FROM_ZERO, *OPTIONAL_FROM_ZERO], [0, 0.0]),
        *cases([*OPTIONAL_ABOVE_ZERO, *OPTIONAL_FROM_ZERO], [None]),
        *cases(COUNTS, [1, 7]),
        *cases([*COUNTS_FROM_ZERO, *OPTIONAL_COUNTS_FROM_ZERO], [0]),
        *cases([*OPTIONAL_COUNTS_FROM_ONE, *OPTIONAL_COUNTS_FROM_ZERO], [None]),
        *cases(BOOLEANS, [True, False]),
        *cases(PLAIN_CALLABLES, [None, len]),
        *cases(HOOKS, [None]),
        *cases(["headers"], [None, {}, {"a": "b"}, dict]),
        *cases(["uri"], ["ws://h", "wss://h/p?q=1", "WS://H/", URL("ws://h/"), str]),
        *cases(["name", "session"], [None]),
        *cases(["name"], ["", "a b", 'quotes " and \\', "Börse", "行情", "\N{WAVING HAND SIGN}"]),
        *cases(["quota"], [None, LocalQuota(1)]),
    ],
)
def test_what_is_allowed_is_taken(name: str, value: Any) -> None:
    make(**{name: value})


def test_every_argument_is_in_a_case_of_this_file() -> None:
    tested = {*SECONDS, *COUNTS, *BOOLEANS, *PLAIN_CALLABLES, *HOOKS}
    tested |= {"name", "session", "quota", "headers", "uri", "connect_options"}
    assert set(inspect.signature(WebsocketConnectionPool).parameters) == tested


def test_the_uri_may_stand_without_its_name_and_nothing_else() -> None:
    assert WebsocketConnectionPool("ws://localhost/").uri == "ws://localhost/"
    with pytest.raises(TypeError, match="positional"):
        WebsocketConnectionPool("ws://localhost/", {})  # type: ignore[misc]


def test_a_pool_without_a_uri_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="uri"):
        WebsocketConnectionPool()  # type: ignore[call-arg]


# The URI.


@pytest.mark.parametrize(
    "uri", ["", " ", "http://localhost/", "https://localhost/", "localhost", "/path", "ws://",
            "ws:///path", "ws:localhost", "ws://h:99999/", "ws://[::1/"]
)  # fmt: skip
def test_a_uri_that_is_none_of_ours_is_told_to_be_ws_or_wss(uri: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(uri=uri)
    assert "uri" in str(caught.value)
    assert "ws://" in str(caught.value)
    assert "wss://" in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        f"http://localhost/?token={SECRET}",
        f"http://user:{SECRET}@localhost/",
        f"http://{SECRET}@localhost/",
        f"http://:{SECRET}@localhost/",
        f"http://localhost/#{SECRET}",
        f"//user:{SECRET}@localhost/?token={SECRET}",
        f"user:{SECRET}@localhost/?token={SECRET}",
        f"localhost/?token={SECRET}",
        f"?token={SECRET}",
        f"ws:///?token={SECRET}",
        f"ws://user:{SECRET}@/path",
        f"ws://user:{SECRET}@localhost:99999/",
        f"ws://user:{SECRET}@[::1/",
        f"http://user:{SECRET}@localhost:99999/",
        URL(f"http://user:{SECRET}@localhost/?token={SECRET}"),
        f"ws://user:{SECRET}@localhost/".encode(),
        [f"ws://user:{SECRET}@localhost/"],
    ],
)
def test_the_error_of_a_bad_uri_does_not_show_its_secrets(uri: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make(uri=uri)
    error: BaseException | None = caught.value
    assert "uri" in str(error)
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {SECRET}")],
        f"Authorization: Bearer {SECRET}",
        f"Bearer {SECRET}".encode(),
    ],
)
def test_the_error_of_bad_headers_does_not_show_them(headers: Any) -> None:
    with pytest.raises(TypeError) as caught:
        make(headers=headers)
    assert "headers" in str(caught.value)
    assert SECRET not in str(caught.value)


# Options of ws_connect.


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("max_conections", "max_connections"),
        ("max_connection", "max_connections"),
        ("timeouts", None),
        ("heart_beat", "heartbeat"),
        ("protocol", "protocols"),
        ("drain_untill", "drain_until"),
        ("onconnect", "on_connect"),
        ("header", "headers"),
    ],
)
def test_a_keyword_with_a_slip_is_a_type_error_that_says_what_may_be_meant(
    written: str, meant: str | None
) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{written: 5})
    assert repr(written) in str(caught.value)
    if meant is not None:
        assert str(caught.value).endswith(f"did you mean {meant}?")
        assert "which are" not in str(caught.value)


def test_an_unknown_keyword_is_a_type_error_that_says_what_there_is() -> None:
    with pytest.raises(TypeError) as caught:
        make(authorisation_token=5)
    assert "'authorisation_token'" in str(caught.value)
    assert "did you mean" not in str(caught.value)
    for known in ("protocols", "heartbeat", "compress", "ssl", "proxy", "max_msg_size"):
        assert known in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"additional_headers": {"Authorization": SECRET}}, {"headers": {}}),
        ({"extra_headers": {"Authorization": SECRET}}, {"headers": {}}),
        ({"subprotocols": ["v1"]}, {"protocols": ["v1"]}),
        ({"compression": None}, {"compress": 0}),
        ({"max_size": 2**20}, {"max_msg_size": 2**20}),
        ({"ping_interval": 20}, {"heartbeat": 20.0}),
        ({"ping_timeout": 20}, {"heartbeat": 20.0}),
        ({"open_timeout": 10}, {"connection_timeout": 10.0}),
    ],
)
def test_an_argument_of_websockets_is_a_type_error_that_says_what_to_use_instead(
    theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    with pytest.raises(TypeError) as caught:
        make(**theirs)
    [name] = theirs
    [instead] = ours
    assert str(caught.value) == f"{name!r} is an argument of websockets' connect; use {instead}"
    make(**ours)


def test_the_value_of_an_unknown_keyword_is_not_shown() -> None:
    with pytest.raises(TypeError) as caught:
        make(authorisation=SECRET)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["self", "url"])
def test_what_the_pool_passes_to_ws_connect_itself_is_an_unknown_keyword(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        make(**{name: "ws://localhost/"})


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("timeout", ["connection_timeout", "close_timeout"]),
        ("receive_timeout", ["asyncio.timeout"]),
        ("autoping", ["nothing", "always answered"]),
        ("autoclose", ["nothing", "always answered"]),
        ("method", ["nothing", "GET"]),
    ],
)
def test_what_is_the_pools_own_business_is_a_type_error_that_says_what_to_use_instead(
    name: str, instead: list[str]
) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{name: 1})
    assert f"'{name}'" in str(caught.value)
    for words in instead:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("protocols", ("a", "b")),
        ("heartbeat", 20.0),
        ("compress", 15),
        ("ssl", False),
        ("proxy", "http://localhost:8080"),
        ("origin", "http://localhost"),
        ("params", {"a": "b"}),
        ("max_msg_size", 0),
    ],
)
def test_an_option_of_ws_connect_is_kept_for_the_dial(name: str, value: Any) -> None:
    assert make(**{name: value})._router.options.connect_options == {name: value}


# Callables.


async def a_coroutine_function(*args: object) -> bool:
    return True


class AsyncCallable:
    async def __call__(self, *args: object) -> bool:
        return True


@pytest.mark.parametrize("name", PLAIN_CALLABLES)
@pytest.mark.parametrize(
    "value",
    [a_coroutine_function, functools.partial(a_coroutine_function), AsyncCallable()],
    ids=["coroutine function", "partial", "async __call__"],
)
def test_a_coroutine_function_as_a_plain_callable_is_a_type_error(
    name: str, value: Callable[..., Any]
) -> None:
    """Its coroutine would be taken for True."""
    with pytest.raises(TypeError) as caught:
        make(**{name: value})
    assert name in str(caught.value)
    assert "coroutine function" in str(caught.value)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_may_be_a_coroutine_function(name: str) -> None:
    make(**{name: a_coroutine_function})


def test_a_keepalive_without_its_interval_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="keepalive_interval"):
        make(keepalive=a_coroutine_function, keepalive_interval=None)


# What is clamped.


@pytest.mark.parametrize("name", ["warmup_connections", "min_connections"])
def test_more_than_max_connections_is_clamped_with_a_warning_at_the_callers_line(
    name: str,
) -> None:
    options: dict[str, Any] = {"max_connections": 3, name: 5}
    line = inspect.currentframe().f_lineno + 2  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="max_connections") as caught:
        pool = WebsocketConnectionPool(uri="ws://localhost/", **options)
    [warning] = caught
    assert f"{name}=5" in str(warning.message)
    assert "max_connections=3" in str(warning.message)
    assert warning.filename == __file__
    assert warning.lineno == line
    assert getattr(pool._router.options, name) == 3


@pytest.mark.parametrize("name", ["warmup_connections", "min_connections"])
def test_as_many_as_max_connections_are_no_warning(name: str) -> None:
    assert getattr(make(max_connections=3, **{name: 3})._router.options, name) == 3


def test_a_min_idle_above_max_connections_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="min_idle is 4; it must be at most max_connections=3"):
        make(max_connections=3, min_idle=4)
    assert make(max_connections=3, min_idle=3)._router.options.min_idle == 3


def test_a_pool_that_was_refused_gives_no_resource_warning() -> None:
    """`__del__` copes with a pool that was never finished; the suite runs under -W error."""
    with pytest.raises(TypeError):
        make(idle_timeout="no")
