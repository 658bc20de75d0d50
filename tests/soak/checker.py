"""What the ledgers of a run say about the promises. Pure.

Every message that somebody was told is stored must arrive; nothing may be stored twice or
overtake; and where a stream was replaced or lost its end, every client must have been told.
In the ledgers, a topic is a user with a dot in its name, whose devices are those that read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.soak.ledger import Entry

__all__ = ["Report", "check"]

RAW_BUFFERS = 16 * 1024 * 1024
"""Bytes that buffers of sockets and proxies may hold when a raw socket is cut."""
FORGETFUL = {"kill_server", "kill_leader", "kill_topic_leader", "lose_tail", "lose_topic_tail"}
"""Faults after which a client's repeated message may be stored, and handled, once more."""
QUEUED = 60.0
"""Seconds that a message may wait in a slow client's own queue, behind a later welcome."""
UserDevice = tuple[str, str]


@dataclass
class Report:
    """Counts, and a line for each broken promise."""

    faults: int = 0
    published: int = 0
    received: int = 0
    accepted: int = 0
    handled: int = 0
    raw_received: int = 0
    lost: int = 0
    duplicated: int = 0
    """Received again by the same device: after a restart, at least once allows that."""
    out_of_order: int = 0
    raw_lost: int = 0
    """Lost by raw sockets when a connection ended: allowed up to `RAW_BUFFERS` bytes."""
    excused: int = 0
    """Lost with a stream that was replaced or lost its end, and the client was told."""
    longest_stall: float = 0.0
    """Seconds that a message waited for a client that reads, at most."""
    broken: list[str] = field(default_factory=list)

    def break_promise(self, text: str) -> None:
        """Add a line; only so many, the counts tell the rest."""
        if len(self.broken) < 50:
            self.broken.append(text)

    def __str__(self) -> str:
        lines = [
            f"faults            {self.faults}",
            f"published         {self.published}, received {self.received}"
            f" (raw: {self.raw_received})",
            f"accepted          {self.accepted}, handled {self.handled}",
            f"lost              {self.lost}",
            f"lost with stream  {self.excused} (the client was told)",
            f"lost by cut raw   {self.raw_lost}",
            f"duplicated        {self.duplicated}",
            f"out of order      {self.out_of_order}",
            f"longest stall     {self.longest_stall:.1f} s",
            f"broken promises   {len(self.broken)}",
        ]
        return "\n".join([*lines, *(f"  {line}" for line in self.broken)])


def check(entries: Iterable[Entry]) -> Report:
    """Return what *entries*, of all ledgers and in any order, say."""
    by_kind: dict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry["at"]):
        by_kind[entry["kind"]].append(entry)
    report = Report(faults=len(by_kind["fault"]))
    losses = [
        Loss(e["since"], e["at"], e["stream"], e["told_from"]) for e in by_kind["stream lost"]
    ]
    published = _published(by_kind["published"], report)
    _check_down(by_kind, published, losses, report)
    _check_raw(by_kind, published, losses, report)
    _check_up(by_kind, losses, report)
    report.longest_stall = _longest_stall(by_kind["got"], published)
    for failure in by_kind["failed"]:
        report.break_promise(f"a process failed: {failure['what']}")
    return report


Published = dict[str, dict[int, Entry]]
Losses = list["Loss"]


class Loss(NamedTuple):
    """What was stored from *since* to *until* may be gone; clients hear of it from *told_from*."""

    since: float
    until: float
    stream: str
    told_from: float


def _published(entries: list[Entry], report: Report) -> Published:
    found: Published = defaultdict(dict)
    for entry in entries:
        found[entry["user"]][entry["n"]] = entry
        report.published += 1
    return found


def _excused(at: float, losses: Losses, stream: str) -> Loss | None:
    """Return how the stream lost a message stored at *at*; None: it did not."""
    for loss in losses:
        if loss.stream == stream and loss.since <= at <= loss.until:
            return loss
    return None


def _stream_of(user: str) -> str:
    return "topic" if "." in user else "recv"


# -- service to client -------------------------------------------------------------------


def _check_down(
    by_kind: dict[str, list[Entry]], published: Published, losses: Losses, report: Report
) -> None:
    got: dict[UserDevice, list[Entry]] = defaultdict(list)
    for entry in by_kind["got"]:
        got[entry["user"], entry["device"]].append(entry)
    told: dict[UserDevice, list[float]] = defaultdict(list)
    for entry in by_kind["welcome"]:
        if not entry["recovered"]:
            told[entry["user"], entry["device"]].append(entry["at"])
    devices = {
        (user, entry["device"])
        for entry in by_kind["begin"]
        if "device" in entry and not entry["device"].startswith("raw")
        for user in entry["users"]
    }
    for key in sorted(devices | set(got)):
        _check_device(key, got[key], published[key[0]], told[key], losses, report)


