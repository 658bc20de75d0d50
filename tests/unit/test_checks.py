"""System checks; the names carry the ids."""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.checks.registry import registry
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.http import HttpRequest, HttpResponse
from django.urls import include, path, re_path

import wsgateway
import wsgateway.asgi
from tests.authority import Authority
from tests.support import ROOT
from tests.troubleshooting import Symptom
from wsgateway import checks, declared
from wsgateway.bridges import buses
from wsgateway.broker.nats import broker_from_settings
from wsgateway.checks.identity import check_user_names
from wsgateway.checks.layers import check_other_layers
from wsgateway.checks.servers import check_urls
from wsgateway.checks.values import check_misspelt_names, check_names, check_values
from wsgateway.conf import SETTINGS
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerMisconfigured
from wsgateway.identity import CookieIdentity, SessionIdentity
from wsgateway.services import registry as registry_of_services
from wsgateway.webhooks import sender
from wsgateway.webhooks.config import webhook_of

COOKIES = "wsgateway.identity.CookieIdentity"


def messages(deploy: bool = False) -> dict[str, str]:
    active = [*checks.CHECKS, *(checks.DEPLOY_CHECKS if deploy else [])]
    found = [message for check in active for message in check(app_configs=None)]
    for message in found:
        assert message.hint, message
        assert message.msg.endswith((".", "?")), message
        assert not message.msg.endswith("?."), message
    return {str(message.id).removeprefix("wsgateway."): message.msg for message in found}


class NamesOnly(SessionIdentity):
    def user_name(self, user: Any) -> str:
        return str(user.pk)


class NamesAndFinds(NamesOnly):
    def get_user(self, name: str) -> Any:
        return get_user_model().objects.get(pk=name)


def test_W005_user_name_without_its_inverse(settings: Any) -> None:
    path = f"{__name__}.{NamesOnly.__name__}"
    settings.WSGATEWAY_IDENTITY = [
        path,
        f"{__name__}.{NamesAndFinds.__name__}",
        "wsgateway.identity.SessionIdentity",
        "wsgateway.identity.TokenIdentity",
    ]
    assert [(m.id, path in m.msg) for m in check_user_names()] == [("wsgateway.W005", True)]


def test_W018_resolver_that_comes_too_late(settings: Any) -> None:
    strangers, users = "wsgateway.identity.AnonymousIdentity", "wsgateway.identity.SessionIdentity"
    settings.WSGATEWAY_IDENTITY = [users, strangers]
    assert "W018" not in messages()
    settings.WSGATEWAY_IDENTITY = [strangers, users]
    assert strangers in messages()["W018"]


@pytest.fixture
def production(settings: Any) -> Any:
    settings.DEBUG = False
    settings.ALLOWED_HOSTS = ["example.com"]
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = "nats://127.0.0.1:4222"
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.SessionIdentity"]
    return settings


@pytest.mark.usefixtures("production")
def test_good_settings_pass() -> None:
    assert messages(deploy=True) == {}


def test_E001_unknown_name_suggests_the_nearest(settings: Any) -> None:
    settings.WSGATEWAY_REPLICA = 3
    settings.WSGATEWAY_ZZZZ = 1
    found = check_names()
    assert [m.hint for m in found] == [
        "Did you mean WSGATEWAY_REPLICAS?",
        "docs/reference/settings.md lists all settings.",
    ]
    assert {m.id for m in found} == {"wsgateway.E001"}


def test_E001_suggests_names_that_exist(settings: Any) -> None:
    """It suggested WSGATEWAY_NATS_BROKER_URL, which does not exist either."""
    settings.WSGATEWAY_NATS_BROKER_URL = "nats://h"
    settings.WSGATEWAY_PUBSUB_BROKER = "nats"
    assert [m.hint for m in check_names()] == [
        "Did you mean NATS_BROKER_URL?",
        "Did you mean PUBSUB_BROKER?",
    ]


MISSPELT = {
    "NATS_BROKER_URLS": "NATS_BROKER_URL",
    "NATS_BROKER_URI": "NATS_BROKER_URL",
    "NATS_BROKER": "NATS_BROKER_URL",
    "NATS_URL": "NATS_BROKER_URL",
    "NATS_SERVERS": "NATS_BROKER_URL",
    "NAT_BROKER_URL": "NATS_BROKER_URL",
    "PUB_SUB_BROKER": "PUBSUB_BROKER",
    "PUBSUB_BROKER_URL": "PUBSUB_BROKER",
    "PUBSUB_BORKER": "PUBSUB_BROKER",
    "WS_GATEWAY_SERVICES": "WSGATEWAY_SERVICES",
    "WSGATWAY_SERVICE": "WSGATEWAY_SERVICES",
    "WSGATEWAYS_REPLICAS": "WSGATEWAY_REPLICAS",
}


@pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
def test_W013_misspelt_name(settings: Any, name: str, meant: str) -> None:
    if hasattr(settings, meant):
        delattr(settings, meant)
    setattr(settings, name, "x")
    (found,) = check_misspelt_names()
    assert (found.id, found.msg) == ("wsgateway.W013", f"{name} is not a setting of wsgateway.")
    assert f"Did you mean {meant}?" in str(found.hint)
    setattr(settings, meant, "")  # as good as not set
    assert [m.id for m in check_misspelt_names()] == ["wsgateway.W013"]
    setattr(settings, meant, "x")  # then the other one is not a typo
    assert check_misspelt_names() == []


OTHERS = """NATS_BUCKET BROKER_URL CELERY_BROKER_URL MQTT_BROKER_URL PUBSUB
    NATS_BROKER_PORT NATS_BROKER_SERVICE_HOST NSQ_BROKER_URL
    KAFKA_BROKER_URL PUBSUB_BACKEND REDIS_URL GATEWAY_SERVICES API_GATEWAY_PREFIX
    PAYMENT_GATEWAY_PREFIX WEBSOCKET_WINDOW WS_URL WAGTAIL_SITE_NAME CHANNEL_LAYERS REPLICAS"""


def test_settings_of_other_apps_are_left_alone(settings: Any) -> None:
    del settings.NATS_BROKER_URL
    del settings.PUBSUB_BROKER
    for name in OTHERS.split():
        setattr(settings, name, "x")
    assert check_misspelt_names() == []
    assert check_names() == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("WSGATEWAY_REPLICAS", 2, "WSGATEWAY_REPLICAS is 2, but must be 1, 3 or 5."),
        ("WSGATEWAY_WINDOW", "64", "WSGATEWAY_WINDOW is '64', but must be of type int."),
        (
            "WSGATEWAY_IDENTITY",
            [],
            "WSGATEWAY_IDENTITY is [], but must be a list of dotted paths, for example "
            "['wsgateway.identity.SessionIdentity'].",
        ),
        ("PUBSUB_BROKER", "redis", "PUBSUB_BROKER is 'redis', but must be 'nats' or 'memory'."),
        (
            "WSGATEWAY_DUPLICATE_WINDOW",
            0.05,
            "WSGATEWAY_DUPLICATE_WINDOW is 0.05, but must be 0.1 or more, at most 9000000000.",
        ),
        (
            "WSGATEWAY_PREFIX",
            "a b",
            "WSGATEWAY_PREFIX: prefix 'a b' is not made of [A-Za-z0-9_-] tokens joined by dots.",
        ),
    ],
)
def test_E002_impossible_value(settings: Any, name: str, value: object, text: str) -> None:
    setattr(settings, name, value)
    assert messages() == {"E002": text}


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("WSGATEWAY_WINDOW", "64", "Convert it to a number: int(…)."),
        ("WSGATEWAY_ACK_WAIT", "1", "Convert it to a number of seconds: float(…)."),
        ("WSGATEWAY_SERVICES", "a,b", "Write a list, with brackets: ['a', 'b']."),
        ("WSGATEWAY_REPLICAS", 2, "Copies of each stream. Use 3 in a cluster. The default is 1."),
    ],
)
def test_E002_says_what_to_write(settings: Any, name: str, value: object, hint: str) -> None:
    setattr(settings, name, value)
    (found,) = check_values()
    assert str(found.hint).startswith(hint)


@pytest.mark.parametrize(
    ("backends", "ids"),
    [
        (["channels_redis.core.RedisChannelLayer"], ["wsgateway.W014"]),
        (["channels_redis.pubsub.RedisPubSubChannelLayer"], ["wsgateway.W014"]),
        (["channels.layers.InMemoryChannelLayer"], []),
        (["channels_redis.core.RedisChannelLayer", "wsgateway.layer.NatsChannelLayer"], []),
    ],
)
def test_W014_layer_of_channels_redis(settings: Any, backends: list[str], ids: list[str]) -> None:
    settings.CHANNEL_LAYERS = {path: {"BACKEND": path} for path in backends}
    assert [m.id for m in check_other_layers()] == ids


