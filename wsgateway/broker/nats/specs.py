"""The streams that the settings want, and how a real one may differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsgateway.broker.nats.limits import AUTOMATIC
from wsgateway.declared import declared_services
from wsgateway.protocol.subjects import Subjects, Topic, encode_token
from wsgateway.retention import retention_of

if TYPE_CHECKING:
    from wsgateway.conf import Settings

__all__ = [
    "ESSENTIAL",
    "FIXED",
    "NANO",
    "OWNER",
    "StreamSpec",
    "blob_stream",
    "channel_stream",
    "topic_stream",
    "wanted_streams",
]

ESSENTIAL = ("subjects", "retention", "republish", "allow_direct", "allow_msg_ttl")
"""Without these the gateway would lose messages or not work."""
FIXED = ("retention", "storage")
"""What the server does not change on an existing stream."""
SETTING_OF = {
    "INBOX": {
        "max_age": "INBOX_MAX_AGE",
        "max_msgs_per_subject": "INBOX_MAX_MESSAGES",
        "max_bytes": "INBOX_MAX_BYTES",
    },
    "SEND": {
        "max_age": "SEND_MAX_AGE",
        "max_msgs": "SEND_MAX_MESSAGES",
        "max_msgs_per_subject": "SEND_MAX_MESSAGES_PER_USER",
        "max_bytes": "SEND_MAX_BYTES",
    },
    "DEAD": {"max_age": "DEAD_MAX_AGE", "max_bytes": "DEAD_MAX_BYTES"},
    "CURSOR": {"max_age": "CURSOR_MAX_AGE", "max_bytes": "CURSOR_MAX_BYTES"},
    "TRIES": {"max_age": "SEND_MAX_AGE", "max_bytes": "CURSOR_MAX_BYTES"},
    "ROSTER": {"max_age": "ROSTER_TTL"},
    "CHANNEL": {"max_bytes": "CHANNEL_MAX_BYTES"},
    "BLOB": {"max_bytes": "BLOB_MAX_BYTES"},
}
"""Which setting a field comes from, by family."""
SETTING_OF_ALL = {
    "duplicate_window": "DUPLICATE_WINDOW",
    "num_replicas": "REPLICAS",
    "storage": "STORAGE",
}
"""The same, in every family."""
LIMIT_OF_TOPICS = {
    "max_age": "max_age",
    "max_msgs_per_subject": "max_messages",
    "max_bytes": "max_bytes",
}
"""Which key of an entry of ``WSGATEWAY_TOPICS`` a field comes from."""
WANTED_BY = {"CHANNEL": "the layer's capacity", "BLOB": "WSGATEWAY_INBOX_MAX_AGE"}
"""What asks for the limits that grow, by family."""
OWNER = "wsgateway.prefix"
"""In a stream's metadata: the prefix of the installation that it belongs to."""
NANO = 1_000_000_000
ROSTER_BYTES = 1024 * 1024
"""Room for some 2,500 processes."""
MARK_BYTES = 64 * 1024
"""Of a stream that stays empty; some accounts want a limit of each stream."""


@dataclass(frozen=True)
class StreamSpec:
    """One stream as the settings want it.

    Attributes:
        config: The fields that matter, as in the JetStream API (durations in nanoseconds).
        family: Which settings it comes from, for messages; see `SETTING_OF`.
        service: Whose queue, or topics, it holds; None: another stream, or the queue that all
            share.
        grows: Limits of a stream that is made when a layer needs it: layers differ, and the largest
            limit counts.
    """

    config: dict[str, Any] = field(hash=False)
    family: str
    service: str | None = None
    grows: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The stream's name."""
        return str(self.config["name"])

    def differences(self, real: dict[str, Any]) -> list[str]:
        """Return the fields in which *real* (a config from STREAM.INFO) differs."""
        return [
            key
            for key, value in self.config.items()
            if _differs(key, real.get(key), value) and not self._suffices(key, real)
        ]

    def _suffices(self, key: str, real: dict[str, Any]) -> bool:
        """Say whether a limit that may only grow is as large as it is wanted."""
        return key in self.grows and not 0 < (real.get(key) or 0) < self.config[key]

    def changed(self, real: dict[str, Any]) -> dict[str, Any]:
        """Return *real* with what the settings want; what they do not mention stays."""
        metadata = {**(real.get("metadata") or {}), **self.config["metadata"]}
        kept = {key: real[key] for key in self.grows if self._suffices(key, real)}
        return {**real, **self.config, **kept, "metadata": metadata}

    def describe(self, name: str, real: dict[str, Any]) -> str:
        """Return a sentence about the differing field *name*, with the cure."""
        have, want = _show(name, real.get(name)), _show(name, self.config[name])
        if name == "max_bytes" and self.config[name] == AUTOMATIC:
            want = "a limit"
        if name in FIXED:
            cure = (
                "the server cannot change that: back the stream up and delete it, "
                "or use another WSGATEWAY_PREFIX"
            )
        elif name in self.grows:
            cure = f"raise it with the nats command line, or lower {WANTED_BY[self.family]}"
        else:
            cure = 'run "manage.py setup_streams"'
        if setting := self.setting_of(name):
            cure += f" or change {setting}"
        return f"stream {self.name!r} has {name} {have}, settings want {want}; {cure}"

    def setting_of(self, name: str) -> str | None:
        """Return which setting the field *name* comes from; None if it is always the same."""
        window = self.config.get("duplicate_window")
        if name == "duplicate_window" and window == self.config.get("max_age"):
            name = "max_age"  # ids are never remembered for longer
        if self.family == "TOPIC" and name in LIMIT_OF_TOPICS:
            return f"WSGATEWAY_TOPICS[{self.service!r}][{LIMIT_OF_TOPICS[name]!r}]"
        setting = SETTING_OF.get(self.family, {}).get(name) or SETTING_OF_ALL.get(name)
        return setting and f"WSGATEWAY_{setting}"


