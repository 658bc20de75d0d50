"""The options of the channel layer, and what `manage.py check` says about CHANNEL_LAYERS."""

from __future__ import annotations

import inspect
import re
from datetime import timedelta
from typing import Any

import pytest
from channels.layers import channel_layers
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from tests.troubleshooting import Symptom
from wsgateway.checks.layers import check_layer_differences, check_layers
from wsgateway.layer import NatsChannelLayer
from wsgateway.layer.config import OPTIONS, OptionRefused, find_problems, server_urls
from wsgateway.layer.options import ConfiguredLayer
from wsgateway.layer.serializers import MsgPackSerializer, registry

BACKEND = "wsgateway.layer.NatsChannelLayer"
SECRET = "hunter2"


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        (None, []),
        ([], []),
        ("nats://a:1", ["nats://a:1"]),
        ("nats://u:p%2C@a:1, tls://b,c", ["nats://u:p%2C@a:1", "tls://b", "c"]),
        (("a", 1), ["nats://a:1"]),
        (["a", 1], ["nats://a:1"]),
        (("::1", 1), ["nats://[::1]:1"]),
        ([("a", 1), "tls://b"], ["nats://a:1", "tls://b"]),
        ([["a", "1"], ("b", None)], ["nats://a:1", "nats://b:4222"]),
        ({"nats://a"}, ["nats://a"]),
        (["nats://a:6379"], ["nats://a:6379"]),
        ([{"address": "nats://a:1"}, {"host": "b", "port": 2}], ["nats://a:1", "nats://b:2"]),
        ([{"address": ("a", 1)}, {"host": "b"}], ["nats://a:1", "nats://b:4222"]),
    ],
)
def test_servers_in_the_spellings_of_channels_redis(given: Any, urls: list[str]) -> None:
    assert server_urls(given) == urls


REDIS = [  # as the README of channels_redis spells them
    ([("localhost", 6379)], "hosts names port 6379, where Redis listens"),
    (["redis://:hunter2@127.0.0.1:6379/0"], "scheme 'redis': that is a Redis server"),
    (
        [{"address": "rediss://user:hunter2@host:1", "ssl_cert_reqs": None}],
        "scheme 'rediss': that is a Redis server",
    ),
    (["unix:///path/to/redis.sock"], "NATS does not listen on Unix sockets"),
    (
        [{"sentinels": [("localhost", 26379)], "master_name": "main", "password": SECRET}],
        "hosts describes Redis Sentinel",
    ),
    ([{"host": "localhost", "port": 6379, "db": 1}], "names port 6379, where Redis listens"),
    (["localhost:6379"], "port 6379 is where Redis listens"),
    (("localhost", 6379), "names port 6379, where Redis listens"),
]
WRONG = [
    *REDIS,
    ([{}], "hosts holds a dict without address and host"),
    ({}, "hosts holds a dict without address and host"),
    ([{"port": 4222}], "hosts holds a dict without address and host"),
    (
        [{"host": "h", "password": SECRET, "db": 0}],
        "hosts holds a dict with 'db', 'password', which are not options of a NATS server",
    ),
    ([None], "hosts holds None instead of a server"),
    ([{"address": None}], "hosts holds None instead of a server"),
    ("", "hosts holds '' instead of a server"),
    (" , ", "hosts holds ' , ' instead of a server"),
    (4222, "hosts is of type int, but must be a list"),
    ([5], "hosts holds something of type int, not a NATS server"),
    (b"nats://h", "hosts holds something of type bytes, not a NATS server"),
    ([("localhost", 4222, 0)], "hosts holds (str, int, int), not a (host, port) pair"),
    ([("localhost", True)], "hosts holds (str, bool), not a (host, port) pair"),
    ([("localhost", "http")], "hosts holds (str, str), not a (host, port) pair"),
    ([(None, 4222)], "hosts holds (NoneType, int), not a (host, port) pair"),
    ([("localhost", 99999)], "the port is not a number from 1 to 65535"),
    (["localhost", "4222"], "not the URL of a NATS server: no host"),
    (["ws://h"], "NATS over websockets is not supported"),
]


