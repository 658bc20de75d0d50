"""All settings: one typed property each, with default and unit, read on each access.

Only this module and `setting` read ``django.conf.settings``. Nothing is cached, so
``override_settings`` works. Durations are float seconds, sizes int bytes. A test checks
``docs/reference/settings.md`` against `SETTINGS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings

from wsgateway.protocol.v1 import MAX_PING
from wsgateway.setting import (
    MAX_INT,
    MAX_SECONDS,
    PREFIX,
    Setting,
    are_names,
    are_networks,
    are_origins,
    bytes_limit,
    count,
    network_flaws,
    origin_flaws,
    positive,
    text,
)

__all__ = ["SETTINGS", "Settings", "misspelt_setting", "nearest_setting", "settings"]


class Settings:
    """Typed view of the project's settings; see `SETTINGS` for the list."""

    BROKER = Setting(
        "nats",
        "Which broker: nats, or memory (one process, nothing kept; for tests)",
        kind=str,
        valid=lambda v: v in ("nats", "memory"),
        want="'nats' or 'memory'",
        name="PUBSUB_BROKER",
    )
    URL = Setting(
        "",
        "NATS servers, comma-separated URLs; empty: an embedded server, in development only",
        kind=str,
        name="NATS_BROKER_URL",
        is_secret=True,
    )
    PREFIX = text("ws", "First token(s) of every subject; names the streams too")

    # The connection to NATS
    NATS_USER = text("", "User name for NATS, unless the URL has one")
    NATS_PASSWORD = text("", "Password for NATS, unless the URL has one", is_secret=True)
    NATS_TOKEN = text("", "Token for NATS", is_secret=True)
    NATS_CREDENTIALS = text("", "Path of a .creds file (JWT and nkey seed)")
    NATS_NKEY_SEED = text("", "Path of a file that holds an nkey seed")
    NATS_TLS_CA = text("", "Path of the CA certificate that signed the servers' certificates")
    NATS_TLS_CERT = text("", "Path of the client's certificate")
    NATS_TLS_KEY = text("", "Path of the client's private key")
    NATS_TLS_HOSTNAME = text("", "Host name to expect in the servers' certificates")
    NATS_IGNORE_DISCOVERED = Setting(
        False,
        "Connect to the servers of NATS_BROKER_URL only, not to others that the cluster announces",
        kind=bool,
    )
    BROKER_TIMEOUT = positive(5.0, "Longest wait for an answer of the broker, seconds")
    PUBLISH_TIMEOUT = positive(
        25.0, "Longest wait until a message is stored, retries included, seconds"
    )
    CONNECT_TIMEOUT = positive(2.0, "Longest wait for one connection attempt, seconds")

    # Streams
    REPLICAS = Setting(
        1,
        "Copies of each stream; 3 in a cluster",
        kind=int,
        valid=lambda v: v in (1, 3, 5),
        want="1, 3 or 5",
    )
    STORAGE = Setting(
        "file",
        "Where streams live: file or memory",
        kind=str,
        valid=lambda v: v in ("file", "memory"),
        want="'file' or 'memory'",
    )
    INBOX_MAX_AGE = positive(7 * 86400.0, "How long a user's message is kept, seconds")
    INBOX_MAX_MESSAGES = count(10_000, "Messages kept per user; the oldest goes first")
    INBOX_MAX_BYTES = bytes_limit("Bytes of all inboxes; above, publishing is refused")
    SEND_MAX_AGE = positive(7 * 86400.0, "How long a client's message waits for a service, seconds")
    SEND_MAX_MESSAGES = count(1_000_000, "Client messages that may wait for one service")
    SEND_MAX_MESSAGES_PER_USER = count(
        10_000, "Client messages that may wait for one service from one user"
    )
    SEND_MAX_BYTES = bytes_limit("Bytes of client messages that may wait for one service")
    DEAD_MAX_BYTES = bytes_limit("Bytes of all dead letters; the oldest goes first")
    CURSOR_MAX_BYTES = bytes_limit("Bytes of all cursors")
    CHANNEL_MAX_BYTES = bytes_limit("Bytes in the layer's normal channels; above, they are full")
    BLOB_MAX_BYTES = bytes_limit("Bytes of the layer's messages that are stored in parts")
    DEAD_MAX_AGE = positive(30 * 86400.0, "How long a dead letter is kept, seconds")
    DUPLICATE_WINDOW = Setting(
        120.0,
        "How long a message id is remembered, seconds; never longer than a stream keeps messages",
        kind=float,
        valid=lambda v: 0.1 <= v <= MAX_SECONDS,  # the server's own limits
        want=f"0.1 or more, at most {MAX_SECONDS}",
    )
    CURSOR_MAX_AGE = positive(30 * 86400.0, "How long an unused device's cursor is kept, seconds")

    # Delivery
    CURSOR_INTERVAL = positive(1.0, "Cursors are written at most this often, seconds")
    SWEEP_INTERVAL = positive(10.0, "How often missed messages are looked for, seconds")
    WINDOW = count(256, "Messages in flight to one socket; more wait in the stream")
    SEND_WINDOW = count(64, "Client frames that may wait for the broker's acknowledgement")
    SEND_WINDOW_BYTES = count(1024 * 1024, "The same in bytes; a larger frame goes alone")
    MAX_MESSAGE_SIZE = count(1_000_000, "Largest websocket frame or payload, bytes")
    DRAIN_RATE = positive(
        500.0, "Sockets per second that a stopping gateway asks to come back elsewhere"
    )
    CLOSE_TIMEOUT = positive(3.0, "Longest time that closing down may take, seconds")
    ROSTER_TTL = Setting(
        15.0,
        "How long presence waits for a gateway that is silent before it counts as gone, seconds",
        kind=float,
        valid=lambda v: 1 <= v <= 3600,
        want="1 to 3600",
    )

    # Sockets
    IDENTITY = Setting(
        ["wsgateway.identity.SessionIdentity"],
        "Resolvers of a socket's identity, dotted paths, tried in order",
        kind=(list, tuple),
        valid=lambda v: bool(v) and all(isinstance(path, str) for path in v),
        want="a list of dotted paths, for example ['wsgateway.identity.SessionIdentity']",
    )
    SERVICES: Setting[list[str] | None] = Setting(
        None,
        "Services that clients may name; None: those that are declared; ['*']: any (not isolated)",
        kind=(list, tuple, type(None)),
        valid=lambda v: v is None or are_names(v),
        want="a list of names, for example ['orders']",
    )
    ALLOWED_ORIGINS: Setting[list[str] | None] = Setting(
        None,
        "Origins that browsers may connect from; None: hosts in ALLOWED_HOSTS; ['*']: any",
        kind=(list, tuple, type(None)),
        valid=lambda v: v is None or are_origins(v),
        flaw=origin_flaws,
        want="a list of origins such as 'https://example.com' or, with all subdomains, "
        "'.example.com'",
    )
    COOKIE_NAME = text("wsgateway", "Name of SignedCookieIdentity's cookie")
    TOKEN_PARAMETER = text("token", "Query parameter that TokenIdentity reads")
    TOKEN_MAX_AGE = positive(3600.0, "How long a signed token or cookie is valid, seconds")
    CONTINUE_TRACES = Setting(
        True,
        "Whether clients' messages continue the traces that the clients name; False: they begin "
        "traces of their own, with links to those",
        kind=bool,
    )
    REVALIDATE_INTERVAL = positive(
        60.0, "How often gateways ask whether open sockets' logins still hold, seconds"
    )
    MAX_DEVICES_PER_USER = count(
        100, "Devices of one user whose cursors are kept; the least recently used goes first"
    )
    MAX_CONNECTIONS_PER_USER = count(0, "Sockets of one user in one process; 0: any", least=0)
    RATE_LIMIT = Setting(
        2000.0,
        "Frames that a client may send per second, on average; 0: any",
        kind=float,
        valid=lambda v: 0 <= v <= MAX_INT,
        want=f"0 or more, at most {MAX_INT}",
    )
    RATE_BURST = count(20_000, "Frames that a client may send at once within RATE_LIMIT")
    OFFLINE_GRACE = Setting(
        10.0,
        "How long a user must have no socket before runevents says that they went offline, seconds",
        kind=float,
        valid=lambda v: 0 <= v <= MAX_SECONDS,
        want=f"0 or more, at most {MAX_SECONDS}",
    )
    MAY_WATCH = text(
        "", "Says whose presence a client may watch, dotted path of a function; empty: nobody's"
    )
    MAX_WATCHES = count(100, "Users whose presence one socket may watch", least=0)
    PING_INTERVAL = Setting(
        25.0,
        "How often wsgateway.v1 clients are pinged, seconds",
        kind=float,
        valid=lambda v: 0 < v < MAX_PING,
        want=f"above 0 and below {MAX_PING}",
    )
    PING_TIMEOUT = positive(10.0, "How long a pong may take, seconds")

    # Channel layer
    DURABLE_GROUPS: Setting[list[str]] = Setting(
        [],
        "Glob patterns of groups that are stored, besides those that name an inbox",
        kind=(list, tuple),
        valid=are_names,
        want="a list of glob patterns, for example ['chat.*']",
    )

    # Services
    SERVICES_MODULE = text("ws_services", "Module of each app that holds service handlers")
    MAX_DELIVER = count(5, "Tries that a client's message has before it is set aside")
    ACK_WAIT = positive(30.0, "How long a worker may be silent before redelivery, seconds")

    # Metrics
    METRICS_TOKEN = text(
        "",
        "Token with which Prometheus may read /metrics; empty, and no networks: metrics are off",
        is_secret=True,
    )
    METRICS_NETWORKS: Setting[list[str]] = Setting(
        [],
        "Networks from which anybody may read /metrics directly, without a token",
        kind=(list, tuple),
        valid=are_networks,
        flaw=network_flaws,
        want="a list of networks, for example ['10.0.0.0/8']",
    )

    # Embedded server
    EMBEDDED_STORE = text(
        "", "Folder of the embedded server's store; empty: .nats next to manage.py"
    )
    EMBEDDED_PORT = count(
        0, "Port of the embedded server; 0: 4222, or another one while that is taken", least=0
    )
    EMBEDDED_SYNC_INTERVAL = text(
        "always", "When the embedded server calls fsync: always, or a duration such as 10s"
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
    def script_name(self) -> str:
        """FORCE_SCRIPT_NAME: the path that the site is below; empty if the server says so."""
        return django_settings.FORCE_SCRIPT_NAME or ""

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
