"""All settings: one typed property each, with default and unit, read on each access.

Only this module and `setting` read ``django.conf.settings``. Nothing is cached, so
``override_settings`` works. Durations are float seconds, sizes int bytes. A setting belongs to the
group above it. ``make reference`` writes ``docs/reference/settings.md`` from this module.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings

from wsgateway.bridges.config import are_bridges, bridge_flaws
from wsgateway.protocol.v1 import MAX_PING
from wsgateway.retention import are_retentions, retention_flaws
from wsgateway.setting import (
    MAX_INT,
    MAX_SECONDS,
    PREFIX,
    Group,
    Setting,
    are_names,
    are_networks,
    are_origins,
    bytes_limit,
    count,
    network_flaws,
    origin_flaws,
    positive,
    seconds,
    text,
)
from wsgateway.webhooks.config import (
    are_webhooks,
    events_webhook_flaws,
    identity_webhook_flaws,
    is_events_webhook,
    is_identity_webhook,
    webhook_flaws,
)

__all__ = ["GROUPS", "SETTINGS", "Settings", "misspelt_setting", "nearest_setting", "settings"]


class Settings:
    """Typed view of the project's settings; see `SETTINGS` for the list."""

    CONNECTING = Group("Connect to NATS")
    URL = Setting(
        "",
        "NATS servers, as URLs with commas between them. If it is empty, development starts a "
        "server of its own; production needs a value",
        kind=str,
        name="NATS_BROKER_URL",
        is_secret=True,
    )
    NATS_USER = text("", "User name for NATS, unless the URL has one")
    NATS_PASSWORD = text("", "Password for NATS, unless the URL has one", is_secret=True)
    NATS_TOKEN = text("", "Token for NATS", is_secret=True)
    NATS_CREDENTIALS = text("", "Path of a `.creds` file, which holds a JWT and an nkey seed")
    NATS_NKEY_SEED = text("", "Path of a file that holds an nkey seed")
    NATS_TLS_CA = text("", "Path of the CA certificate that signed the servers' certificates")
    NATS_TLS_CERT = text("", "Path of the client's certificate")
    NATS_TLS_KEY = text("", "Path of the client's private key")
    NATS_TLS_HOSTNAME = text("", "Host name to expect in the servers' certificates")
    NATS_IGNORE_DISCOVERED = Setting(
        False,
        "Connect only to the servers in `NATS_BROKER_URL`, not to others that the cluster "
        "announces. Set it if those addresses cannot be reached from here",
        kind=bool,
    )
    CONNECT_TIMEOUT = seconds(2.0, "Longest wait for one connection attempt")
    BROKER_TIMEOUT = seconds(5.0, "Longest wait for an answer from NATS")
    PUBLISH_TIMEOUT = seconds(25.0, "Longest wait until a message is stored, retries included")
    PREFIX = text(
        "ws",
        "First token, or tokens, of every subject, and part of every stream's name. Projects that "
        "share a NATS server need different prefixes",
    )
    BROKER = Setting(
        "nats",
        "Which broker to use: `'nats'`, or `'memory'` for tests, which needs no server, works "
        "within one process and forgets everything when it ends",
        kind=str,
        valid=lambda v: v in ("nats", "memory"),
        want="'nats' or 'memory'",
        name="PUBSUB_BROKER",
    )

    CONNECTIONS = Group("Who may connect")
    IDENTITY = Setting(
        ["wsgateway.identity.SessionIdentity"],
        "Resolvers that say whose socket it is, as dotted paths. They are tried in order",
        kind=(list, tuple),
        valid=lambda v: bool(v) and all(isinstance(path, str) for path in v),
        want="a list of dotted paths, for example ['wsgateway.identity.SessionIdentity']",
    )
    IDENTITY_WEBHOOK: Setting[dict[str, Any]] = Setting(
        {},
        "Where `WebhookIdentity` asks whose socket it is: a dict with `url`, `secret`, and the "
        "`headers` or `cookies` that are sent there. "
        "[A webhook](../how-to/identity.md#a-webhook) lists the other options",
        kind=dict,
        valid=is_identity_webhook,
        flaw=identity_webhook_flaws,
        want="a dict, for example {'url': 'https://…', 'secret': 'whsec_…', 'cookies': ['id']}",
        is_secret=True,
    )
    ALLOWED_ORIGINS: Setting[list[str] | None] = Setting(
        None,
        "Origins of the pages that may open sockets. `None` allows the hosts in `ALLOWED_HOSTS`, "
        "`['*']` any page",
        kind=(list, tuple, type(None)),
        valid=lambda v: v is None or are_origins(v),
        flaw=origin_flaws,
        want="a list of origins such as 'https://example.com' or, with all subdomains, "
        "'.example.com'",
    )
    COOKIE_NAME = text("wsgateway", "Name of the cookie that `SignedCookieIdentity` reads")
    TOKEN_PARAMETER = text("token", "Query parameter that `TokenIdentity` reads")
    TOKEN_MAX_AGE = seconds(3600.0, "How long a signed token or cookie is valid")
    TOPIC_TOKEN_MAX_AGE = seconds(
        300.0,
        "How long a signed token for a topic is valid, at most; never longer than half of "
        "`INBOX_MAX_AGE`",
    )
    REVALIDATE_INTERVAL = seconds(
        60.0, "How often a gateway asks whether the logins behind its open sockets are still valid"
    )

    JWT = Group("JSON web tokens")
    JWT_ALGORITHMS: Setting[list[str]] = Setting(
        [],
        "Algorithms that `JwtIdentity` accepts, such as `RS256`. It needs at least one",
        kind=(list, tuple),
        valid=are_names,
        want="a list of algorithms, for example ['RS256']",
    )
    JWT_KEYS: Setting[list[str]] = Setting(
        [],
        "Keys that verify tokens: public keys or certificates as PEM, or secrets for `HS256` and "
        "the like. Any of them may have signed a token",
        kind=(list, tuple),
        valid=are_names,
        want="a list of keys, each a string",
        is_secret=True,
    )
    JWT_JWKS_URL = text("", "URL where the issuer publishes its public keys, as a JSON web key set")
    JWT_JWKS_MAX_AGE = seconds(
        3600.0,
        "How long published keys are used before they are fetched again. A token with an unknown "
        "`kid` makes the gateway look for new ones earlier",
    )
    JWT_AUDIENCE: Setting[list[str]] = Setting(
        [],
        "Audiences: the claim `aud` must name one of them. If it is empty, tokens with an audience "
        "are refused",
        kind=(list, tuple),
        valid=are_names,
        want="a list of audiences, for example ['https://api.example.com']",
    )
    JWT_ISSUER = text("", "What the claim `iss` must be. If it is empty, any issuer will do")
    JWT_LEEWAY = Setting(
        10.0,
        "How much the issuer's clock may differ. A token is accepted for so long after `exp`",
        kind=float,
        valid=lambda v: 0 <= v <= 3600,
        want="0 to 3600",
        unit="seconds",
    )
    JWT_USER_CLAIM = text("sub", "Claim that names the user")
    JWT_SERVICE_CLAIM = text("", "Claim that names the service. If it is empty, the path does")
    JWT_DEVICE_CLAIM = text(
        "", "Claim that names the device. If it is empty or missing, the client does"
    )
    JWT_USER_FIELD = text(
        "pk", "Field of the user model that `JwtUserIdentity` looks for the user's claim in"
    )

    SERVING = Group("Services")
    SERVICES: Setting[list[str] | None] = Setting(
        None,
        "The complete list of services that clients may name. `None` stands for those that "
        "`@service` declares, `['*']` for any service, without isolation between them",
        kind=(list, tuple, type(None)),
        valid=lambda v: v is None or are_names(v),
        want="a list of names, for example ['orders']",
    )
    SERVICES_MODULE = text("ws_services", "Module of each app that holds service handlers")
    WEBHOOKS: Setting[dict[str, dict[str, Any]]] = Setting(
        {},
        "Services that are handled over HTTP, each with the `url` that its messages are posted to "
        "and the `secret` that signs them. [Webhooks](../how-to/webhooks.md#options) lists the "
        "other options",
        kind=dict,
        valid=are_webhooks,
        flaw=webhook_flaws,
        want="a dict, for example {'orders': {'url': 'https://…', 'secret': 'whsec_…'}}",
        is_secret=True,
    )
    BRIDGES: Setting[dict[str, dict[str, Any]]] = Setting(
        {},
        "Services that live on Kafka or RabbitMQ: each entry has the `url` of a bus and the "
        "`services` on it. [Bridges](../how-to/bridges.md#options) lists the other options",
        kind=dict,
        valid=are_bridges,
        flaw=bridge_flaws,
        want="a dict, for example {'warehouse': {'url': 'kafka://host', 'services': ['orders']}}",
        is_secret=True,
    )
    MAX_DELIVER = count(
        5, "Tries that a client's message has before it is set aside as a dead letter"
    )
    ACK_WAIT = seconds(30.0, "How long a worker may be silent before another one gets its messages")

    KEEPING = Group("How long messages are kept")
    INBOX_MAX_AGE = seconds(7 * 86400.0, "How long a message for a user is kept")
    INBOX_MAX_MESSAGES = count(
        10_000, "Messages that are kept for one user. Above that, the oldest goes first"
    )
    INBOX_MAX_BYTES = bytes_limit("Size of all inboxes together. Above that, publishing is refused")
    TOPICS: Setting[dict[str, dict[str, Any]]] = Setting(
        {},
        "Limits of the topics of each service, by its name: `max_age` (seconds that a message is "
        "kept), `max_messages` (in one topic) and `max_bytes` (of all topics of the service). What "
        "is not given is 7 days, 10,000 messages, and what `WSGATEWAY_TOPIC_MAX_BYTES` says",
        kind=dict,
        valid=are_retentions,
        flaw=retention_flaws,
        want="a dict, for example {'room': {'max_age': 86400, 'max_messages': 1000}}",
    )
    TOPIC_MAX_BYTES = bytes_limit(
        "Size of all topics of one service, unless `WSGATEWAY_TOPICS` says otherwise. Above that, "
        "publishing is refused"
    )
    SEND_MAX_AGE = seconds(7 * 86400.0, "How long a client's message waits for a service")
    SEND_MAX_MESSAGES = count(1_000_000, "Clients' messages that may wait for one service")
    SEND_MAX_MESSAGES_PER_USER = count(10_000, "Messages of one user that may wait for one service")
    SEND_MAX_BYTES = bytes_limit("Size of the clients' messages that may wait for one service")
    DEAD_MAX_AGE = seconds(30 * 86400.0, "How long a dead letter is kept")
    DEAD_MAX_BYTES = bytes_limit("Size of all dead letters. Above that, the oldest goes first")
    CURSOR_MAX_AGE = seconds(30 * 86400.0, "How long the cursor of an unused device is kept")
    CURSOR_MAX_BYTES = bytes_limit("Size of all cursors")
    DUPLICATE_WINDOW = Setting(
        120.0,
        "How long a message id is remembered, so that a retry is not stored twice. It is never "
        "longer than a stream keeps its messages",
        kind=float,
        valid=lambda v: 0.1 <= v <= MAX_SECONDS,  # the server's own limits
        want=f"0.1 or more, at most {MAX_SECONDS}",
        unit="seconds",
    )
    REPLICAS = Setting(
        1,
        "Copies of each stream. Use 3 in a cluster",
        kind=int,
        valid=lambda v: v in (1, 3, 5),
        want="1, 3 or 5",
    )
    STORAGE = Setting(
        "file",
        "Where NATS keeps streams: `'file'` or `'memory'`",
        kind=str,
        valid=lambda v: v in ("file", "memory"),
        want="'file' or 'memory'",
    )

    LIMITS = Group("Limits for clients")
    MAX_MESSAGE_SIZE = count(
        1_000_000, "Largest websocket frame, and largest payload of a message", unit="bytes"
    )
    MAX_CONNECTIONS_PER_USER = count(
        0, "Sockets that one user may have in one process. 0 means any number", least=0
    )
    MAX_DEVICES_PER_USER = count(
        100,
        "Devices of one user whose cursors are kept. The least recently used goes first",
    )
    RATE_LIMIT = Setting(
        2000.0,
        "Frames that a client may send per second, on average. 0 means any number",
        kind=float,
        valid=lambda v: 0 <= v <= MAX_INT,
        want=f"0 or more, at most {MAX_INT}",
    )
    RATE_BURST = count(20_000, "Frames that a client may send at once within `RATE_LIMIT`")
    WINDOW = count(
        256,
        "Messages of the inbox, or of one topic, that are on their way to a socket. More than that "
        "wait in the stream",
    )
    SOCKET_WINDOW = count(
        1024,
        "The same for the inbox and all topics of a socket together. Each of them that has "
        "messages may have an equal share, and always one. Large messages are limited by their "
        "bytes: at most 4 MiB and one message are on their way to a socket",
    )
    SEND_WINDOW = count(64, "Frames of one client that may wait until NATS has stored them")
    SEND_WINDOW_BYTES = count(
        1024 * 1024, "The same, by size. A larger frame goes alone", unit="bytes"
    )

    DELIVERING = Group("Delivery")
    PING_INTERVAL = Setting(
        25.0,
        "How often `wsgateway.v1` clients are pinged. Keep it below the idle timeout of every "
        "proxy in between",
        kind=float,
        valid=lambda v: 0 < v < MAX_PING,
        want=f"above 0 and below {MAX_PING}",
        unit="seconds",
    )
    PING_TIMEOUT = seconds(10.0, "How long a pong may take before the socket is closed")
    CURSOR_INTERVAL = seconds(
        1.0,
        "Shortest time between two writes of a cursor. What was delivered after the last one is "
        "delivered again after a crash",
    )
    SWEEP_INTERVAL = seconds(10.0, "How often a gateway looks for messages that it has missed")

    LAYER = Group("The channel layer")
    DURABLE_GROUPS: Setting[list[str]] = Setting(
        [],
        "Glob patterns of groups that are stored, besides those that name an inbox",
        kind=(list, tuple),
        valid=are_names,
        want="a list of glob patterns, for example ['chat.*']",
    )
    CHANNEL_MAX_BYTES = bytes_limit(
        "Size of what waits in normal channels. Above that, they are full"
    )
    BLOB_MAX_BYTES = bytes_limit("Size of the messages that are stored in parts")

    PRESENCE = Group("Presence")
    OFFLINE_GRACE = Setting(
        10.0,
        "How long a user must have no socket before `runevents` says that they went offline, and "
        "before clients that watch a topic hear that they left it",
        kind=float,
        valid=lambda v: 0 <= v <= MAX_SECONDS,
        want=f"0 or more, at most {MAX_SECONDS}",
        unit="seconds",
    )
    EVENTS_WEBHOOK: Setting[dict[str, Any]] = Setting(
        {},
        "Where `runevents` posts that sockets and users come and go: a dict with `url` and "
        "`secret`. [A webhook](../how-to/presence-events.md#a-webhook) lists the other options",
        kind=dict,
        valid=is_events_webhook,
        flaw=events_webhook_flaws,
        want="a dict, for example {'url': 'https://…', 'secret': 'whsec_…'}",
        is_secret=True,
    )
    MAY_WATCH = text(
        "",
        "Function that says whose presence a client may watch, as a dotted path. If it is empty, "
        "clients may not watch anyone",
    )
    MAX_WATCHES = count(100, "Users and topics whose presence one socket may watch", least=0)
    MAX_SUBSCRIPTIONS = count(
        1000,
        "Topics that one socket may read at the same time",
        least=0,
    )
    ROSTER_TTL = Setting(
        15.0,
        "How long a gateway that does not answer still counts. After that, presence treats it as "
        "gone",
        kind=float,
        valid=lambda v: 1 <= v <= 3600,
        want="1 to 3600",
        unit="seconds",
    )

    STOPPING = Group("Stopping a gateway")
    DRAIN_RATE = positive(
        500.0, "Sockets per second that a stopping gateway asks to reconnect elsewhere"
    )
    CLOSE_TIMEOUT = seconds(3.0, "Longest time that closing down may take")

    OBSERVING = Group("Metrics and traces")
    METRICS_TOKEN = text(
        "",
        "Token with which Prometheus may read `/metrics`. Metrics are off if this is empty and no "
        "networks are set either",
        is_secret=True,
    )
    METRICS_NETWORKS: Setting[list[str]] = Setting(
        [],
        "Networks from which anyone may read `/metrics` directly, without a token",
        kind=(list, tuple),
        valid=are_networks,
        flaw=network_flaws,
        want="a list of networks, for example ['10.0.0.0/8']",
    )
    CONTINUE_TRACES = Setting(
        True,
        "Whether clients' messages continue the traces that the clients name. If not, each begins "
        "a trace of its own with a link to the client's",
        kind=bool,
    )

    EMBEDDED = Group("The embedded server")
    EMBEDDED_STORE = text(
        "", "Folder of the server's store. If it is empty: `.nats` next to `manage.py`"
    )
    EMBEDDED_PORT = count(
        0, "Port of the server. 0 means 4222, or another port while that is taken", least=0
    )
    EMBEDDED_SYNC_INTERVAL = text(
        "always", "When the server calls fsync: `always`, or a duration such as `10s`"
    )

    # What Django itself knows
    @property
    def debug(self) -> bool:
        """Whether this is development."""
        return bool(django_settings.DEBUG)

    @property
    def allowed_hosts(self) -> list[str]:
        """ALLOWED_HOSTS."""
        return list(django_settings.ALLOWED_HOSTS)

    @property
    def asgi_application(self) -> str | None:
        """ASGI_APPLICATION."""
        return getattr(django_settings, "ASGI_APPLICATION", None)

    @property
    def channel_layers(self) -> Mapping[str, Any]:
        """CHANNEL_LAYERS; empty if it is not a dict, which Channels cannot read."""
        layers = getattr(django_settings, "CHANNEL_LAYERS", {})
        return layers if isinstance(layers, Mapping) else {}

    def is_installed(self, app: str) -> bool:
        """Say whether *app* is in INSTALLED_APPS; not before Django has loaded it."""
        return apps.apps_ready and apps.is_installed(app)

    def is_set(self, name: str) -> bool:
        """Say whether the project sets *name*, and not to nothing."""
        return getattr(django_settings, name, None) not in (None, "", [], ())

    def names_set(self) -> list[str]:
        """Return the name of every setting of the project, of Django and of all apps."""
        return sorted(name for name in dir(django_settings) if name.isupper())

    @property
    def root_urlconf(self) -> str | None:
        """ROOT_URLCONF."""
        return getattr(django_settings, "ROOT_URLCONF", None)

    @property
    def settings_module(self) -> str | None:
        """The module that holds the project's settings; None if they were made otherwise."""
        return getattr(django_settings, "SETTINGS_MODULE", None)

    @property
    def script_name(self) -> str:
        """FORCE_SCRIPT_NAME: the path that the site is below; empty if the server says so."""
        return django_settings.FORCE_SCRIPT_NAME or ""

    @property
    def max_body(self) -> int | None:
        """DATA_UPLOAD_MAX_MEMORY_SIZE: bytes of a request's body; None: any number."""
        return django_settings.DATA_UPLOAD_MAX_MEMORY_SIZE

    @property
    def session_cookie_name(self) -> str:
        """SESSION_COOKIE_NAME."""
        return str(django_settings.SESSION_COOKIE_NAME)

    @property
    def session_cookie_path(self) -> str:
        """SESSION_COOKIE_PATH."""
        return str(django_settings.SESSION_COOKIE_PATH)

    @property
    def session_engine(self) -> str:
        """SESSION_ENGINE, a dotted path."""
        return str(django_settings.SESSION_ENGINE)

    @property
    def session_cache(self) -> str:
        """SESSION_CACHE_ALIAS, where sessions are kept if their engine uses a cache."""
        return str(django_settings.SESSION_CACHE_ALIAS)

    @property
    def authentication_backends(self) -> list[str]:
        """AUTHENTICATION_BACKENDS, dotted paths."""
        return list(django_settings.AUTHENTICATION_BACKENDS)

    @property
    def embedded_store(self) -> Path:
        """The folder of the embedded server's store."""
        base = Path(getattr(django_settings, "BASE_DIR", None) or Path.cwd())
        return Path(self.EMBEDDED_STORE) if self.EMBEDDED_STORE else base / ".nats"


