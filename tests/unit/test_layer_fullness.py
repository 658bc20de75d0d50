"""Who hears that a channel is full, how often, and until when."""

from __future__ import annotations

import pytest

from wsgateway.layer import fullness
from wsgateway.layer.fullness import Complaints, FullChannels


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(fullness, "monotonic", lambda: now[0])
    return now


def pair() -> tuple[Complaints, FullChannels, list[str]]:
    """Return an owner, what its one sender has heard, and whom the owner has told."""
    channels, told = FullChannels(), []

    def tell(sender: str, data: bytes) -> None:
        told.append(sender)
        channels.hear(data)

    return Complaints(tell), channels, told


def test_full_until_there_is_room(clock: list[float]) -> None:
    owner, channels, told = pair()
    owner.full(b"x!y", b"one")
    assert b"x!y" in channels
    assert b"x!z" not in channels
    owner.room(b"x!z")
    assert b"x!y" in channels
    owner.room(b"x!y")
    assert b"x!y" not in channels
    assert (told, owner.told) == (["one", "one"], {})


def test_each_sender_is_told_now_and_then(clock: list[float]) -> None:
    owner, _, told = pair()
    for _ in range(100):
        owner.full(b"x!y", b"one")
        owner.full(b"x!y", b"two")
    assert told == ["one", "two"]
    clock[0] += fullness.AGAIN
    owner.full(b"x!y", b"two")
    assert told == ["one", "two", "two"]
    owner.room(b"x!y")
    assert sorted(told[3:]) == ["one", "two"]


def test_an_owner_that_is_gone_is_not_believed_for_ever(clock: list[float]) -> None:
    owner, channels, _ = pair()
    owner.full(b"x!y", b"one")
    clock[0] += fullness.VALID
    assert b"x!y" not in channels
    assert not channels.until


@pytest.mark.parametrize("data", [b"", b"-", b"+", b"x!y", b"\x00\xff", b"+x!y"])
def test_what_means_nothing_changes_nothing(data: bytes) -> None:
    channels = FullChannels()
    channels.hear(data)
    assert not channels.until


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fullness, "MOST", 10)
    channels = FullChannels()
    for number in range(100):
        channels.hear(b"-x!%d" % number)
    assert len(channels.until) <= 10
    assert b"x!99" in channels
