"""The streams that the settings want, and their difference to the real ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError, JetStream
from wsgateway.exceptions import BrokerMisconfigured
from wsgateway.subjects import Subjects

__all__ = ["StreamSpec", "Streams", "wanted_streams"]

logger = logging.getLogger("wsgateway.broker")

ESSENTIAL = ("subjects", "retention", "republish", "allow_direct", "allow_msg_ttl")
"""Without these the gateway would lose messages or not work."""
FIXED = ("retention", "storage")
"""What the server does not change on an existing stream."""
SETTING_OF = {
    "max_age": "_MAX_AGE",
    "max_msgs_per_subject": "_MAX_MESSAGES",
    "max_msgs": "_MAX_MESSAGES",
    "max_bytes": "_MAX_BYTES",
}
NANO = 1_000_000_000


@dataclass(frozen=True)
class StreamSpec:
    """One stream as the settings want it.

    Attributes:
        config: The fields that matter, as in the JetStream API (durations in nanoseconds).
        family: Prefix of its settings, for messages: ``INBOX``, ``SEND`` …
    """

    config: dict[str, Any] = field(hash=False)
    family: str

    @property
    def name(self) -> str:
        """The stream's name."""
        return str(self.config["name"])

    def differences(self, real: dict[str, Any]) -> list[str]:
        """Return the fields in which *real* (a config from STREAM.INFO) differs."""
        return [key for key, value in self.config.items() if _norm(real.get(key)) != _norm(value)]

    def describe(self, name: str, real: dict[str, Any]) -> str:
        """Return a sentence about the differing field *name*, with the cure."""
        have, want = _show(name, real.get(name)), _show(name, self.config[name])
        if name in FIXED:
            cure = (
                "the server cannot change that: back the stream up and delete it, "
                "or use another WSGATEWAY_PREFIX"
            )
        else:
            cure = 'run "manage.py setup_streams"'
            if name in SETTING_OF:
                cure += f" or change WSGATEWAY_{self.family}{SETTING_OF[name]}"
        return f"stream {self.name!r} has {name} {have}, settings want {want}; {cure}"


def _norm(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item not in (None, False, "")}
    return value or None


def _show(name: str, value: Any) -> str:
    if name in ("max_age", "duplicate_window") and isinstance(value, int):
        return f"{value / NANO:g} s"
    return repr(value)


def wanted_streams(subjects: Subjects, settings: Any) -> list[StreamSpec]:
    """Return every stream that *settings* (a `wsgateway.conf.Settings`) want."""
    common = {"storage": settings.STORAGE, "num_replicas": settings.REPLICAS}
    window = min(settings.DUPLICATE_WINDOW, settings.INBOX_MAX_AGE, settings.SEND_MAX_AGE)
    duplicates = {"duplicate_window": int(window * NANO)}
    recv, live = subjects.all_of("recv"), f"{subjects.prefix}.live"
    inbox = {
        "name": subjects.stream("recv"),
        "subjects": [recv],
        "retention": "limits",
        "discard": "old",
        "max_age": int(settings.INBOX_MAX_AGE * NANO),
        "max_msgs_per_subject": settings.INBOX_MAX_MESSAGES,
        "max_bytes": settings.INBOX_MAX_BYTES,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "republish": {
            "src": recv,
            "dest": f"{live}.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}",
        },
        **duplicates,
        **common,
    }
    send = {
        "name": subjects.stream("send"),
        "subjects": [subjects.all_of("send")],
        "retention": "workqueue",
        "discard": "new",
        "max_age": int(settings.SEND_MAX_AGE * NANO),
        "max_msgs": settings.SEND_MAX_MESSAGES,
        "max_bytes": settings.SEND_MAX_BYTES,
        "allow_direct": True,
        **duplicates,
        **common,
    }
    dead = {
        "name": subjects.stream("dead"),
        "subjects": [subjects.all_of("dead")],
        "retention": "limits",
        "discard": "old",
        "max_age": int(settings.DEAD_MAX_AGE * NANO),
        "allow_direct": True,
        **common,
    }
    bucket = f"{subjects.upper}_CURSORS"
    cursors = {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "discard": "new",
        "max_age": int(settings.CURSOR_MAX_AGE * NANO),
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
        "max_age": int(settings.SEND_MAX_AGE * NANO),
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        **common,
    }
    return [
        StreamSpec(inbox, "INBOX"),
        StreamSpec(send, "SEND"),
        StreamSpec(dead, "DEAD"),
        StreamSpec(cursors, "CURSOR"),
        StreamSpec(tries, "SEND"),
    ]


class Streams:
    """Creates, checks and updates streams.

    Args:
        jetstream: Where.
        specs: What is wanted.
    """

    def __init__(self, jetstream: JetStream, specs: Iterable[StreamSpec]) -> None:
        self._jetstream = jetstream
        self.specs = list(specs)

    async def info(self, name: str) -> dict[str, Any] | None:
        """Return STREAM.INFO of *name*; None if there is no such stream."""
        try:
            return await self._jetstream.api(f"STREAM.INFO.{name}")
        except ApiError as exc:
            if exc.err_code == NOT_FOUND:
                return None
            raise

    async def ensure(self) -> dict[str, dict[str, Any]]:
        """Create what is missing and check the rest; change no existing stream.

        A limit that differs is a logged warning.

        Returns:
            STREAM.INFO by stream name.

        Raises:
            BrokerMisconfigured: A stream differs in what the gateway cannot do without.
        """
        found = {}
        for spec in self.specs:
            info = await self.info(spec.name)
            if info is None:
                info = await self._create(spec)
            real = info["config"]
            different = spec.differences(real)
            essential = [key for key in different if key in ESSENTIAL]
            if essential:
                raise BrokerMisconfigured("; ".join(spec.describe(key, real) for key in essential))
            for key in different:
                logger.warning("%s", spec.describe(key, real))
            found[spec.name] = info
        return found

    async def setup(self) -> list[str]:
        """Create what is missing and bring the rest in line with the settings. Idempotent.

        Returns:
            One line a stream: what was done.

        Raises:
            BrokerMisconfigured: The server cannot change what differs. Nothing was changed.
        """
        infos = {spec.name: await self.info(spec.name) for spec in self.specs}
        impossible = [
            spec.describe(key, info["config"])
            for spec in self.specs
            if (info := infos[spec.name]) is not None
            for key in spec.differences(info["config"])
            if key in FIXED
        ]
        if impossible:
            raise BrokerMisconfigured("; ".join(impossible))
        return [await self._bring_in_line(spec, infos[spec.name]) for spec in self.specs]

    async def _bring_in_line(self, spec: StreamSpec, info: dict[str, Any] | None) -> str:
        if info is None:
            await self._create(spec)
            return f"{spec.name}: created"
        different = spec.differences(info["config"])
        if not different:
            return f"{spec.name}: up to date"
        try:
            await self._jetstream.api(
                f"STREAM.UPDATE.{spec.name}", {**info["config"], **spec.config}
            )
        except ApiError as exc:
            texts = "; ".join(spec.describe(key, info["config"]) for key in different)
            raise BrokerMisconfigured(f"{texts}; the server answered: {exc}") from exc
        return f"{spec.name}: changed {', '.join(different)}"

    async def _create(self, spec: StreamSpec) -> dict[str, Any]:
        try:
            return await self._jetstream.api(f"STREAM.CREATE.{spec.name}", spec.config)
        except ApiError as exc:
            info = await self.info(spec.name)  # another process may have been faster
            if info is not None:
                return info
            raise BrokerMisconfigured(f"cannot create stream {spec.name!r}: {exc}") from exc
