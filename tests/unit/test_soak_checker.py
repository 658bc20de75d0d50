"""The soak's checker finds each kind of broken promise; a checker that cannot fail is worthless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.soak.checker import Report, check

Entry = dict[str, Any]


def good_run() -> list[Entry]:
    """Five messages each way to and from ann, whose clients are a phone and a raw socket."""
    entries: list[Entry] = [
        {"kind": "begin", "at": 0.0, "pid": 1, "users": ["ann"], "device": "phone"},
        {"kind": "begin", "at": 0.0, "pid": 2, "users": ["ann"], "device": "raw"},
        {
            "kind": "welcome",
            "at": 0.1,
            "pid": 1,
            "user": "ann",
            "device": "phone",
            "recovered": False,
        },
    ]
    for n in range(5):
        down = {"user": "ann", "n": n}
        phone = {**down, "device": "phone", "pid": 1}
        place = {"offset": 10 + n, "stored": 1.0 + n}
        entries += [
            {"kind": "published", "at": 1.0 + n, "pid": 9, **down, "offset": 10 + n},
            {"kind": "got", "at": 1.1 + n, **phone, **place, "epoch": "e"},
            {"kind": "raw", "at": 1.1 + n, "pid": 2, **down, "device": "raw", "connection": 1},
            {"kind": "accepted", "at": 1.2 + n, **phone},
            {"kind": "handling", "at": 1.3 + n, **phone, "pid": 5, "offset": n, "attempt": 1},
            {"kind": "handled", "at": 1.4 + n, **phone, "pid": 5},
        ]
    return entries


def without(kind: str, n: int) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        entries[:] = [e for e in entries if not (e["kind"] == kind and e.get("n") == n)]

    return change


def swapped(kind: str, first: int, second: int) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        for entry in entries:
            if entry["kind"] == kind and entry["n"] in (first, second):
                entry["n"] = first + second - entry["n"]

    return change


def again(kind: str, number: int, **changes: Any) -> Callable[[list[Entry]], None]:
    def change(entries: list[Entry]) -> None:
        known = next(e for e in entries if e["kind"] == kind and e.get("n") == number)
        entries.append({**known, "at": 9.0, **changes})

    return change


def test_a_good_run_breaks_nothing() -> None:
    report = check(good_run())
    assert report.broken == []
    assert (report.published, report.received, report.raw_received) == (5, 5, 5)
    assert (report.accepted, report.handled, report.lost) == (5, 5, 0)
    assert report.longest_stall == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (without("got", 2), "never got 2"),
        (without("raw", 2), "was not given 2 within one connection"),
        (without("handled", 2), "was accepted, and never handled"),
        (swapped("got", 1, 3), "for the first time after"),
        (swapped("raw", 1, 3), "(raw) got"),
        (swapped("handling", 1, 3), "handled after"),
        (again("got", 4), "twice in one life"),
        (again("got", 4, offset=99), "is stored twice"),
        (again("got", 4, n=5, offset=3), "offset 3 after 14"),
        (again("handling", 4, offset=99), "was stored twice for its service"),
        (lambda entries: entries.append({"kind": "failed", "at": 9.0, "what": "x"}), "x"),
    ],
)
def test_each_broken_promise_is_found(change: Callable[[list[Entry]], None], text: str) -> None:
    entries = good_run()
    change(entries)
    report = check(entries)
    assert any(text in line for line in report.broken), report.broken


def lost_stream(*, told: bool) -> Report:
    """Message 2 was lost with the stream at 4 s."""
    entries = good_run()
    without("got", 2)(entries)
    without("raw", 2)(entries)
    entries.append(
        {"kind": "stream lost", "at": 4.0, "since": 0.0, "stream": "recv", "told_from": 4.0}
    )
    if told:
        welcome = next(e for e in entries if e["kind"] == "welcome")
        entries.append({**welcome, "at": 4.05})
    return check(entries)


@pytest.mark.parametrize(("stream", "lost"), [("topic", 0), ("recv", 1)])
def test_a_topic_is_lost_with_its_own_stream_only(stream: str, lost: int) -> None:
    entries = good_run()
    without("got", 2)(entries)
    entries = [e for e in entries if e["kind"] in ("published", "got", "welcome", "begin")]
    for entry in entries:
        entry["device"] = "ann.phone"
        entry["user"], entry["users"] = "lounge.a", ["lounge.a"]
    loss = {"kind": "stream lost", "at": 4.0, "since": 0.0, "stream": stream, "told_from": 4.0}
    welcome = next(e for e in entries if e["kind"] == "welcome")
    report = check([*entries, loss, {**welcome, "at": 4.05}])
    assert (report.lost, report.excused) == (lost, 1 - lost)


def test_a_stream_lost_aloud_excuses_its_messages() -> None:
    report = lost_stream(told=True)
    assert (report.broken, report.excused) == ([], 1)


def test_a_stream_lost_in_silence_does_not() -> None:
    report = lost_stream(told=False)
    assert report.lost == 1
    assert "never got 2 and nobody told it" in report.broken[0]


@pytest.mark.parametrize(("since", "broken"), [(0.0, 0), (5.5, 1)])
def test_what_a_slow_client_handles_later_was_lost_with_the_stream(
    since: float, broken: int
) -> None:
    """Its queue held message 4, stored at 5 s, over the loss; its publisher published it again."""
    entries = good_run()
    again("got", 4, offset=99, stored=8.0)(entries)
    for entry in entries:
        if entry["kind"] == "got" and entry["n"] == 4:
            entry["at"] += 3.0
    loss = {"kind": "stream lost", "at": 6.0, "since": since, "stream": "recv", "told_from": 6.0}
    welcome = next(e for e in entries if e["kind"] == "welcome")
    report = check([*entries, loss, {**welcome, "at": 6.1}])
    assert len(report.broken) == broken, report.broken


def test_what_a_cut_raw_socket_loses_is_bounded() -> None:
    entries = good_run()
    without("raw", 2)(entries)
    for entry in entries:
        if entry["kind"] == "raw" and entry["n"] > 2:
            entry["connection"] = 2
    report = check(entries)
    assert (report.broken, report.raw_lost) == ([], 1)