@pytest.mark.troubleshooting(
    "(wsgateway.W014) CHANNEL_LAYERS['default']: BACKEND is 'channels_redis.core.RedisChannelLayer'"
)
def test_layer_of_redis(
    symptom: Symptom, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}}
    call_command("check")
    symptom.must_show_in(capsys.readouterr().err)
    settings.SILENCED_SYSTEM_CHECKS = ["wsgateway.W014"]
    call_command("check")
    assert not symptom.is_in(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("urls", "encode"), [("http://h:8222", False), ("nats://u:a,b@h", True), ("nats://h/x", False)]
)
def test_E006_speaks_of_passwords_if_there_is_one(settings: Any, urls: str, encode: bool) -> None:
    settings.NATS_BROKER_URL = urls
    (found,) = check_urls()
    assert ("percent-encode" in str(found.hint)) is encode
    assert ("in a password" in f"{found.msg} {found.hint}") is encode


def test_E002_alone_speaks_for_values_that_other_checks_cannot_read(settings: Any) -> None:
    for name in SETTINGS:
        setattr(settings, name, object())
    assert set(messages(deploy=True)) == {"E002"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere.Resolver", "No module named 'nowhere'"),
        ("wsgateway.identity.Nobody", "does not define a"),
        ("wsgateway.identity.make_token", "it is not a class"),
        ("wsgateway.identity.Identity", "it has no method resolve"),
        ("tests.resolvers.NeedsAKey", "missing 1 required positional argument: 'key'"),
        ("tests.resolvers.HasNoFile", "FileNotFoundError: no key file"),
    ],
)
def test_E003_resolver_that_is_none(settings: Any, path: str, text: str) -> None:
    """One whose constructor raises passed, and each socket failed."""
    settings.WSGATEWAY_IDENTITY = [path]
    assert text in messages(deploy=True)["E003"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere.may_watch", "No module named 'nowhere'"),
        ("tests.presence_app.rights.nothing", "nothing"),
        ("tests.presence_app.rights.CALLS", "it is not a function"),
        ("tests.unit.test_checks.Path", "it is not a function"),
    ],
)
def test_E009_may_watch_that_is_not_a_function(settings: Any, path: str, text: str) -> None:
    settings.WSGATEWAY_MAY_WATCH = path
    assert text in messages()["E009"]
    settings.WSGATEWAY_MAY_WATCH = "tests.presence_app.rights.may_watch"
    assert "E009" not in messages()


def test_E004_file_that_cannot_be_read(settings: Any, tmp_path: Path) -> None:
    settings.WSGATEWAY_NATS_CREDENTIALS = str(tmp_path / "missing.creds")
    assert "missing.creds" in messages()["E004"]
    (tmp_path / "missing.creds").write_text("x")
    assert messages() == {}


def test_E005_key_without_certificate(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("x")
    settings.WSGATEWAY_NATS_TLS_KEY = str(tmp_path / "key.pem")
    assert set(messages()) == {"E005"}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://localhost", "that is a Redis server"),
        ("localhost:6379", "port 6379 is where Redis listens"),
        ("ws://h", "NATS over websockets is not supported"),
        ("wss://h", "NATS over websockets is not supported"),
        ("http://h:8222", "NATS' port for clients is 4222"),
        ("nats:h", "// is missing after nats:"),
        ("nats://", "no host"),
        ("nats://h:port", "the port is not a number"),
        ("nats://h:99999", "the port is not a number"),
        ("nats://[::1", "the host is not valid"),
    ],
)
def test_E006_entry_that_is_no_url(settings: Any, url: str, why: str) -> None:
    """The check and the first connection say the same."""
    settings.NATS_BROKER_URL = f"nats://ok:4222,{url}"
    found = messages()
    assert set(found) == {"E006"}
    assert why in found["E006"]
    with pytest.raises(BrokerMisconfigured) as error:
        broker_from_settings(wsgateway_settings)
    assert str(error.value).startswith(f"{found['E006'].removesuffix('.')}; use nats://host:4222")


def test_E006_keeps_the_password_out(settings: Any) -> None:
    settings.NATS_BROKER_URL = "redis://user:secret@host"
    assert "secret" not in messages()["E006"]