def _differs(key: str, have: Any, want: Any) -> bool:
    if key == "max_bytes" and want == AUTOMATIC:  # any limit will do
        return (have or -1) < 0
    if key == "metadata":  # the server and operators have theirs
        return not want.items() <= (have or {}).items()
    return bool(_norm(have) != _norm(want))


def _norm(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item not in (None, False, "")}
    return value or None


def _show(name: str, value: Any) -> str:
    if name in ("max_age", "duplicate_window") and isinstance(value, int):
        return f"{value / NANO:g} s"
    return repr(value)


def wanted_streams(subjects: Subjects, settings: Settings) -> list[StreamSpec]:
    """Return every stream that *settings* want; the inboxes' first.

    Raises:
        NameRefused: A service is declared that cannot have a stream.
    """
    return [
        _inboxes(subjects, settings),
        _dead_letters(subjects, settings),
        _cursors(subjects, settings),
        _tries(subjects, settings),
        _roster(subjects, settings),
        *_queues(subjects, settings),
        *_topics(subjects, settings),
        channel_stream(subjects, settings, 1),
        blob_stream(subjects, settings, 1),
    ]


def _config(
    subjects: Subjects, settings: Settings, name: str, max_age: float | None = None
) -> dict[str, Any]:
    """Return what all streams have in common, and the ages."""
    config: dict[str, Any] = {
        "name": name,
        "allow_direct": True,
        "storage": settings.STORAGE,
        "num_replicas": settings.REPLICAS,
        "metadata": {OWNER: subjects.prefix},
    }
    if max_age is not None:  # the server refuses to remember ids for longer than the messages
        window = min(settings.DUPLICATE_WINDOW, max_age)
        config |= {"max_age": int(max_age * NANO), "duplicate_window": int(window * NANO)}
    return config


def _inboxes(subjects: Subjects, settings: Settings) -> StreamSpec:
    recv, live = subjects.all_of("recv"), f"{subjects.prefix}.live"
    config = {
        **_config(subjects, settings, subjects.stream("recv"), settings.INBOX_MAX_AGE),
        "subjects": [recv],
        "retention": "limits",
        # Each inbox drops its own oldest message all the same, at its limit of messages
        "discard": "new",
        "max_msgs_per_subject": settings.INBOX_MAX_MESSAGES,
        "max_bytes": settings.INBOX_MAX_BYTES,
        "allow_msg_ttl": True,
        "republish": {
            "src": recv,
            "dest": f"{live}.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}",
        },
    }
    return StreamSpec(config, "INBOX")


def _dead_letters(subjects: Subjects, settings: Settings) -> StreamSpec:
    config = {
        **_config(subjects, settings, subjects.stream("dead"), settings.DEAD_MAX_AGE),
        "subjects": [subjects.all_of("dead")],
        "retention": "limits",
        "discard": "old",
        "max_bytes": settings.DEAD_MAX_BYTES,
    }
    return StreamSpec(config, "DEAD")


def _cursors(subjects: Subjects, settings: Settings) -> StreamSpec:
    bucket = f"{subjects.upper}_CURSORS"
    config = {
        **_config(subjects, settings, f"KV_{bucket}", settings.CURSOR_MAX_AGE),
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "discard": "new",
        "max_bytes": settings.CURSOR_MAX_BYTES,
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
    }
    return StreamSpec(config, "CURSOR")