def _check_device(
    key: UserDevice,
    got: list[Entry],
    published: dict[int, Entry],
    told: list[float],
    losses: Losses,
    report: Report,
) -> None:
    seen: dict[int, Entry] = {}
    newest = -1
    last: Entry | None = None
    for entry in got:
        report.received += 1
        number = entry["n"]
        if number in seen:
            report.duplicated += 1
            _check_repeat(key, seen[number], entry, told, losses, report)
        elif number < newest:
            report.out_of_order += 1
            report.break_promise(f"{key} got {number} for the first time after {newest}")
        if last is not None and entry["offset"] <= last["offset"] and _same_life(last, entry, told):
            report.out_of_order += 1
            report.break_promise(f"{key}: offset {entry['offset']} after {last['offset']}")
        seen.setdefault(number, entry)
        newest, last = max(newest, number), entry
    for number, entry in published.items():
        if number in seen:
            continue
        loss = _excused(entry["at"], losses, _stream_of(key[0]))
        if loss is not None and any(at >= loss.told_from for at in told):
            report.excused += 1
        else:
            report.lost += 1
            silent = " and nobody told it" if loss is not None else ""
            report.break_promise(f"{key} never got {number}{silent}")


def _check_repeat(
    key: UserDevice, first: Entry, again: Entry, told: list[float], losses: Losses, report: Report
) -> None:
    same_offset = first["offset"] == again["offset"]
    if same_offset and _same_life(first, again, told):
        report.break_promise(f"{key} got {again['n']} twice in one life of its client")
    # A slow client may have had it in its own queue long after the stream was lost
    lost = _excused(first["stored"], losses, _stream_of(key[0])) is not None
    if not same_offset and first["epoch"] == again["epoch"] and not lost:
        report.break_promise(f"{key}: {again['n']} is stored twice")


def _same_life(first: Entry, second: Entry, told: list[float]) -> bool:
    """Whether one client got both, and offsets did not begin to mean something else between."""
    same = first["pid"] == second["pid"] and first["epoch"] == second["epoch"]
    since = first["at"] - (QUEUED if first["device"].endswith("slow") else 0.0)
    return same and not any(since <= at <= second["at"] for at in told)


def _check_raw(
    by_kind: dict[str, list[Entry]], published: Published, losses: Losses, report: Report
) -> None:
    got: dict[UserDevice, list[Entry]] = defaultdict(list)
    for entry in by_kind["raw"]:
        got[entry["user"], entry["device"]].append(entry)
    for key, entries in got.items():
        report.raw_received += len(entries)
        stored = published[key[0]]
        missing = dict.fromkeys(stored)
        last: Entry | None = None
        for entry in entries:
            missing.pop(entry["n"], None)
            if last is not None and last["connection"] == entry["connection"]:
                _check_raw_step(key, last, entry, stored, losses, report)
            last = entry
        lost = [n for n in missing if _excused(stored[n]["at"], losses, "recv") is None]
        report.raw_lost += len(lost)
        size = sum(20_000 if n % 50 == 49 else 80 for n in lost)
        connections = len({entry["connection"] for entry in entries})
        if size > RAW_BUFFERS * max(connections - 1, 0):
            report.break_promise(f"{key} (raw) lost {size} bytes in {connections} connections")


def _check_raw_step(
    key: UserDevice,
    last: Entry,
    entry: Entry,
    stored: dict[int, Entry],
    losses: Losses,
    report: Report,
) -> None:
    """Within one connection everything that is stored comes, in order."""
    if entry["n"] <= last["n"]:
        if not any(last["at"] <= loss.until <= entry["at"] + 1 for loss in losses):
            report.out_of_order += 1
            report.break_promise(f"{key} (raw) got {entry['n']} after {last['n']}")
        return
    for number in range(last["n"] + 1, entry["n"]):
        if number in stored and _excused(stored[number]["at"], losses, "recv") is None:
            report.lost += 1
            report.break_promise(f"{key} (raw) was not given {number} within one connection")


# -- client to service -------------------------------------------------------------------


def _check_up(by_kind: dict[str, list[Entry]], losses: Losses, report: Report) -> None:
    tries: dict[tuple[str, str, int], list[Entry]] = defaultdict(list)
    newest: dict[UserDevice, int] = defaultdict(lambda: -1)
    for entry in by_kind["handling"]:
        key = entry["user"], entry["device"]
        number = entry["n"]
        if not tries[*key, number]:
            if number < newest[key]:
                report.out_of_order += 1
                report.break_promise(f"{key}: {number} handled after {newest[key]}")
            newest[key] = max(newest[key], number)
        tries[*key, number].append(entry)
    done = {(e["user"], e["device"], e["n"]) for e in by_kind["handled"]}
    report.handled = len(done)
    restarts = [e["at"] for e in by_kind["fault"] if e["name"] in FORGETFUL]
    for name, entries in tries.items():
        if len({e["offset"] for e in entries}) == 1:
            continue
        # A server that restarts learns the ids of what is in the stream, not of what was handled.
        times = [e["at"] for e in entries]
        if any(min(times) - 60 <= at <= max(times) for at in restarts):
            report.duplicated += 1
        else:
            report.break_promise(f"{name} was stored twice for its service")
    for entry in by_kind["accepted"]:
        report.accepted += 1
        name = entry["user"], entry["device"], entry["n"]
        if name not in done and _excused(entry["at"], losses, "send") is None:
            report.lost += 1
            report.break_promise(f"{name} was accepted, and never handled")


def _longest_stall(got: Iterable[Entry], published: Published) -> float:
    """Return how long a message waited for a client that reads, from being stored to arriving."""
    waits = [
        entry["at"] - stored["at"]
        for entry in got
        if not entry["device"].endswith("slow")
        and (stored := published[entry["user"]].get(entry["n"]))
    ]
    return max(waits, default=0.0)