SETTINGS: dict[str, Setting[Any]] = {
    value.name: value for value in vars(Settings).values() if isinstance(value, Setting)
}
"""Every setting by its name in Django's settings."""

GROUPS: list[Group] = [value for value in vars(Settings).values() if isinstance(value, Group)]
"""Every group of settings, in the order in which the reference shows them."""

settings = Settings()


def nearest_setting(name: str) -> str | None:
    """Return the setting whose name *name* resembles; None without one."""
    names = {known.removeprefix(PREFIX): known for known in SETTINGS}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), names, n=1)
    return names[near[0]] if near else None


def _resemble(names: tuple[str, str]) -> bool:
    return difflib.SequenceMatcher(None, *names).ratio() >= 0.9


def misspelt_setting(name: str) -> str | None:
    """Return the setting that is meant by a name without our prefix; None for another app's."""
    if name in SETTINGS or name.startswith(PREFIX):
        return None
    if name in ("NATS_URL", "NATS_SERVERS"):
        return "NATS_BROKER_URL"
    for known in SETTINGS:
        pairs = (name, known), (name.removesuffix("_URL"), known.removesuffix("_URL"))
        if not known.startswith(PREFIX) and any(map(_resemble, pairs)):
            return known
    # Our prefix with a typo in it. Without the W, it may be another's gateway
    first = name.partition("_")[0]
    is_prefix = name.replace("_", "").startswith("WSGATEWAY") or (
        first.startswith("W") and difflib.get_close_matches(first, ["WSGATEWAY"], cutoff=0.88)
    )
    near = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.85) if is_prefix else []
    return near[0] if near else None
