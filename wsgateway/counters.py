"""What this process does, counted where it happens, for metrics, presence and the admin.

Hot code adds to plain ints: no locks, no labels, nothing of prometheus-client. `wsgateway.metrics`
reads them when somebody asks.

Several threads may count in the same place, such as senders of the channel layer. CPython does not
switch threads between reading an attribute, adding to it and storing it, so nothing gets lost.
On a free-threaded build, a count may.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.window import WindowCounts

__all__ = [
    "HANDLER_BOUNDS",
    "RAW",
    "SAMPLE",
    "SECONDS_BOUNDS",
    "ApiCounters",
    "BridgeCounters",
    "BrokerCounters",
    "EventsCounters",
    "GatewayCounters",
    "Histogram",
    "LayerCounters",
    "OutboxCounters",
    "ServiceCounters",
    "SocketCounters",
    "Totals",
    "Traffic",
    "api",
    "bridge",
    "bridges",
    "broker",
    "events",
    "gateway",
    "layer",
    "outbox",
    "reset",
    "service",
    "services",
    "size_of",
]

SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5, 10, 30, 60)
"""Upper bounds of what should take milliseconds."""
HANDLER_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds of what applications do."""
SAMPLE = 13
"""Messages whose offset this divides are measured on their way to a socket. Two clocks and a date
for each message would cost as much as everything else that is counted, many times over; a sample
has the same quantiles. A prime, so that it meets all of those who get messages in turn."""

RAW = "raw"
"""The protocol of sockets without a subprotocol."""
_CODES = frozenset({*range(1000, 1016), *CloseCode})
"""Those that a standard or our own table names."""

_lock = threading.Lock()  # held while sockets begin and end, never for a message


def size_of(frame: str | bytes) -> int:
    """Return the bytes that *frame* has on the wire, without the websocket's own."""
    if isinstance(frame, str) and not frame.isascii():
        return len(frame.encode())
    return len(frame)


class Histogram:
    """How many values were at most as large as each bound, and their sum.

    Args:
        bounds: Upper bounds, rising; what is larger is counted beyond them.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values above the bound before, up to this one; not cumulative."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count *value*; one below zero, as clocks of different hosts make it, as zero."""
        value = max(value, 0.0)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class Traffic:
    """What went over one socket, or over several.

    Frames that the server answers itself do not count, such as pings.
    """

    __slots__ = ("bytes_in", "bytes_out", "frames_in", "frames_out", "others_out")

    def __init__(self) -> None:
        self.frames_in = 0
        self.bytes_in = 0
        self.frames_out = 0
        self.bytes_out = 0
        self.others_out = 0
        """Of `frames_out`, those that are not stored messages: welcomes, answers, pings."""

    @property
    def messages_out(self) -> int:
        """Stored messages among the frames."""
        return self.frames_out - self.others_out

    def add(self, other: Traffic) -> None:
        """Add what went over another."""
        self.frames_in += other.frames_in
        self.bytes_in += other.bytes_in
        self.frames_out += other.frames_out
        self.bytes_out += other.bytes_out
        self.others_out += other.others_out


class SocketCounters:
    """The sockets of one service that speak one protocol."""

    def __init__(self) -> None:
        self.opened = 0
        """Sockets that were accepted."""
        self._open: set[Traffic] = set()
        self._ended = Traffic()

    @property
    def open(self) -> int:
        """Sockets that are open now."""
        return len(self._open)

    def begin(self, traffic: Traffic) -> None:
        """Count a socket that was accepted."""
        with _lock:
            self.opened += 1
            self._open.add(traffic)

    def end(self, traffic: Traffic) -> None:
        """Count a socket that is gone; nothing is added to *traffic* any more."""
        with _lock:
            self._open.discard(traffic)
            self._ended.add(traffic)

    def total(self) -> Traffic:
        """Return what went over all of them so far. From any thread."""
        total = Traffic()
        with _lock:
            for each in (self._ended, *self._open):
                total.add(each)
        return total


class Totals(NamedTuple):
    """What a gateway did since it began; the difference of two makes a rate."""

    messages_in: int
    messages_out: int
    connects: int


class GatewayCounters:
    """What the sockets of this process did."""

    def __init__(self) -> None:
        self.sockets: dict[tuple[str, str], SocketCounters] = {}
        """By service and protocol."""
        self.refused: Counter[str] = Counter()
        """Handshakes that were refused, by close code."""
        self.ended: Counter[tuple[str, str]] = Counter()
        """Sockets that ended, by who closed them, ``gateway`` or ``client``, and close code."""
        self.starts: Counter[str] = Counter()
        """Where delivery began, or began again: ``recovered``, or why it was not."""
        self.unconfirmed = 0
        """Messages written to sockets that ended before the client confirmed them."""
        self.skipped = 0
        """Stored messages that cannot be a frame."""
        self.published = Histogram()
        """Seconds from a client's frame until it was stored."""
        self.not_published: Counter[str] = Counter()
        """Clients' frames that were refused, by reason."""
        self.live_lag = Histogram()
        """Seconds from storing a message until it was written, of one in `SAMPLE`."""
        self.fetched_lag = Histogram()
        """The same of messages that were read from the stream: the user was away, the window was
        full, or a live message was missed."""
        self.windows = WindowCounts()
        """Gaps found and filled, and stalls."""
        self.fetches = 0
        """Reads of inboxes."""
        self.fetched = 0
        """Messages that they brought."""
        self.watched = 0
        """Users whom sockets watch, each once."""
        self.subscriptions = 0
        """Topics that sockets read, each once for each socket."""
        self.refused_subscriptions: Counter[str] = Counter()
        """Subscriptions to topics that were refused, by code."""
        self.ended_slow = 0
        """Subscriptions to ephemeral topics that ended because the client read too slowly."""
        self.cursor_writes = 0
        self.cursor_failures = 0

    def sockets_of(self, service: str, protocol: str) -> SocketCounters:
        """Return the counters for a service that exists, and a protocol."""
        return self.sockets.setdefault((service, protocol), SocketCounters())

    def note_end(self, by: str, code: int) -> None:
        """Count a socket that ended with a close code.

        Args:
            by: ``gateway`` or ``client``.
            code: A client may send any; what nobody knows counts as ``other``.
        """
        self.ended[by, str(int(code)) if code in _CODES else "other"] += 1

    def totals(self) -> Totals:
        """Return what was done so far. From any thread."""
        found = [*self.sockets.values()]
        return Totals(
            self.published.count + self.not_published.total(),
            sum(each.total().messages_out for each in found),
            sum(each.opened for each in found),
        )