def probe_of_our_own(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


@pytest.mark.parametrize(
    ("view", "warned"),
    [
        (path("healthz", probe_of_our_own), {"W008"}),
        (re_path(r"^healthz/?$", probe_of_our_own), {"W008"}),
        (re_path("", probe_of_our_own), set()),  # a page for every path, as single-page sites have
        (path("", include("wsgateway.urls")), set()),
        (path("sse/<name>/", probe_of_our_own), {"W008"}),
        (path("sse/", probe_of_our_own), {"W008"}),
    ],
)
def test_W008_probe_hides_a_view(settings: Any, view: Any, warned: set[str]) -> None:
    settings.ROOT_URLCONF = (view,)
    assert set(messages()) == warned
    settings.ASGI_APPLICATION = f"{__name__}.without_probes"
    assert set(messages()) == set()


def test_W008_metrics_hide_a_view_only_while_they_are_on(settings: Any) -> None:
    settings.ROOT_URLCONF = (path("metrics", probe_of_our_own),)
    assert messages() == {}
    settings.WSGATEWAY_METRICS_NETWORKS = ["10.0.0.0/8"]
    assert "'/metrics'" in messages()["W008"]


@pytest.mark.troubleshooting("(wsgateway.W008) Your URLconf has a view for …")
def test_hidden_view_shows_in_check(
    symptom: Symptom, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.ROOT_URLCONF = (path("readyz", probe_of_our_own),)
    call_command("check")
    symptom.must_show_in(capsys.readouterr().err)


without_probes = wsgateway.asgi.application(healthz=None, readyz=None, sse=None)


@pytest.mark.parametrize("family", ["INBOX", "SEND", "DEAD", "CURSOR"])
def test_W006_ids_are_forgotten_with_their_messages(settings: Any, family: str) -> None:
    setattr(settings, f"WSGATEWAY_{family}_MAX_AGE", 60.0)
    assert messages() == {
        "W006": f"WSGATEWAY_DUPLICATE_WINDOW is 120 s, but WSGATEWAY_{family}_MAX_AGE is 60 s: "
        "that stream remembers message ids for 60 s only."
    }
    settings.WSGATEWAY_DUPLICATE_WINDOW = 60.0
    assert messages() == {}


def test_W007_ids_are_forgotten_while_a_message_is_retried(settings: Any) -> None:
    settings.WSGATEWAY_DUPLICATE_WINDOW = settings.WSGATEWAY_PUBLISH_TIMEOUT = 30.0
    assert messages() == {
        "W007": "Message ids are remembered for 30 s, but publishing is retried for 30 s: "
        "a late retry may be stored twice."
    }
    settings.WSGATEWAY_DUPLICATE_WINDOW = 30.5
    assert messages() == {}
    settings.WSGATEWAY_INBOX_MAX_AGE = 10.0
    assert set(messages()) == {"W006", "W007"}


def test_E101_memory_broker_in_production(production: Any) -> None:
    production.PUBSUB_BROKER = "memory"
    assert set(messages(deploy=True)) == {"E101"}
    assert messages() == {}


def test_E102_no_servers_in_production(production: Any) -> None:
    production.NATS_BROKER_URL = " "
    assert set(messages(deploy=True)) == {"E102"}


def test_W103_streams_in_memory_in_production(production: Any) -> None:
    production.WSGATEWAY_STORAGE = "memory"
    assert set(messages(deploy=True)) == {"W103"}


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("nats://10.0.0.1:4222", True),
        ("10.0.0.1", True),
        ("tls://10.0.0.1:4222,nats://b:4222", True),
        ("tls://10.0.0.1:4222", False),
        ("nats://[::1]:4222,localhost", False),
    ],
)
def test_W104_no_tls_to_another_host(production: Any, url: str, warns: bool) -> None:
    production.NATS_BROKER_URL = url
    assert set(messages(deploy=True)) == ({"W104"} if warns else set())


def test_W104_a_ca_means_tls(production: Any, tmp_path: Path) -> None:
    production.NATS_BROKER_URL = "nats://10.0.0.1:4222"
    (tmp_path / "ca.pem").write_text("x")
    production.WSGATEWAY_NATS_TLS_CA = str(tmp_path / "ca.pem")
    assert messages(deploy=True) == {}


def test_W105_cluster_with_one_copy(production: Any) -> None:
    production.NATS_BROKER_URL = "tls://a:4222,tls://b:4222,tls://c:4222"
    assert set(messages(deploy=True)) == {"W105"}
    production.WSGATEWAY_REPLICAS = 3
    assert messages(deploy=True) == {}


class Disguised(CookieIdentity):
    pass


@pytest.mark.parametrize("path", [COOKIES, f"{__name__}.Disguised"])
def test_E106_plain_cookie_identity_in_production(production: Any, path: str) -> None:
    production.WSGATEWAY_IDENTITY = ["wsgateway.identity.SessionIdentity", path]
    assert set(messages(deploy=True)) == {"E106"}
    assert messages() == {}


@pytest.mark.parametrize("name", ["WSGATEWAY_ALLOWED_ORIGINS", "ALLOWED_HOSTS"])
def test_E107_any_origin_in_production(production: Any, name: str) -> None:
    setattr(production, name, ["*"])
    assert name in messages(deploy=True)["E107"]


