"""Bad settings are refused when the pool is made, by an error that names the argument."""

from __future__ import annotations

import functools
import inspect
import math
import re
import ssl
import warnings
from collections.abc import Callable
from typing import Any, get_type_hints
from unittest.mock import AsyncMock, MagicMock

import aiohttp
import pytest
from multidict import CIMultiDict, MultiDict
from yarl import URL

from wspool import BlockingWebsocketConnectionPool, LocalQuota, WebsocketConnectionPool
from wspool._pool.configured import Configured
from wspool._pool.connect_options import ConnectOptions, known_to_aiohttp
from wspool._pool.options import SETTINGS

SECRET = "hunter2"


def make(**options: Any) -> WebsocketConnectionPool:
    if "max_streams" in options:
        options.setdefault("route", "id")
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

COUNTS_FROM_ONE = ["max_connections", "max_retries", "max_connecting", "max_streams", "max_unread"]
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
BOOLEANS = ["check_server_data_on_release", "drain_fence", "learn_limit"]
PLAIN_CALLABLES = ["drain_condition", "drain_until", "on_drained", "control", "is_full"]
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
        *cases(["route"], [5, b"id", ["id", 5], {"id": 1}]),
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
        *cases(["route"], ["", ".", "a..b", (), ["id", ""]]),
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
        *cases(["route"], [None, "id", "a.b", ("a", "b.c"), ["a"], len]),
    ],
)
def test_what_is_allowed_is_taken(name: str, value: Any) -> None:
    make(**{name: value})


def test_every_argument_is_in_a_case_of_this_file() -> None:
    tested = {*SECONDS, *COUNTS, *BOOLEANS, *PLAIN_CALLABLES, *HOOKS}
    tested |= {"name", "session", "quota", "headers", "uri", "route", "connect_options"}
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


# Options of ws_connect: types and values.

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    BASIC_AUTH = aiohttp.BasicAuth("user")


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("heartbeat", "5", "a number of seconds"),
        ("heartbeat", True, "a number of seconds"),
        ("protocols", "v1", "an iterable of strings"),
        ("protocols", b"v1", "an iterable of strings"),
        ("protocols", 1, "an iterable of strings"),
        ("protocols", ["v1", 2], "an iterable of strings"),
        ("ssl", "x", "ssl.SSLContext"),
        ("ssl", 1, "ssl.SSLContext"),
        ("compress", "15", "a whole number"),
        ("compress", True, "a whole number"),
        ("max_msg_size", 1.5, "a whole number"),
        ("max_msg_size", None, "a whole number"),
        ("server_hostname", b"h", "a string"),
        ("origin", 5, "a string"),
        ("params", 5, "a mapping"),
        ("auth", ("user", SECRET), "aiohttp.BasicAuth"),
        ("proxy", ["http://localhost"], "a URL"),
        ("proxy_auth", f"user:{SECRET}", "aiohttp.BasicAuth"),
        ("proxy_headers", 5, "a mapping"),
        ("decode_text", None, "True or False"),
        ("verify_ssl", "no", "True or False"),
        ("fingerprint", "ab", "bytes"),
        ("ssl_context", True, "ssl.SSLContext"),
    ],
)
def test_a_connect_option_of_a_wrong_type_is_a_type_error_that_says_what_it_must_be(
    name: str, value: Any, needed: str
) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{name: value})
    assert str(caught.value).startswith(f"{name} ")
    assert needed in str(caught.value)
    assert SECRET not in str(caught.value)
    found = (f"is {value!r};", f"is of type {type(value).__name__};", "has an item of type int;")
    assert any(words in str(caught.value) for words in found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *cases(["heartbeat"], [0, -1, math.nan, math.inf]),
        *cases(["compress"], [-1, 1, 8, 16]),
        *cases(["max_msg_size"], [-1]),
    ],
)
def test_a_connect_option_of_a_wrong_value_is_a_value_error(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        make(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *cases(["heartbeat"], [None, 1, 0.5]),
        *cases(["compress"], [0, 9, 15]),
        *cases(["protocols"], [(), ["v1"], {"v1": None}, iter(["v1"])]),
        *cases(["ssl"], [True, False, None, ssl.create_default_context()]),
        *cases(["ssl"], [aiohttp.Fingerprint(bytes(32))]),
        *cases(["params"], [None, "a=b", {"a": 1}, [("a", "b")], MultiDict(a="b")]),
        *cases(["auth", "proxy_auth"], [None, BASIC_AUTH]),
        *cases(["proxy"], [None, "http://localhost", URL("http://localhost")]),
        *cases(["proxy_headers"], [None, {"a": "b"}, [("a", "b")], CIMultiDict(a="b")]),
        *cases(["origin", "server_hostname"], [None, "h"]),
        *cases(["verify_ssl"], [None, True, False]),
        *cases(["decode_text"], [True, False]),
        *cases(["fingerprint"], [None, bytes(32)]),
        *cases(["ssl_context"], [None, ssl.create_default_context()]),
    ],
)
def test_a_connect_option_that_aiohttp_takes_is_taken(name: str, value: Any) -> None:
    make(**{name: value})


