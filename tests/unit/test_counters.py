"""Counting: exact, cheap, and with few labels."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Iterator

import pytest

from wsgateway import counters
from wsgateway.counters import GatewayCounters, Histogram, SocketCounters, Traffic, size_of
from wsgateway.protocol.codes import CloseCode


@pytest.fixture
def own_counters() -> Iterator[None]:
    """Counters that begin at zero, and end with the test."""
    counters.reset()
    yield
    counters.reset()


def traffic(**values: int) -> Traffic:
    made = Traffic()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def test_value_at_a_bound_belongs_to_that_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert (histogram.count, histogram.sum) == (5, 7.5)


def test_value_below_zero_counts_as_zero() -> None:
    """Clocks of two hosts differ; a sum that falls looks like a restart to Prometheus."""
    histogram = Histogram((1.0, 2.0))
    histogram.observe(-3.0)
    assert (histogram.counts, histogram.sum) == ([1, 0, 0], 0.0)


@pytest.mark.parametrize(
    ("frame", "size"), [("", 0), ("abc", 3), ("größe", 7), (b"\x00\xff", 2), ("€" * 3, 9)]
)
def test_size_of_a_frame_is_its_size_on_the_wire(frame: str | bytes, size: int) -> None:
    assert size_of(frame) == size


def test_traffic_of_sockets_that_ended_still_counts() -> None:
    sockets = SocketCounters()
    one, other = traffic(frames_in=1, bytes_in=10), traffic(frames_in=2, bytes_in=5)
    sockets.begin(one)
    sockets.begin(other)
    one.frames_out += 5
    one.others_out += 2
    sockets.end(one)
    total = sockets.total()
    assert (total.frames_in, total.bytes_in, total.messages_out) == (3, 15, 3)
    assert (sockets.opened, sockets.open) == (2, 1)


def test_totals_add_up_all_services_and_protocols() -> None:
    counts = GatewayCounters()
    for service, protocol in (("chat", "raw"), ("chat", "wsgateway.v1"), ("orders", "raw")):
        counts.sockets_of(service, protocol).begin(traffic(frames_out=3, others_out=1))
    counts.published.observe(0.1)
    counts.not_published["queue_full"] += 4
    assert counts.totals() == (5, 6, 3)


def test_codes_that_clients_make_up_share_one_label() -> None:
    """A client may close with any code from 3000 to 4999, so each was a label of its own."""
    counts = GatewayCounters()
    for code in range(3000, 5000):
        counts.note_end("client", code)
    assert counts.ended["client", "other"] == 2000 - len(CloseCode)
    counts.note_end("client", 1001)
    counts.note_end("gateway", CloseCode.TOO_SLOW)
    assert counts.ended["client", "1001"] == 1
    assert counts.ended["gateway", "4008"] == 1


def test_threads_that_count_at_the_same_time_lose_nothing(own_counters: None) -> None:
    """CPython switches threads between two bytecodes, but not between reading and storing.

    If a Python version fails this, its layer counters need a lock or one object a thread.
    """
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("a free-threaded build may lose counts, as the module says")

    def count() -> None:
        for _ in range(100_000):
            counters.layer.sent_group += 1

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert counters.layer.sent_group == 400_000


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_begins_at_zero(own_counters: None) -> None:
    counters.layer.received = 7
    counters.service("chat").redelivered = 3
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, f"{counters.layer.received} {len(counters.services)}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"0 0"
    os.close(reading)
    os.close(writing)
    assert counters.layer.received == 7
