"""Streams: created, checked, brought in line with the settings."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from wsgateway.broker.base import Progress, no_progress
from wsgateway.broker.nats.jetstream import (
    NO_PEERS,
    NOT_FOUND,
    SUBJECTS_OVERLAP,
    ApiError,
    JetStream,
)
from wsgateway.broker.nats.limits import AUTOMATIC, LEAST, Room, share_of
from wsgateway.broker.nats.migration import Migration
from wsgateway.broker.nats.specs import ESSENTIAL, FIXED, OWNER, StreamSpec
from wsgateway.exceptions import BrokerError, BrokerMisconfigured, QueueFull, reason_of
from wsgateway.protocol.subjects import Subjects

__all__ = ["RESTORED_AT", "TRIMMED_UNTIL", "Streams", "fill_level", "require_own"]

logger = logging.getLogger("wsgateway.broker")

TRIMMED_UNTIL = "wsgateway.trimmed-until"
"""In metadata: up to this sequence a limit lower than today's may have removed messages."""
RESTORED_AT = "wsgateway.restored-at"
"""In metadata: when an operator said that the stream comes from a backup, in nanoseconds.

It is part of the epoch, because servers before 2.15 restore the creation time, too."""
LOGS = ("INBOX", "TOPIC")
"""Families that clients have positions in."""
MOVE = 'run "manage.py setup_streams" to give each service its own stream'
WARN_LEVEL = 0.8
"""Part of its limit in bytes above which a stream is nearly full."""
FREE_VALID = 5.0
"""Seconds in which streams that are made get shares of the same free bytes."""