def test_the_protocols_of_an_iterator_are_offered_at_each_dial() -> None:
    assert make(protocols=iter(["v1", "v2"])).connect_options["protocols"] == ("v1", "v2")


@pytest.mark.once
def test_the_typed_connect_options_are_those_of_aiohttp() -> None:
    """An option that a new aiohttp has is passed on meanwhile, and unchecked."""
    assert get_type_hints(ConnectOptions).keys() == known_to_aiohttp()


# Hooks.


class HasHook:
    async def hook(self, connection: object) -> None: ...

    async def partly(self, one: object, connection: object) -> None: ...

    with_one = functools.partialmethod(partly, 1)

    @staticmethod
    async def static(connection: object) -> None: ...

    @classmethod
    async def of_class(cls, connection: object) -> None: ...


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize(
    "hook",
    [
        a_coroutine_function,
        functools.partial(a_coroutine_function, 1),
        functools.partial(functools.partial(AsyncCallable(), 1), 2),
        AsyncCallable(),
        HasHook().hook,
        HasHook().with_one,
        HasHook.static,
        HasHook.of_class,
        AsyncMock(),
        lambda connection: a_coroutine_function(connection),
    ],
    ids=lambda hook: type(hook).__name__,
)
def test_all_that_is_async_may_be_a_hook(name: str, hook: Any) -> None:
    assert getattr(make(**{name: hook}), name) is hook


def a_plain_function(connection: object) -> None: ...


class PlainCallable:
    def __call__(self, connection: object) -> None: ...


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize(
    "hook",
    [
        a_plain_function,
        functools.partial(a_plain_function),
        PlainCallable(),
        PlainCallable().__call__,
        PlainCallable,
        print,
        MagicMock(),
    ],
    ids=lambda hook: type(hook).__name__,
)
def test_a_hook_that_is_not_async_is_a_type_error_that_names_it(name: str, hook: Any) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{name: hook})
    assert str(caught.value).startswith(f"{name} is ")
    assert "async def" in str(caught.value)


# To be read, and not forgotten anywhere.


@pytest.mark.parametrize("kind", [WebsocketConnectionPool, BlockingWebsocketConnectionPool])
def test_each_argument_can_be_read_from_the_pool_and_not_set(kind: type[Configured]) -> None:
    given = {"max_connections": 7, "acquire_timeout": None, "min_idle": 2, "name": "speech"}
    pool = kind("ws://localhost/", **given, heartbeat=5.0)
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()
    }
    wanted = defaults | given
    wanted |= {"uri": "ws://localhost/", "headers": {}, "connect_options": {"heartbeat": 5.0}}
    assert {name: getattr(pool, name) for name in wanted} == wanted
    for name in wanted:
        with pytest.raises(AttributeError, match=f"{name} is read-only"):
            setattr(pool, name, 1)


def test_a_limit_that_was_resized_is_read_as_it_is_now() -> None:
    pool = make(max_connections=3)
    pool.resize(5)
    assert pool.max_connections == 5


def described_in_order() -> list[str]:
    doc = inspect.getdoc(Configured.__init__) or ""
    return re.findall(r"^ {4}(\w+): ", doc, re.MULTILINE)


def test_each_setting_is_an_argument_with_a_description() -> None:
    """A new one is a line in options.py and an argument with its `Args:` in configured.py."""
    arguments = inspect.signature(WebsocketConnectionPool).parameters.keys()
    assert arguments == SETTINGS.keys(), "the constructor and Settings in options.py differ"
    described = [name for name in described_in_order() if name not in ("TypeError", "ValueError")]
    assert described == list(dict.fromkeys(described)), "an argument is described twice"
    assert set(described) == SETTINGS.keys(), "an argument has no description in configured.py"


def test_the_groups_of_the_docstring_are_those_of_the_settings() -> None:
    settings = [name for name in SETTINGS if name != "connect_options"]
    assert [name for name in described_in_order() if name in settings] == settings