def test_every_id_has_its_test_and_its_place_in_the_documentation() -> None:
    folder = Path(checks.__file__).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    ids = set(re.findall(r'id="wsgateway\.([EW]\d{3})"', source))
    written = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    tests = set(re.findall(r"def test_([EW]\d{3})_", written))
    table = re.findall(
        r"^\| `wsgateway\.([EW]\d{3})`", (ROOT / "docs/reference/errors.md").read_text(), re.M
    )
    assert ids == tests == set(table)
    assert len(table) == len(ids)


def test_every_check_runs() -> None:
    """A check that no list names would pass its own test and never run."""
    registered = {
        getattr(each, "__name__", "")
        for each in registry.get_checks(include_deployment_checks=True)
    }
    source = "".join(path.read_text() for path in Path(checks.__file__).parent.glob("*.py"))
    assert set(re.findall(r"^def (check_\w+)", source, re.M)) <= registered


def test_E002_service_that_no_stream_can_have(settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["demo", "A" * 90]
    assert "takes 278 characters in NATS" in messages()["E002"]


def test_E010_service_of_users_and_of_topics(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "topics", {})
    wsgateway.topic("room")(lambda identity, name: None)
    settings.WSGATEWAY_SERVICES = ["demo", "room"]
    assert "lists room, which @topic declares" in messages()["E010"]
    settings.WSGATEWAY_SERVICES = ["demo"]
    assert "E010" not in messages()


def test_E013_handler_of_topics_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "topics", {})

    class Room:
        def allow(self, identity: Any, name: str) -> None: ...

        def handle(self, message: Any) -> Any:
            yield message

    wsgateway.topic("room")(Room)
    assert "has a yield" in messages()["E013"]
    declared.topics.clear()
    monkeypatch.setattr(Room, "handle", lambda self, message: None)
    wsgateway.topic("room", timeout=-1)(Room)
    assert "timeout is -1, but must be above 0 seconds" in messages()["E013"]
    declared.topics.clear()
    wsgateway.topic("room", timeout=1)(Room)
    assert "E013" not in messages()


def test_W015_clients_may_write_what_nothing_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(identity: Any, name: str) -> Any:
        return next(("write" if each else None) for each in (identity,))

    def reads(identity: Any, name: str) -> str:
        return "read"

    class Room:
        def allow(self, identity: Any, name: str) -> str:
            return "write"

    class Called:
        def __call__(self, identity: Any, name: str) -> str:
            return "write"

    for rules in (nested, Room, Called()):
        monkeypatch.setattr(declared, "topics", {})
        wsgateway.topic("room")(rules)
        assert "lets clients write topics of 'room'" in messages()["W015"]
    options: Any
    for rules, options in ((reads, {}), (Room, {"direct": True}), (Room, {"queue": True})):
        monkeypatch.setattr(declared, "topics", {})
        wsgateway.topic("room", **options)(rules)
        assert "W015" not in messages()