def _raises_limit(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a stream keeps messages from now on that it would have removed before."""
    pairs = [
        (before.get(name) or 0, after.get(name) or 0)
        for name in ("max_age", "max_msgs_per_subject")
    ]
    return any(old > 0 and (new <= 0 or new > old) for old, new in pairs)


def fill_level(info: Mapping[str, Any]) -> float:
    """Return how much of its limit in bytes a stream (its STREAM.INFO) uses; 0 without limit."""
    limit = info["config"].get("max_bytes", -1)
    return float(info["state"]["bytes"] / limit) if limit > 0 else 0.0


def require_own(real: Mapping[str, Any], prefix: str) -> None:
    """Refuse a stream of another installation: different prefixes can make the same name.

    Args:
        real: A config from STREAM.INFO.
        prefix: This installation's.

    Raises:
        BrokerMisconfigured: It is another's.
    """
    name, subjects = real["name"], list(real.get("subjects") or ())
    owner = (real.get("metadata") or {}).get(OWNER)
    if owner is None:
        shared_name = name.startswith("KV_")  # a bucket's subjects do not tell whose it is
        ours = shared_name or any(subject.startswith(f"{prefix}.") for subject in subjects)
        owner = prefix if ours else None
    if owner != prefix:
        whose = f"has the subjects {subjects}" if owner is None else f"has the prefix {owner!r}"
        raise BrokerMisconfigured(
            f"stream {name!r} belongs to another installation, which {whose}, but this one's "
            f"prefix is {prefix!r}; choose a WSGATEWAY_PREFIX that differs in more than case, "
            "'.', '-' and '_'"
        )


class Streams:
    """Creates, checks and updates streams.

    Args:
        jetstream: Where.
        subjects: Names below the installation's prefix.
        specs: What is wanted; the inboxes' stream first, which tells whose the others are. Those
            that may grow are made by `ensure`, when they are needed.
    """

    def __init__(
        self, jetstream: JetStream, subjects: Subjects, specs: Iterable[StreamSpec]
    ) -> None:
        self._jetstream = jetstream
        self._subjects = subjects
        wanted = list(specs)
        self.specs = [spec for spec in wanted if not spec.grows]
        """The streams that must be there."""
        self._when_needed = [spec for spec in wanted if spec.grows]
        self.watched: set[str] = set()
        """Other streams whose fill level counts: the layer's."""
        self._free: tuple[float, int] | None = None  # until when; bytes

    @property
    def patient(self) -> Streams:
        """The same, by way of `JetStream.patient`: an election delays it, and no more."""
        streams = Streams(self._jetstream.patient, self._subjects, self.wanted)
        streams.watched = self.watched
        return streams

    @property
    def wanted(self) -> list[StreamSpec]:
        """All of them, those that are made when they are needed included."""
        return [*self.specs, *self._when_needed]

    async def info(self, name: str) -> dict[str, Any] | None:
        """Return STREAM.INFO of *name*; None if there is no such stream."""
        try:
            return await self._jetstream.api(f"STREAM.INFO.{name}")
        except ApiError as exc:
            if exc.err_code == NOT_FOUND:
                return None
            raise

    async def own_info(self, name: str) -> dict[str, Any] | None:
        """Return STREAM.INFO of *name*; None if there is no such stream.

        Raises:
            BrokerMisconfigured: It belongs to another installation.
        """
        info = await self.info(name)
        if info is not None:
            require_own(info["config"], self._subjects.prefix)
        return info

    async def infos(self) -> dict[str, dict[str, Any] | None]:
        """Return STREAM.INFO of every stream that must be there.

        Raises:
            BrokerMisconfigured: One belongs to another installation.
        """
        names = [spec.name for spec in self.specs]
        infos = [await self.own_info(name) for name in names[:1]]
        infos += await asyncio.gather(*(self.own_info(name) for name in names[1:]))
        return dict(zip(names, infos, strict=True))

    async def ensure_all(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Do what `ensure` does with every stream that must be there.

        Returns:
            STREAM.INFO by stream name, and the names of those that were created.

        Raises:
            BrokerMisconfigured: As `ensure`.
        """
        found = {}
        infos = await self.infos()
        for spec in self.specs:
            info = infos[spec.name] or await self._create_unless_shared(spec)
            if info is not None:
                found[spec.name] = await self._as_wanted(spec, info)
        return found, [name for name in found if infos[name] is None]

    async def ensure(self, spec: StreamSpec) -> dict[str, Any]:
        """Create a stream, or check the one that is there; return its STREAM.INFO.

        Only what `StreamSpec.grows` names is changed. Another limit that differs is a logged
        warning.

        Raises:
            BrokerMisconfigured: It differs in what we cannot do without, or belongs to another
                installation.
        """
        info = await self.own_info(spec.name) or await self.create(spec)
        self.watched.add(spec.name)
        return await self._as_wanted(spec, info)

    async def _as_wanted(self, spec: StreamSpec, info: dict[str, Any]) -> dict[str, Any]:
        if spec.grows:
            info = await self._grow(spec, info)
        self._check(spec, info["config"])
        return info

    async def _grow(self, spec: StreamSpec, info: dict[str, Any]) -> dict[str, Any]:
        """Raise the limits that may only grow, and allow what is wanted to be allowed."""
        real = info["config"]
        different = spec.differences(real)
        changes = {
            key: spec.config[key]
            for key in different
            if key in spec.grows or key.startswith("allow_")
        }
        if "max_bytes" in different:
            changes["max_bytes"] = await self.limit_in_bytes(spec, info)
        if not changes:
            return info
        try:
            return await self._jetstream.api(f"STREAM.UPDATE.{spec.name}", {**real, **changes})
        except BrokerError as exc:
            needed = [spec.describe(key, real) for key in changes if key in spec.grows]
            if needed and isinstance(exc, ApiError):
                text = f"{'; '.join(needed)}; the server answered: {exc}"
                raise BrokerMisconfigured(text) from exc
            if needed:
                raise
            # We may not be permitted
            text = "leaving stream %r as it is: %s"
            logger.info(text, spec.name, reason_of(exc), extra={"stream": spec.name})
            return info

    def _check(self, spec: StreamSpec, real: dict[str, Any]) -> None:
        if spec.family == "SEND" and self._is_moving(spec, real):
            text = "stream %r has not been moved yet: %s"
            logger.warning(text, spec.name, MOVE, extra={"stream": spec.name})
            return
        different = spec.differences(real)
        essential = [key for key in different if key in ESSENTIAL]
        if essential:
            raise BrokerMisconfigured("; ".join(spec.describe(key, real) for key in essential))
        for key in different:
            if key != "metadata":
                logger.warning("%s", spec.describe(key, real), extra={"stream": spec.name})

    def _is_moving(self, spec: StreamSpec, real: dict[str, Any]) -> bool:
        """Say whether a service's queue is still being filled by `Migration`."""
        return bool(real["subjects"] == [self._subjects.all_of("move", spec.service)])

    async def _create_unless_shared(self, spec: StreamSpec) -> dict[str, Any] | None:
        """Create a stream; return None while the shared stream of 0.1 takes its subjects."""
        try:
            return await self.create(spec)
        except BrokerMisconfigured as exc:
            cause = exc.__cause__
            overlaps = isinstance(cause, ApiError) and cause.err_code == SUBJECTS_OVERLAP
            shared = self._subjects.stream("send")
            is_queue = spec.family == "SEND" and spec.service is not None
            if not (is_queue and overlaps) or await self.own_info(shared) is None:
                raise
            text = "stream %r still takes what %r should: %s"
            logger.warning(text, shared, spec.name, MOVE, extra={"stream": shared})
            return None

    async def setup(self, progress: Progress = no_progress) -> list[str]:
        """Create what is missing and bring the rest in line with the settings. Idempotent.

        Args:
            progress: Told how far it is.

        Returns:
            One line a stream: what was done.

        Raises:
            BrokerMisconfigured: The server cannot change what differs. Nothing was changed.
        """
        infos = await self.infos()
        others = {spec.name: await self.own_info(spec.name) for spec in self._when_needed}
        impossible = [
            spec.describe(key, info["config"])
            for spec in self.wanted
            if (info := infos.get(spec.name) or others.get(spec.name)) is not None
            for key in spec.differences(info["config"])
            if key in FIXED
        ]
        if impossible:
            raise BrokerMisconfigured("; ".join(impossible))
        lines = []
        if self._subjects.stream("send") not in infos:
            migration = Migration(self._jetstream, self._subjects, self, progress)
            lines = await migration.run(self.specs)
            infos = await self.infos() if lines else infos
        made = [spec for spec in self._when_needed if others[spec.name] is not None]
        wanted = [*self.specs, *made]
        for number, spec in enumerate(wanted):
            progress("setting up streams", number, len(wanted))
            lines.append(await self._bring_in_line(spec, {**others, **infos}[spec.name]))
        return lines

    async def mark_restored(self) -> list[str]:
        """Give the inboxes and all topics a new epoch; return a line each for the operator."""
        mark = {RESTORED_AT: str(time.time_ns())}
        lines = []
        for spec in self.specs:
            if spec.family not in LOGS:
                continue
            config = (await self._jetstream.api(f"STREAM.INFO.{spec.name}"))["config"]
            config["metadata"] = {**(config.get("metadata") or {}), **mark}
            await self._jetstream.api(f"STREAM.UPDATE.{spec.name}", config)
            text = "has a new epoch, so no position or cursor from before counts"
            lines.append(f"{spec.name}: {text}")
        return lines

    async def _bring_in_line(self, spec: StreamSpec, info: dict[str, Any] | None) -> str:
        if info is None:
            await self.create(spec)
            return f"{spec.name}: created"
        different = spec.differences(info["config"])
        note = "" if fill_level(info) < WARN_LEVEL else f", {fill_level(info):.0%} full"
        if not different:
            return f"{spec.name}: up to date{note}"
        try:
            config = await self.update(spec)
        except ApiError as exc:
            texts = "; ".join(spec.describe(key, info["config"]) for key in different)
            raise BrokerMisconfigured(f"{texts}; the server answered: {exc}") from exc
        kept = [spec.describe(key, config) for key in spec.differences(config)]
        return "; ".join([f"{spec.name}: changed {', '.join(different)}{note}", *kept])

    async def _size(self, spec: StreamSpec) -> int:
        """Return the limit in bytes of a stream whose setting leaves that to us."""
        loop = asyncio.get_running_loop()
        if self._free is None or self._free[0] < loop.time():
            storage, replicas = spec.config["storage"], spec.config["num_replicas"]
            free = await Room(self._jetstream, self._subjects).free(storage, replicas)
            self._free = (loop.time() + FREE_VALID, free)
        family = "CURSOR" if spec.family == "TRIES" else spec.family
        count = sum(1 for other in self.specs if other.family == spec.family)
        return share_of(family, count, self._free[1])

    async def _smaller(self, spec: StreamSpec, size: int) -> int:
        """Return a limit below *size*, now that others have taken the room."""
        self._free = None
        return max(LEAST, min(await self._size(spec), size // 2))

    async def limit_in_bytes(self, spec: StreamSpec, info: Mapping[str, Any]) -> int:
        """Return what a stream that exists should have; never less than it holds, if it is ours."""
        wanted, real = int(spec.config["max_bytes"]), int(info["config"]["max_bytes"])
        if wanted != AUTOMATIC:
            return wanted
        used = info["state"]["bytes"]
        return real if real > 0 else max(await self._size(spec), used + used // 4 + LEAST)

    async def update(self, spec: StreamSpec) -> dict[str, Any]:
        """Give a stream that exists the configuration that is wanted; return what it has then.

        Lowering the limit per user would make some servers drop what exceeds it, so it stays
        above what is stored.
        """
        info = await self._jetstream.api(f"STREAM.INFO.{spec.name}")
        config = spec.changed(info["config"])
        config["max_bytes"] = await self.limit_in_bytes(spec, info)
        if spec.family == "SEND":
            config.pop("subject_transform", None)  # of `Migration`
            most = await self._most_per_subject(spec.name)
            if most > config["max_msgs_per_subject"]:
                config["max_msgs_per_subject"] = 2 * most
        name = f"STREAM.UPDATE.{spec.name}"
        answer = await self._jetstream.api(name, config)
        if _raises_limit(info["config"], config):
            # What the old limit removed is not to be seen in the new one: see `recovery`.
            mark = {TRIMMED_UNTIL: str(answer["state"]["last_seq"])}
            config["metadata"] = {**(config.get("metadata") or {}), **mark}
            answer = await self._jetstream.api(name, config)
        return dict(answer["config"])

    async def _most_per_subject(self, name: str) -> int:
        """Return how many messages the subject has that has most."""
        most, offset = 0, 0
        while True:
            request = {"subjects_filter": ">", "offset": offset}
            info = await self._jetstream.api(f"STREAM.INFO.{name}", request)
            page: dict[str, int] = info["state"].get("subjects") or {}
            most, offset = max([most, *page.values()]), offset + len(page)
            if not page or offset >= info["state"].get("num_subjects", 0):
                return most

    async def create(self, spec: StreamSpec) -> dict[str, Any]:
        """Create a stream, or find that another process was faster; return STREAM.INFO.

        Raises:
            BrokerMisconfigured: The server refuses it.
            BrokerUnavailable: No answer in time, or too few servers are online now.
        """
        config = dict(spec.config)
        is_ours = config.get("max_bytes") == AUTOMATIC
        if is_ours:
            config["max_bytes"] = await self._size(spec)
        while True:
            try:
                return await self._jetstream.api(f"STREAM.CREATE.{spec.name}", config)
            except QueueFull as exc:
                if not is_ours or config["max_bytes"] <= LEAST:
                    raise BrokerMisconfigured(
                        f"cannot create stream {spec.name!r} of {config.get('max_bytes')} bytes: "
                        f"{exc}; make room, or lower {spec.setting_of('max_bytes')}"
                    ) from exc
                config["max_bytes"] = await self._smaller(spec, config["max_bytes"])
            except ApiError as exc:
                info = await self.own_info(spec.name)
                if info is not None:
                    return info
                if is_ours and exc.lacks_room and config["max_bytes"] > LEAST:
                    config["max_bytes"] = await self._smaller(spec, config["max_bytes"])
                    continue
                cure = ""
                if exc.err_code == SUBJECTS_OVERLAP:
                    cure = f"; find the stream that takes {spec.config['subjects']}, and delete it"
                if exc.err_code == NO_PEERS:
                    setting, count = spec.setting_of("num_replicas"), config["num_replicas"]
                    cure = f"; {setting} wants {count} servers with room, so add some or lower it"
                raise BrokerMisconfigured(
                    f"cannot create stream {spec.name!r}: {exc}{cure}"
                ) from exc