class BrokerCounters:
    """What became of this process's connections to the broker."""

    def __init__(self) -> None:
        self.connects = 0
        self.reconnects = 0
        """Connects of a connection that had been open before."""
        self.losses = 0


class LayerCounters:
    """What the channel layers of this process did."""

    def __init__(self) -> None:
        self.sent_specific = 0
        """Messages to channels of one process."""
        self.sent_normal = 0
        self.sent_group = 0
        """Messages to groups that are not stored."""
        self.sent_durable = 0
        """Messages to groups that are."""
        self.received = 0
        self.windows = WindowCounts()
        """Gaps in durable groups, and members that have as much as they may."""
        self.dropped_full = 0
        """Messages that a channel of this process had no room for."""
        self.dropped_expired = 0
        self.dropped_unreadable = 0
        self.dropped_unsent = 0
        """Messages that were handed over, and found no connection."""
        self.refused_full = 0
        """Sends that raised ``ChannelFull``."""


class ServiceCounters:
    """What the worker of one service did."""

    def __init__(self) -> None:
        self.handler = Histogram(HANDLER_BOUNDS)
        """Seconds that handlers took."""
        self.running = 0
        """Handlers that run now."""
        self.outcomes: Counter[str] = Counter()
        """Messages by what became of them: done, retried, rejected, dead-lettered."""
        self.shortened = 0
        """Dead letters that hold only a part of their message."""
        self.redelivered = 0
        """Deliveries that were not a message's first."""


class OutboxCounters:
    """What the relay of this process did."""

    def __init__(self) -> None:
        self.relayed = 0
        self.set_aside = 0
        """Rows that can never be stored."""
        self.failures = 0
        """Turns that ended with an error that may pass."""
        self.lag = Histogram()
        """Seconds from writing a row until its message was stored."""
        self.databases: set[str] = set()
        """Where it relays from."""


class EventsCounters:
    """What ``runevents`` did in this process."""

    def __init__(self) -> None:
        self.active = False
        """Whether it sends signals; otherwise it stands by."""
        self.online = 0
        """Users who are online, as far as it knows."""
        self.waiting = 0
        """Signals that wait for receivers."""
        self.outcomes: Counter[str] = Counter()
        """Signals by what became of them: sent, failed (a receiver raised), dropped."""
        self.posts: Counter[str] = Counter()
        """Events for the webhook by what became of them: the same."""


class BridgeCounters:
    """What one bridge did in this process."""

    def __init__(self) -> None:
        self.connected: Callable[[], bool] = lambda: False
        """Whether its bus can be reached now."""
        self.bus = ""
        """What its bus is, and where."""
        self.trouble: Callable[[], str] = lambda: ""
        """Why it does not carry everything now; "" if it does."""
        self.sent = 0
        """Messages of clients that the bus has confirmed."""
        self.refused = 0
        """Messages that it can never take; they are dead letters."""
        self.send_failures = 0
        """Tries that it did not confirm."""
        self.sending = 0
        """Messages that wait for its confirmation."""
        self.received = 0
        """Records of services that are stored in an inbox or a topic."""
        self.set_aside = 0
        """Records that cannot be delivered."""
        self.cut = 0
        """Of these, those that did not fit as they were."""
        self.receive_failures = 0
        """Tries that did not store one."""
        self.receiving = 0
        """Records in hand."""


class ApiCounters:
    """What the server API of this process did."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        """Requests by result: ok; refused, for what they are; failed, for no fault of theirs."""

    def note(self, status: int) -> None:
        """Count a request that was answered with an HTTP status."""
        self.requests["ok" if status < 400 else "refused" if status < 500 else "failed"] += 1


api = ApiCounters()
gateway = GatewayCounters()
broker = BrokerCounters()
events = EventsCounters()
layer = LayerCounters()
outbox = OutboxCounters()
services: dict[str, ServiceCounters] = {}
"""By name: those that have a worker here."""


def service(name: str) -> ServiceCounters:
    """Return the counters for a service that exists."""
    return services.setdefault(name, ServiceCounters())


bridges: dict[str, BridgeCounters] = {}
"""By name: those that run here."""


def bridge(name: str) -> BridgeCounters:
    """Return the counters for a bridge."""
    return bridges.setdefault(name, BridgeCounters())


def reset() -> None:
    """Begin at zero again: a forked child has done nothing yet. Also for tests."""
    global _lock, api, gateway, broker, events, layer, outbox
    _lock = threading.Lock()  # another thread of the parent may have held it
    api = ApiCounters()
    gateway = GatewayCounters()
    broker = BrokerCounters()
    events = EventsCounters()
    layer = LayerCounters()
    outbox = OutboxCounters()
    services.clear()
    bridges.clear()


os.register_at_fork(after_in_child=reset)