def test_W004_handler_of_a_service_that_is_not_listed(settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["orders"]
    assert messages()["W004"] == "WSGATEWAY_SERVICES does not list demo."
    settings.WSGATEWAY_SERVICES = None
    assert "W004" not in messages()


def test_W016_limits_of_topics_that_do_not_exist(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declared, "topics", {})
    wsgateway.topic("room")(lambda identity, name: None)
    wsgateway.topic("tick", durable=False)(lambda identity, name: None)
    settings.WSGATEWAY_TOPICS = {"room": {"max_messages": 3}}
    assert "W016" not in messages()
    settings.WSGATEWAY_TOPICS = {"room": {}, "rom": {}}
    assert messages()["W016"] == "WSGATEWAY_TOPICS has limits of rom, which no @topic declares."
    hints = [str(found.hint) for found in checks.services.check_topic_limits()]
    assert hints[0].startswith("Did you mean room?")
    settings.WSGATEWAY_TOPICS = {"tick": {}}
    assert "tick, whose topics are ephemeral" in messages()["W016"]


def test_W017_topics_that_no_client_can_reach(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients were refused at /ws/room/, and nothing said where to connect."""
    monkeypatch.setattr(declared, "registered", {})
    monkeypatch.setattr(declared, "topics", {})
    settings.WSGATEWAY_SERVICES = None
    assert "W017" not in messages()
    wsgateway.topic("room")(lambda identity, name: None)
    assert "topics of room, but no service has users" in messages()["W017"]
    settings.WSGATEWAY_SERVICES = ["chat"]
    assert "W017" not in messages()


def test_W006_topics_that_forget_ids_with_their_messages(settings: Any) -> None:
    settings.WSGATEWAY_TOPICS = {"room": {"max_age": 60.0}}
    assert "WSGATEWAY_TOPICS['room']['max_age'] is 60 s" in messages()["W006"]


@pytest.mark.usefixtures("production")
def test_W109_any_service(settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["*"]
    assert "W109" not in messages()
    assert "fill the queue of every service" in messages(deploy=True)["W109"]


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_W120_metrics_for_everybody_in_production(production: Any, network: str) -> None:
    production.WSGATEWAY_METRICS_NETWORKS = ["10.0.0.0/8", network]
    assert "W120" not in messages()
    assert network in messages(deploy=True)["W120"]
    production.WSGATEWAY_METRICS_NETWORKS = ["10.0.0.0/8"]
    assert "W120" not in messages(deploy=True)


def test_W121_short_token_for_metrics_in_production(production: Any) -> None:
    production.WSGATEWAY_METRICS_TOKEN = "secret"
    assert "6 characters" in messages(deploy=True)["W121"]
    assert "secret" not in messages(deploy=True)["W121"]
    production.WSGATEWAY_METRICS_TOKEN = "3RuFQxTq7mLk2vNz"
    assert "W121" not in messages(deploy=True)


@pytest.mark.parametrize(
    ("network", "cure"),
    [("10.0.0.1/8", "write '10.0.0.0/8'"), ("prometheus", "is not a network"), ("", "")],
)
def test_networks_for_metrics_that_are_none_are_explained(
    settings: Any, network: str, cure: str
) -> None:
    settings.WSGATEWAY_METRICS_NETWORKS = [network]
    assert cure in messages()["E002"]


@pytest.mark.troubleshooting("(wsgateway.W013) NATS_BROKER_URLS is not a setting of wsgateway")
def test_misspelt_url(symptom: Symptom, settings: Any, capsys: pytest.CaptureFixture[str]) -> None:
    del settings.NATS_BROKER_URL
    settings.NATS_BROKER_URLS = "nats://h"
    call_command("check")
    symptom.must_show_in(capsys.readouterr().err)


@pytest.fixture
def webhooks(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settings with a webhook that can be used."""
    declared.discover()
    monkeypatch.setattr(declared, "registered", {})
    monkeypatch.setattr(declared, "topics", {})
    options = {"url": "https://example.com/orders", "secret": f"whsec_{'A' * 32}"}
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_WEBHOOKS = {"orders": options}
    return settings


def test_webhook_that_can_be_used_passes(webhooks: Any) -> None:
    assert messages() == {}
    assert declared.declared_services().services == {"orders"}


def test_E002_webhook_with_a_wrong_option(webhooks: Any) -> None:
    webhooks.WSGATEWAY_WEBHOOKS["orders"]["secret"] = "hunter2"
    text = messages()["E002"]
    assert "WSGATEWAY_WEBHOOKS: 'orders': 'secret' does not begin with 'whsec_'" in text
    assert "hunter2" not in text


def test_W020_webhook_without_httpx(webhooks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was an error, and stopped commands such as migrate where nothing sends to webhooks."""
    monkeypatch.setattr(sender, "find_spec", lambda name: None)
    text = "Webhooks need httpx; run: pip install 'wsgateway[webhooks]'."
    assert messages() == {"W020": text}
    webhooks.PUBSUB_BROKER = "nats"
    webhooks.WSGATEWAY_EVENTS_WEBHOOK = webhooks.WSGATEWAY_WEBHOOKS["orders"]
    for command in ("runservice", "runevents"):
        with pytest.raises(CommandError, match=r"pip install 'wsgateway\[webhooks\]'") as error:
            call_command(command, skip_checks=False, stderr=StringIO())
        assert error.value.returncode == 1


async def test_request_without_httpx_says_what_to_install(
    webhooks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway's log said: No module named 'httpx'."""
    monkeypatch.setitem(sys.modules, "httpx", None)
    endpoint = webhook_of(webhooks.WSGATEWAY_WEBHOOKS["orders"]).endpoint
    with pytest.raises(sender.PostFailed, match=r"pip install 'wsgateway\[webhooks\]'"):
        await sender.Sender(endpoint, 1000).post("1", b"{}")


def test_E014_webhook_of_a_service_with_a_handler(webhooks: Any) -> None:
    wsgateway.service("orders")(NamesAndFinds.get_user)
    text = "'orders', which has a handler: tests.unit.test_checks.NamesAndFinds.get_user; remove"
    assert text in messages()["E014"]
    with pytest.raises(ImproperlyConfigured, match="which has a handler"):
        registry_of_services.find_services()


def test_E014_webhook_of_topics_that_have_no_queue(webhooks: Any) -> None:
    wsgateway.topic("orders")(lambda identity, name: "read")
    assert "whose topics have no queue; pass queue=True" in messages()["E014"]


def test_E014_webhook_whose_authority_cannot_be_read(webhooks: Any) -> None:
    webhooks.WSGATEWAY_WEBHOOKS["orders"]["ca"] = "/does/not/exist.pem"
    assert "'/does/not/exist.pem', which cannot be read" in messages()["E014"]


def test_E014_webhook_whose_authority_holds_no_certificate(webhooks: Any, tmp_path: Path) -> None:
    """The check only opened the file; then each message failed, for a reason of OpenSSL's."""
    path = tmp_path / "ca.pem"
    for text in ("", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"):
        path.write_text(text)
        webhooks.WSGATEWAY_WEBHOOKS["orders"]["ca"] = str(path)
        assert "which holds no certificate" in messages()["E014"]
    webhooks.WSGATEWAY_WEBHOOKS["orders"]["ca"] = "a\0b"
    assert "which cannot be read" in messages()["E014"]
    webhooks.WSGATEWAY_WEBHOOKS["orders"]["ca"] = str(Authority(tmp_path).path)
    assert messages() == {}


def test_W004_webhook_that_the_complete_list_lacks(webhooks: Any) -> None:
    webhooks.WSGATEWAY_SERVICES = ["demo"]
    assert messages()["W004"] == "WSGATEWAY_SERVICES does not list orders."


@pytest.fixture
def bridges(settings: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The bridges of the settings: one that can run."""
    declared.discover()
    monkeypatch.setattr(declared, "registered", {})
    monkeypatch.setattr(declared, "topics", {})
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_BRIDGES = {
        "warehouse": {"url": "kafka://a.example", "services": ["orders"]},
    }
    value: dict[str, Any] = settings.WSGATEWAY_BRIDGES
    return value


def test_bridge_that_can_run_passes_and_declares_its_services(bridges: dict[str, Any]) -> None:
    assert messages() == {}
    assert declared.declared_services().services == {"orders"}


def test_E002_bridge_with_a_wrong_option(bridges: dict[str, Any]) -> None:
    bridges["warehouse"]["url"] = "kakfa://ann:hunter2@a.example"
    text = messages()["E002"]
    assert "WSGATEWAY_BRIDGES: 'warehouse': 'url' has the unknown scheme 'kakfa'" in text
    assert "hunter2" not in text


def test_E002_ends_once_and_names_the_page_that_says_more(bridges: dict[str, Any]) -> None:
    """The text ended in "?.", and the hint was the reference's Markdown."""
    bridges["warehouse"]["direction"] = "recieve"
    [found] = check_values()
    assert found.msg == (
        "WSGATEWAY_BRIDGES: 'warehouse': 'direction' is 'recieve': did you mean 'receive'?"
    )
    assert "docs/how-to/bridges.md lists the other options." in str(found.hint)
    assert not [name for name, each in SETTINGS.items() if "](" in each.cure()]


def test_W019_bridge_without_its_package(
    bridges: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was an error, and stopped commands such as migrate where no bridge runs."""
    monkeypatch.setattr(checks.bridges, "find_spec", lambda name: None)
    monkeypatch.setattr(buses, "find_spec", lambda name: None)
    text = "The bridge 'warehouse' needs aiokafka; run: pip install 'wsgateway[kafka]'."
    assert messages() == {"W019": text}
    for command in ("runbridge", "setup_bridges"):
        with pytest.raises(CommandError, match=r"pip install 'wsgateway\[kafka\]'") as error:
            call_command(command, skip_checks=False, stderr=StringIO())
        assert error.value.returncode == 1


def test_E016_service_of_a_bridge_with_a_handler(bridges: dict[str, Any]) -> None:
    wsgateway.service("orders")(NamesAndFinds.get_user)
    text = "takes what clients send to 'orders', which tests.unit.test_checks.NamesAndFinds"
    assert text in messages()["E016"]
    with pytest.raises(ImproperlyConfigured, match="takes what clients send to 'orders'"):
        registry_of_services.find_services()
    bridges["warehouse"]["direction"] = "receive"
    assert messages() == {}


def test_E016_service_of_a_bridge_with_a_webhook(bridges: dict[str, Any], settings: Any) -> None:
    options = {"url": "https://example.com/", "secret": f"whsec_{'A' * 32}"}
    settings.WSGATEWAY_WEBHOOKS = {"orders": options}
    assert "'orders', which a webhook handles; remove one of them" in messages()["E016"]


def test_E016_two_bridges_take_the_same_messages(bridges: dict[str, Any]) -> None:
    bridges["other"] = {"url": "amqp://b.example", "services": ["orders"], "direction": "send"}
    text = "The bridges 'other' and 'warehouse' both take what clients send to 'orders'"
    assert text in messages()["E016"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kafka://a.example", "kafka://a.example"),
        ("kafka://a.example,b.example", "kafka://c.example,b.example"),
        ("kafka://a.example", "kafka+ssl://A.EXAMPLE"),  # another port of the same server
        ("kafka://localhost", "kafka://127.0.0.1"),
        ("amqp://a.example/shop", "amqp://b.example,a.example/shop"),
        ("amqp://a.example/shop", "amqps://a.example/shop"),
    ],
)
def test_E016_two_bridges_read_the_same_records(
    bridges: dict[str, Any], one: str, other: str
) -> None:
    """A bus was not recognised at its port for TLS, or at another name of this machine."""
    bridges["warehouse"]["url"] = one
    bridges["other"] = {"url": other, "services": ["bills"]}
    assert "both read what services produce on" in messages()["E016"]
    assert "set aside each other's records" in messages()["E016"]
    bridges["other"]["direction"] = "send"
    assert messages() == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kafka://a.example", "kafka://b.example"),
        ("kafka://localhost:9092", "kafka://localhost:9192"),
        ("amqp://a.example/shop", "amqp://a.example/bank"),
        ("kafka+ssl://a.example", "amqp://a.example"),
        ("kafka://a.example:7000", "amqps://a.example:7001"),
    ],
)
def test_bridges_of_different_buses_do_not_meet(
    bridges: dict[str, Any], one: str, other: str
) -> None:
    bridges["warehouse"]["url"] = one
    bridges["other"] = {"url": other, "services": ["bills"]}
    assert messages() == {}


def test_E016_two_bridges_carry_the_same_records_twice(bridges: dict[str, Any]) -> None:
    bridges["other"] = {**bridges["warehouse"], "direction": "receive"}
    assert "carry each record twice" in messages()["E016"]
    for bridge in bridges.values():
        bridge["group"] = "shop"  # now they share the records, as two processes of one bridge do
    assert messages() == {}
    bridges["other"]["services"] = ["bills"]
    assert "set aside each other's records" in messages()["E016"]


def test_E016_service_that_kafka_cannot_carry(bridges: dict[str, Any]) -> None:
    bridges["warehouse"]["services"] = ["größe"]
    assert "Kafka cannot have the topic 'ws.send.gr=C3=B6=C3=9Fe'" in messages()["E016"]


def test_E016_bridge_of_topics_that_have_no_queue(bridges: dict[str, Any]) -> None:
    wsgateway.topic("orders")(lambda identity, name: "read")
    assert "which have no queue; pass queue=True" in messages()["E016"]


def test_E016_bridge_whose_authority_cannot_be_read(bridges: dict[str, Any]) -> None:
    bridges["warehouse"] |= {"url": "kafka+ssl://a.example", "ca": "/does/not/exist.pem"}
    assert "'ca' of the bridge 'warehouse' is '/does/not/exist.pem'" in messages()["E016"]


def test_W004_bridge_that_the_complete_list_lacks(bridges: dict[str, Any], settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["demo"]
    assert messages()["W004"] == "WSGATEWAY_SERVICES does not list orders."


@pytest.mark.usefixtures("production")
def test_W124_bridge_without_tls(bridges: dict[str, Any]) -> None:
    assert "sends its messages to a.example unencrypted" in messages(deploy=True)["W124"]
    bridges["warehouse"] |= {"username": "ann", "password": "hunter2"}
    text = messages(deploy=True)["W124"]
    assert "sends its password and its messages to a.example" in text
    assert "hunter2" not in text
    bridges["warehouse"]["url"] = "kafka://localhost"
    assert "W124" not in messages(deploy=True)
    bridges["warehouse"]["url"] = "kafka+ssl://a.example"
    assert "W124" not in messages(deploy=True)


def test_worker_of_a_bridges_service_is_pointed_to_the_bridge(bridges: dict[str, Any]) -> None:
    with pytest.raises(LookupError, match=r"manage\.py runbridge warehouse"):
        registry_of_services.get_service("orders")


@pytest.mark.usefixtures("production")
def test_W110_webhook_without_tls(webhooks: Any) -> None:
    assert "W110" not in messages(deploy=True)
    webhooks.WSGATEWAY_WEBHOOKS["orders"]["url"] = "http://example.com/"
    assert "The webhook 'orders' uses http" in messages(deploy=True)["W110"]
    webhooks.WSGATEWAY_EVENTS_WEBHOOK = webhooks.WSGATEWAY_WEBHOOKS.pop("orders")
    assert "WSGATEWAY_EVENTS_WEBHOOK uses http" in messages(deploy=True)["W110"]