@pytest.mark.parametrize(("given", "text"), WRONG)
def test_what_is_not_a_nats_server_is_refused(given: Any, text: str) -> None:
    """Sentinels and empty dicts became localhost; Redis' port was tried as NATS."""
    with pytest.raises(ImproperlyConfigured) as error:
        NatsChannelLayer(hosts=given)
    assert text in str(error.value)
    assert "nats://" in str(error.value)
    assert SECRET not in str(error.value)


GOOD = [
    {},
    {"servers": None, "hosts": None, "prefix": None},
    {"prefix": "acme.chat-1", "expiry": 0.5, "group_expiry": 86400, "capacity": 1},
    {"channel_capacity": None, "symmetric_encryption_keys": None, "on_disconnect": None},
    {"channel_capacity": {"http.request": 200, "http.response!*": 10, "a[!b]?": 1}},
    {"channel_capacity": {re.compile(r"^websocket.send\!.+"): 20}},
    {"symmetric_encryption_keys": ["a", b"b"]},
    {"symmetric_encryption_keys": []},
    {"random_prefix_length": 12, "serializer_format": "json", "max_message_size": 10**6},
    {"on_disconnect": "redis.disconnect", "on_reconnect": "redis.reconnect"},
]


@pytest.mark.parametrize("options", GOOD)
def test_good_options_pass(settings: Any, options: dict[str, Any]) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": options}}
    assert check_layers() == []
    assert isinstance(channel_layers["default"], ConfiguredLayer)


COUNT = "a whole number from 1 to 9223372036854775807"
SECONDS = "a number of seconds above 0, at most 9000000000"
BAD = [
    ({"capacity": "100"}, f"capacity is '100', but must be {COUNT}"),
    ({"capacity": 0}, f"capacity is 0, but must be {COUNT}"),
    ({"capacity": -5}, f"capacity is -5, but must be {COUNT}"),
    ({"capacity": 1.5}, f"capacity is 1.5, but must be {COUNT}"),
    ({"capacity": True}, f"capacity is True, but must be {COUNT}"),
    ({"capacity": None}, f"capacity is None, but must be {COUNT}"),
    ({"capacity": 2**63}, f"capacity is {2**63}, but must be {COUNT}"),
    ({"expiry": "60"}, f"expiry is '60', but must be {SECONDS}"),
    ({"expiry": 0}, f"expiry is 0, but must be {SECONDS}"),
    ({"expiry": -1.0}, f"expiry is -1.0, but must be {SECONDS}"),
    ({"expiry": True}, f"expiry is True, but must be {SECONDS}"),
    ({"expiry": float("nan")}, f"expiry is nan, but must be {SECONDS}"),
    ({"expiry": float("inf")}, f"expiry is inf, but must be {SECONDS}"),
    (
        {"group_expiry": timedelta(days=1)},
        f"group_expiry is datetime.timedelta(days=1), but must be {SECONDS}",
    ),
    ({"max_message_size": "1M"}, f"max_message_size is '1M', but must be {COUNT}"),
    (
        {"channel_capacity": 200},
        "channel_capacity is 200, but must be a dict of patterns and numbers",
    ),
    (
        {"channel_capacity": {"http.*": "200"}},
        f"channel_capacity['http.*'] is '200', but must be {COUNT}",
    ),
    (
        {"channel_capacity": {r"^http\.": 200}},
        r"channel_capacity has the pattern '^http\\.', which no channel matches: text is a glob",
    ),
    (
        {"channel_capacity": {re.compile(b"x"): 200}},
        "channel_capacity has the pattern b'x', but channels have names of type str",
    ),
    (
        {"channel_capacity": {5: 200}},
        "channel_capacity has the pattern 5, but channels have names of type str",
    ),
    (
        {"symmetric_encryption_keys": SECRET},
        "symmetric_encryption_keys is of type str, but must be a list of possible keys",
    ),
    (
        {"symmetric_encryption_keys": [SECRET, None]},
        "symmetric_encryption_keys holds a NoneType, but keys are non-empty text",
    ),
    (
        {"symmetric_encryption_keys": [""]},
        "symmetric_encryption_keys holds an empty key, but keys are non-empty text",
    ),
    ({"serializer_format": "yaml"}, "serializer_format is 'yaml', but must be 'json' or 'msgpack'"),
    ({"on_disconnect": 5}, "on_disconnect is 5, but must be the type of a message"),
    ({"prefix": 5}, "prefix is 5, but must be text"),
    (
        {"prefix": "app:0:asgi:"},
        "prefix 'app:0:asgi:' is not made of [A-Za-z0-9_-] tokens joined by dots",
    ),
    ({"prefix": ""}, "prefix '' is not made of [A-Za-z0-9_-] tokens joined by dots"),
    ({"capacty": 7}, "unknown option 'capacty'"),
    ({"ssl": True}, "unknown option 'ssl'"),
    ({"servers": "nats://a", "hosts": ["nats://a"]}, "both servers and hosts are given"),
    *(({"hosts": given}, text) for given, text in WRONG),
]