def _tries(subjects: Subjects, settings: Settings) -> StreamSpec:
    """Small, and gone with its message; so the oldest goes first, and nothing is refused."""
    config = {
        **_config(subjects, settings, subjects.bucket("tries"), settings.SEND_MAX_AGE),
        "subjects": [f"$KV.{subjects.upper}_TRIES.>"],
        "retention": "limits",
        "discard": "old",
        "max_bytes": settings.CURSOR_MAX_BYTES,
        "max_msgs_per_subject": 1,
    }
    return StreamSpec(config, "TRIES")


def _roster(subjects: Subjects, settings: Settings) -> StreamSpec:
    """Entries of processes that do not refresh them go by their age."""
    config = {
        **_config(subjects, settings, subjects.bucket("roster"), settings.ROSTER_TTL),
        "subjects": [f"$KV.{subjects.upper}_ROSTER.>"],
        "retention": "limits",
        "discard": "old",
        "max_bytes": ROSTER_BYTES,
        "max_msgs_per_subject": 1,
    }
    return StreamSpec(config, "ROSTER")


def _queues(subjects: Subjects, settings: Settings) -> list[StreamSpec]:
    """Return the streams that keep what clients send."""
    declared = declared_services()
    services = [None] if declared.is_open else sorted(declared.services | declared.queues)
    return [_queue(subjects, settings, service) for service in services]


def _queue(subjects: Subjects, settings: Settings, service: str | None) -> StreamSpec:
    name = subjects.stream("send") if service is None else subjects.queue(service)
    config = {
        **_config(subjects, settings, name, settings.SEND_MAX_AGE),
        "subjects": [subjects.all_of("send", service)],
        "retention": "workqueue",
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs": settings.SEND_MAX_MESSAGES,
        "max_msgs_per_subject": settings.SEND_MAX_MESSAGES_PER_USER,
        "max_bytes": settings.SEND_MAX_BYTES,
    }
    return StreamSpec(config, "SEND", service)


def _topics(subjects: Subjects, settings: Settings) -> list[StreamSpec]:
    """Return the streams of the services that have topics."""
    declared = declared_services()
    durable = [topic_stream(subjects, settings, service) for service in sorted(declared.topics)]
    return durable + [_mark(subjects, settings, service) for service in sorted(declared.casts)]


def topic_stream(subjects: Subjects, settings: Settings, service: str) -> StreamSpec:
    """Return the stream of all topics of *service*."""
    keep, topics = retention_of(service, settings.TOPICS), subjects.all_of("topic", service)
    live = subjects.topic_live(Topic(service, "x"))[:-1]
    config = {
        **_config(subjects, settings, subjects.topic_stream(service), keep.max_age),
        "subjects": [topics],
        "retention": "limits",
        # As with inboxes: the limit of messages drops the topic's own oldest
        "discard": "new",
        "max_msgs_per_subject": keep.max_messages,
        "max_bytes": keep.max_bytes or settings.TOPIC_MAX_BYTES,
        "allow_msg_ttl": True,
        "republish": {"src": topics, "dest": f"{live}{{{{wildcard(1)}}}}"},
    }
    return StreamSpec(config, "TOPIC", service)


def _mark(subjects: Subjects, settings: Settings, service: str) -> StreamSpec:
    """Return the stream that tells others that a service has ephemeral topics.

    It takes a subject that nobody publishes on, so it stays empty.
    """
    config = {
        **_config(subjects, settings, subjects.cast_stream(service)),
        "subjects": [f"{subjects.prefix}.topic.{encode_token(service)}"],
        "retention": "limits",
        "max_bytes": MARK_BYTES,
    }
    return StreamSpec(config, "CAST", service)


def channel_stream(subjects: Subjects, settings: Settings, capacity: int) -> StreamSpec:
    """Return the stream of normal channels, each of which can hold *capacity* messages."""
    config = {
        **_config(subjects, settings, subjects.stream("chan")),
        "subjects": [f"{subjects.prefix}.chan.*"],
        "retention": "workqueue",
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": capacity,
        "max_bytes": settings.CHANNEL_MAX_BYTES,
        "allow_msg_ttl": True,
    }
    return StreamSpec(config, "CHANNEL", grows=("max_msgs_per_subject",))


def blob_stream(subjects: Subjects, settings: Settings, keep: int) -> StreamSpec:
    """Return the stream of parts of large messages, which keeps them for *keep* seconds."""
    config = {
        **_config(subjects, settings, subjects.stream("blob"), keep),
        "subjects": [f"{subjects.prefix}.blob.*"],
        "retention": "limits",
        "discard": "new",  # a claim without its parts would be worth nothing
        "max_bytes": settings.BLOB_MAX_BYTES,
        "allow_msg_ttl": True,
    }
    return StreamSpec(config, "BLOB", grows=("max_age", "duplicate_window"))
