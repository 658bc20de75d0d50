"""Pings, and the silence that follows."""

from __future__ import annotations

from wsgateway.protocol.heartbeat import Beat, Heartbeat


def test_silent_peer_is_dead_after_interval_and_timeout() -> None:
    beat = Heartbeat(25, 10, 100.0)
    assert (beat.deadline, beat.check(124.9)) == (125.0, Beat.NOTHING)
    assert beat.check(125.0) is Beat.PING
    assert (beat.deadline, beat.check(134.9)) == (135.0, Beat.NOTHING)
    assert beat.check(135.0) is Beat.DEAD


def test_any_frame_after_the_ping_is_life_and_pings_keep_their_interval() -> None:
    beat, now, pings = Heartbeat(25, 10, 0.0), 0.0, []
    while now < 200:
        now = beat.deadline
        action = beat.check(now)
        assert action is not Beat.DEAD
        if action is Beat.PING:
            pings.append(now)
            beat.heard()
    assert pings == [25 * n for n in range(1, 9)]


def test_frame_before_the_ping_does_not_count() -> None:
    beat = Heartbeat(25, 10, 0.0)
    beat.heard()
    assert beat.check(25.0) is Beat.PING
    assert beat.check(35.0) is Beat.DEAD


def test_process_that_slept_asks_again_before_it_gives_up() -> None:
    """After SIGSTOP or suspend every answer waits unread; closing then would cut everybody."""
    beat = Heartbeat(25, 10, 0.0)
    assert beat.check(25.0) is Beat.PING
    assert beat.check(500.0) is Beat.PING
    assert beat.check(510.0) is Beat.DEAD


def test_timeout_longer_than_the_interval_pings_at_once_after_an_answer() -> None:
    beat = Heartbeat(1, 5, 0.0)
    assert beat.check(1.0) is Beat.PING
    beat.heard()
    assert beat.check(6.0) is Beat.PING
    assert beat.check(11.0) is Beat.DEAD