@pytest.mark.parametrize(("options", "text"), BAD)
def test_E007_check_and_layer_say_the_same(
    settings: Any, options: dict[str, Any], text: str
) -> None:
    """``capacity: "100"`` came back as an error of NATS' JSON decoder, at the first use."""
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": options}}
    (found,) = check_layers()
    assert found.id == "wsgateway.E007"
    assert found.msg.startswith("CHANNEL_LAYERS['default']['CONFIG']: ")
    assert text in found.msg
    assert found.msg.endswith(".")
    assert found.hint
    assert SECRET not in f"{found.msg}{found.hint}"
    with pytest.raises(OptionRefused) as error:
        channel_layers["default"]
    problem = found.msg.removeprefix("CHANNEL_LAYERS['default']['CONFIG']: ").removesuffix(".")
    cure = found.hint[0].lower() + found.hint[1:].removesuffix(".")
    said = str(error.value)
    assert said.lower() == f"channel layer: {problem}; {cure}".lower()


def test_E007_reports_every_problem(settings: Any) -> None:
    config = {"hosts": [("a", 6379), {}], "capacity": "1", "expiri": 1, "prefix": "a:"}
    settings.CHANNEL_LAYERS = {
        "default": {"BACKEND": BACKEND, "CONFIG": config},
        "other": {"BACKEND": BACKEND, "TEST_CONFIG": {"capacity": 0}},
    }
    found = check_layers()
    assert [m.msg.partition(":")[0] for m in found] == [
        *["CHANNEL_LAYERS['default']['CONFIG']"] * 5,
        "CHANNEL_LAYERS['other']['TEST_CONFIG']",
    ]
    assert "Did you mean 'expiry'?" in [m.hint for m in found]


def test_E007_what_is_beside_config(settings: Any) -> None:
    """Channels ignores it without a word."""
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "hosts": ["nats://a"]}}
    (found,) = check_layers()
    assert "Channels ignores the key 'hosts'" in found.msg
    assert found.hint == "Move it into CONFIG."
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": []}}
    assert "CONFIG is of type list, but must be a dict" in check_layers()[0].msg


@pytest.mark.parametrize("backend", ["wsgateway.NatsChannelLayer", "wsgateway.layers.Layer"])
def test_E007_misspelt_backend(settings: Any, backend: str) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend}}
    (found,) = check_layers()
    assert f"BACKEND is '{backend}'" in found.msg
    assert found.hint == f"Use '{BACKEND}'."


