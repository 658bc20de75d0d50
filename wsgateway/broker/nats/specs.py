"""The streams that the settings want, and how a real one may differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wsgateway.broker.nats.limits import AUTOMATIC
from wsgateway.declared import Declared, declared_services
from wsgateway.protocol.subjects import Subjects

__all__ = ["ESSENTIAL", "FIXED", "NANO", "OWNER", "StreamSpec", "wanted_streams"]

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
OWNER = "wsgateway.prefix"
"""In a stream's metadata: the prefix of the installation that it belongs to."""
NANO = 1_000_000_000


@dataclass(frozen=True)
class StreamSpec:
    """One stream as the settings want it.

    Attributes:
        config: The fields that matter, as in the JetStream API (durations in nanoseconds).
        family: Which settings it comes from, for messages; see `SETTING_OF`.
        service: Whose queue it is; None: another stream, or the queue that all share.
    """

    config: dict[str, Any] = field(hash=False)
    family: str
    service: str | None = None

    @property
    def name(self) -> str:
        """The stream's name."""
        return str(self.config["name"])

    def differences(self, real: dict[str, Any]) -> list[str]:
        """Return the fields in which *real* (a config from STREAM.INFO) differs."""
        return [key for key, value in self.config.items() if _differs(key, real.get(key), value)]

    def changed(self, real: dict[str, Any]) -> dict[str, Any]:
        """Return *real* with what the settings want; what they do not mention stays."""
        metadata = {**(real.get("metadata") or {}), **self.config["metadata"]}
        return {**real, **self.config, "metadata": metadata}

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
        setting = SETTING_OF[self.family].get(name) or SETTING_OF_ALL.get(name)
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


def wanted_streams(subjects: Subjects, settings: Any) -> list[StreamSpec]:
    """Return every stream that *settings* (a `wsgateway.conf.Settings`) want; the inboxes' first.

    Raises:
        NameRefused: A service is declared that cannot have a stream.
    """
    declared = declared_services()
    common = {
        "storage": settings.STORAGE,
        "num_replicas": settings.REPLICAS,
        "metadata": {OWNER: subjects.prefix},
    }

    def ages(max_age: float) -> dict[str, int]:
        """The server refuses to remember ids for longer than the messages."""
        window = min(settings.DUPLICATE_WINDOW, max_age)
        return {"max_age": int(max_age * NANO), "duplicate_window": int(window * NANO)}

    recv, live = subjects.all_of("recv"), f"{subjects.prefix}.live"
    inbox = {
        "name": subjects.stream("recv"),
        "subjects": [recv],
        "retention": "limits",
        # Each inbox drops its own oldest message all the same, at its limit of messages
        "discard": "new",
        **ages(settings.INBOX_MAX_AGE),
        "max_msgs_per_subject": settings.INBOX_MAX_MESSAGES,
        "max_bytes": settings.INBOX_MAX_BYTES,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "republish": {
            "src": recv,
            "dest": f"{live}.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}",
        },
        **common,
    }
    send = {
        "retention": "workqueue",
        "discard": "new",
        "discard_new_per_subject": True,
        **ages(settings.SEND_MAX_AGE),
        "max_msgs": settings.SEND_MAX_MESSAGES,
        "max_msgs_per_subject": settings.SEND_MAX_MESSAGES_PER_USER,
        "max_bytes": settings.SEND_MAX_BYTES,
        "allow_direct": True,
        **common,
    }
    dead = {
        "name": subjects.stream("dead"),
        "subjects": [subjects.all_of("dead")],
        "retention": "limits",
        "discard": "old",
        **ages(settings.DEAD_MAX_AGE),
        "max_bytes": settings.DEAD_MAX_BYTES,
        "allow_direct": True,
        **common,
    }
    bucket = f"{subjects.upper}_CURSORS"
    cursors = {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "discard": "new",
        **ages(settings.CURSOR_MAX_AGE),
        "max_bytes": settings.CURSOR_MAX_BYTES,
        "max_msgs_per_subject": 1,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        **common,
    }
    tries = {  # small, and gone with its message; so the oldest goes first, and nothing is refused
        "name": subjects.bucket("tries"),
        "subjects": [f"$KV.{subjects.upper}_TRIES.>"],
        "retention": "limits",
        "discard": "old",
        **ages(settings.SEND_MAX_AGE),
        "max_bytes": settings.CURSOR_MAX_BYTES,
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        **common,
    }
    return [
        StreamSpec(inbox, "INBOX"),
        StreamSpec(dead, "DEAD"),
        StreamSpec(cursors, "CURSOR"),
        StreamSpec(tries, "TRIES"),
        *_queues(subjects, declared, send),
    ]


def _queues(subjects: Subjects, declared: Declared, config: dict[str, Any]) -> list[StreamSpec]:
    """Return the streams that keep what clients send."""
    if declared.is_open:
        names = {"name": subjects.stream("send"), "subjects": [subjects.all_of("send")]}
        return [StreamSpec({**config, **names}, "SEND")]
    specs = []
    for service in sorted(declared.services):
        names = {"name": subjects.queue(service), "subjects": [subjects.all_of("send", service)]}
        specs.append(StreamSpec({**config, **names}, "SEND", service))
    return specs
