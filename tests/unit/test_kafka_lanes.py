"""How far a partition is acknowledged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsgateway.bridges.kafka.lanes import Lane


def test_lane_that_handed_out_nothing_has_no_position() -> None:
    lane = Lane("ws.recv/0")
    assert (lane.position, lane.span, len(lane)) == (None, 0, 0)


def test_position_waits_for_the_oldest_record() -> None:
    lane = Lane("ws.recv/0")
    for offset in (10, 11, 15):  # compaction and transactions leave gaps
        lane.hand_out(offset, 100)
    assert lane.ack(11) == 100
    assert (lane.position, lane.span, lane.sizes()) == (10, 6, 200)
    assert lane.ack(10) == 100
    assert (lane.position, lane.span) == (15, 1)
    assert lane.ack(15) == 100
    assert (lane.position, lane.span, len(lane)) == (16, 0, 0)


def test_record_that_is_not_in_hand_is_not_acknowledged() -> None:
    lane = Lane("ws.recv/0")
    lane.hand_out(3, 1)
    assert lane.ack(2) is None
    assert lane.ack(3) == 1
    assert lane.ack(3) is None


@given(st.integers(1, 40).flatmap(lambda n: st.permutations(range(n))), st.integers(0, 40))
def test_position_is_after_what_is_acknowledged_without_a_gap(order: list[int], many: int) -> None:
    lane = Lane("ws.recv/0")
    for offset in range(len(order)):
        lane.hand_out(offset, 1)
    acked = set()
    for offset in order[:many]:
        lane.ack(offset)
        acked.add(offset)
        first = next((n for n in range(len(order)) if n not in acked), len(order))
        assert lane.position == first
        assert len(lane) == lane.sizes() == len(order) - len(acked)