@pytest.fixture
def nats(settings: Any) -> Any:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = "nats://u:hunter2@127.0.0.1:4222,tls://b"
    return settings


SAME = [
    {},
    {"prefix": None},
    {"prefix": "ws"},
    {"servers": []},
    {"hosts": [("localhost", 4222)]},
    {"servers": "nats://x,b"},
]


@pytest.mark.parametrize("config", SAME)
def test_layer_where_the_gateway_is(
    nats: Any, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    nats.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": config}}
    assert check_layer_differences() == []
    assert layer_of_settings().connections.target
    assert caplog.records == []


DIFFERENT = [
    (
        {"prefix": "asgi"},
        "prefix is 'asgi', but WSGATEWAY_PREFIX is 'ws', so what this layer sends to users does "
        "not reach their sockets",
    ),
    (
        {"hosts": ["nats://u:hunter2@x", ("c", 1)]},
        "servers are c:1, x:4222, but NATS_BROKER_URL names b:4222, localhost:4222, so what this "
        "layer sends to users does not reach their sockets",
    ),
]


@pytest.mark.parametrize(("config", "text"), DIFFERENT)
def test_W009_layer_elsewhere_than_the_gateway(
    nats: Any, config: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """``prefix: "asgi"``, as in channels_redis, lost every message to sockets in silence."""
    nats.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": config}}
    (found,) = check_layer_differences()
    assert (found.id, found.msg) == ("wsgateway.W009", f"CHANNEL_LAYERS['default']: {text}.")
    assert found.hint
    assert found.hint.startswith("Leave ")
    layer = layer_of_settings()
    assert caplog.records == []
    assert layer.connections.target
    assert layer.connections.target
    (record,) = caplog.records
    assert text in record.getMessage()
    assert record.levelname == "WARNING"
    assert SECRET not in f"{found.msg}{found.hint}{record.getMessage()}"


def test_W009_servers_but_an_embedded_server(nats: Any) -> None:
    nats.NATS_BROKER_URL = ""
    config = {"servers": ["nats://127.0.0.1:4222"]}
    nats.CHANNEL_LAYERS = {"default": {"BACKEND": BACKEND, "CONFIG": config}}
    assert "but NATS_BROKER_URL is empty, so" in check_layer_differences()[0].msg


def test_W009_needs_a_gateway_and_settings_that_can_be_read(nats: Any) -> None:
    other = {"BACKEND": BACKEND, "CONFIG": {"prefix": "asgi"}}
    impossible = {"prefix": "a:", "servers": "nats://x:port"}
    nats.CHANNEL_LAYERS = {
        "wrong": {"BACKEND": BACKEND, "CONFIG": impossible},
        "half": {"BACKEND": BACKEND, "CONFIG": {**impossible, "prefix": "asgi"}},
        "list": {"BACKEND": BACKEND, "CONFIG": []},
        "none": {},
        "number": 5,
    }
    assert [m.msg.partition(":")[0] for m in check_layer_differences()] == [
        "CHANNEL_LAYERS['half']"
    ]
    nats.CHANNEL_LAYERS = {"default": other}
    assert len(check_layer_differences()) == 1
    nats.NATS_BROKER_URL = "redis://localhost"
    assert check_layer_differences() == []
    nats.NATS_BROKER_URL = ""
    nats.PUBSUB_BROKER = "memory"
    assert check_layer_differences() == []
    nats.PUBSUB_BROKER = "nats"
    nats.INSTALLED_APPS = [app for app in nats.INSTALLED_APPS if "wsgateway" not in app]
    assert check_layer_differences() == []


def layer_of_settings() -> NatsChannelLayer:
    """Return the default channel layer."""
    layer = channel_layers["default"]
    assert isinstance(layer, NatsChannelLayer)
    return layer


class Sized(NatsChannelLayer):
    """With the options of its base class."""


class Own(NatsChannelLayer):
    def __init__(self, size: str) -> None:
        super().__init__(capacity=int(size))


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        ({"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"x": 1}}, 0),
        ({"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [{}]}}, 0),
        ({"BACKEND": "nowhere.Layer"}, 0),
        ({"BACKEND": 5}, 0),
        ({}, 0),
        (5, 0),
        ({"BACKEND": f"{__name__}.Sized", "CONFIG": {"size": "7"}}, 1),
        ({"BACKEND": f"{__name__}.Own", "CONFIG": {"size": "7"}}, 0),
    ],
)
def test_layers_of_others_are_left_alone(settings: Any, layer: Any, count: int) -> None:
    settings.CHANNEL_LAYERS = {"default": layer}
    assert len(check_layers()) == count


@pytest.mark.parametrize("layers", [None, [], "x", {}])
def test_channel_layers_of_another_shape(settings: Any, layers: Any) -> None:
    settings.CHANNEL_LAYERS = layers
    assert check_layers() == []


def test_a_format_of_ones_own_is_known() -> None:
    registry.register_serializer("own", MsgPackSerializer)
    try:
        assert list(find_problems({"serializer_format": "own"})) == []
    finally:
        del registry.classes["own"]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.sampled_from(["localhost", "nats://h", "redis://h", 6379, 4222, "ws", "json", "address"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(
            st.one_of(st.sampled_from(["address", "host", "port", "sentinels"]), LEAVES),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)), VALUES, max_size=3))
def test_any_options_make_a_layer_or_are_refused_by_name(options: dict[str, Any]) -> None:
    problems = list(find_problems(options))
    if problems:
        with pytest.raises(OptionRefused) as error:
            NatsChannelLayer(**options)
        assert str(error.value) == str(problems[0])
        for problem in problems:
            assert problem.problem
            assert problem.cure
    else:
        layer = NatsChannelLayer(**options)
        assert layer.get_capacity("a.b") >= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("capacity", "7"),
        ("channel_capacity", {"a": 0}),
        ("expiry", 0),
        ("max_message_size", 1.5),
        ("prefix", "a:"),
    ],
)
def test_what_is_set_later_is_checked_too(name: str, value: Any) -> None:
    layer = NatsChannelLayer()
    before = getattr(layer, name)
    with pytest.raises(OptionRefused, match=name):
        setattr(layer, name, value)
    assert getattr(layer, name) == before


def test_every_option_has_a_rule() -> None:
    parameters = inspect.signature(ConfiguredLayer).parameters.values()
    named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    assert named == set(OPTIONS)


@pytest.mark.troubleshooting("channel layer: hosts names port 6379, where Redis listens")
def test_configuration_of_channels_redis(symptom: Symptom) -> None:
    with pytest.raises(OptionRefused) as error:
        NatsChannelLayer(hosts=[("localhost", 6379)])
    symptom.must_show_in(str(error.value))


@pytest.mark.troubleshooting("channel layer: capacity is '100', but must be a whole number")
def test_option_from_the_environment(symptom: Symptom) -> None:
    capacity: Any = "100"
    with pytest.raises(OptionRefused) as error:
        NatsChannelLayer(capacity=capacity)
    symptom.must_show_in(str(error.value))


@pytest.mark.troubleshooting(
    "channel layer: prefix 'app:0:asgi:' is not made of [A-Za-z0-9_-] tokens joined by dots"
)
def test_prefix_of_redis_keys(symptom: Symptom) -> None:
    with pytest.raises(OptionRefused) as error:
        NatsChannelLayer(prefix="app:0:asgi:")
    symptom.must_show_in(str(error.value))


@pytest.mark.troubleshooting(
    "channel layer: prefix is 'asgi', but WSGATEWAY_PREFIX is 'ws', so what this layer sends to "
    "users does not reach their sockets"
)
def test_prefix_of_channels_redis(
    symptom: Symptom, nats: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert NatsChannelLayer(prefix="asgi").connections.target
    symptom.must_show_in(caplog.text)
