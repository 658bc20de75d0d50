"""What this process has counted, for prometheus-client's registry."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import wsgateway
from wsgateway import counters
from wsgateway.broker import runtime
from wsgateway.metrics.catalog import LOCAL
from wsgateway.metrics.families import Families
from wsgateway.protocol.codes import CloseCode

__all__ = ["COLLECTOR", "LocalCollector", "register"]

SIGNALS = ("sent", "failed", "dropped")
API_RESULTS = ("ok", "refused", "failed")
OUTCOMES = ("done", "retried", "rejected", "dead-lettered")
REASONS = ("queue_full", "too_big", "forbidden", "unavailable", "other")
REFUSALS = ("forbidden", "too_many", "rate_limit", "unavailable", "internal")
STATES = ("ready", "connected", "disconnected")
RESULTS = ("recovered", "new", "epoch", "trimmed", "ahead")


class LocalCollector(Collector):
    """Reads `wsgateway.counters`; asks nobody else, so it never waits."""

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples, so that registering counts nothing."""
        return Families(LOCAL)

    def collect(self) -> Iterable[Metric]:
        """Return the families. From any thread."""
        found = Families(LOCAL)
        found.add("wsgateway_info", 1, wsgateway.__version__)
        _sockets(found)
        _gateway(found)
        _broker(found)
        _layer(found)
        _services(found)
        _outbox(found)
        _events(found)
        _bridges(found)
        _api(found)
        return found


COLLECTOR = LocalCollector()
_lock = Lock()
_registered = False


def register() -> None:
    """Add the collector to prometheus-client's own registry. Idempotent.

    Whatever else the project has registered there is part of ``/metrics`` then, and our metrics
    are part of what the project exports itself.
    """
    global _registered
    with _lock:
        if not _registered:
            REGISTRY.register(COLLECTOR)
            _registered = True


def _sockets(found: Families) -> None:
    for labels, sockets in list(counters.gateway.sockets.items()):
        total = sockets.total()
        found.add("wsgateway_gateway_sockets", sockets.open, *labels)
        found.add("wsgateway_gateway_connects_total", sockets.opened, *labels)
        found.add("wsgateway_gateway_messages_total", total.messages_out, *labels)
        for direction, frames, size in (
            ("in", total.frames_in, total.bytes_in),
            ("out", total.frames_out, total.bytes_out),
        ):
            found.add("wsgateway_gateway_frames_total", frames, *labels, direction)
            found.add("wsgateway_gateway_bytes_total", size, *labels, direction)


def _gateway(found: Families) -> None:
    counts = counters.gateway
    # Zeros as well: Prometheus cannot see the first increase of what was not there before
    for code in CloseCode:
        found.add("wsgateway_gateway_refused_total", counts.refused[str(int(code))], str(int(code)))
    ours = {("gateway", str(int(code))): 0 for code in CloseCode}
    for labels, count in {**ours, **counts.ended}.items():
        found.add("wsgateway_gateway_disconnects_total", count, *labels)
    for result in RESULTS:
        found.add("wsgateway_gateway_starts_total", counts.starts[result], result)
    for reason in REASONS:
        count = counts.not_published[reason]
        found.add("wsgateway_gateway_publish_errors_total", count, reason)
    found.add_histogram("wsgateway_gateway_publish_seconds", counts.published)
    name = "wsgateway_gateway_delivery_lag_seconds"
    found.add_histogram(name, counts.live_lag, "live")
    found.add_histogram(name, counts.fetched_lag, "fetched")
    found.add("wsgateway_gateway_unconfirmed_total", counts.unconfirmed)
    found.add("wsgateway_gateway_skipped_total", counts.skipped)
    found.add("wsgateway_gateway_gaps_total", counts.windows.gaps)
    found.add("wsgateway_gateway_gaps_filled_total", counts.windows.filled)
    found.add("wsgateway_gateway_window_stalls_total", counts.windows.stalls)
    found.add("wsgateway_gateway_watched_users", counts.watched)
    found.add("wsgateway_gateway_topic_subscriptions", counts.subscriptions)
    for refusal in REFUSALS:
        count = counts.refused_subscriptions[refusal]
        found.add("wsgateway_gateway_refused_topic_subscriptions_total", count, refusal)
    found.add("wsgateway_gateway_slow_topic_subscriptions_total", counts.ended_slow)
    found.add("wsgateway_gateway_fetches_total", counts.fetches)
    found.add("wsgateway_gateway_fetched_messages_total", counts.fetched)
    found.add("wsgateway_gateway_cursor_writes_total", counts.cursor_writes, "ok")
    found.add("wsgateway_gateway_cursor_writes_total", counts.cursor_failures, "failed")


def _broker(found: Families) -> None:
    states = dict.fromkeys(STATES, 0)
    for connection in runtime.connections():
        broker = connection.broker
        if not broker.closed:
            ready, connected, disconnected = STATES
            state = ready if broker.ready else connected if broker.connected else disconnected
            states[state] += 1
    for state, count in states.items():
        found.add("wsgateway_broker_connections", count, state)
    found.add("wsgateway_broker_connects_total", counters.broker.connects)
    found.add("wsgateway_broker_reconnects_total", counters.broker.reconnects)
    found.add("wsgateway_broker_losses_total", counters.broker.losses)


def _layer(found: Families) -> None:
    counts = counters.layer
    for kind in ("specific", "normal", "group", "durable"):
        found.add("wsgateway_layer_sent_total", getattr(counts, f"sent_{kind}"), kind)
    found.add("wsgateway_layer_received_total", counts.received)
    for reason in ("full", "expired", "unreadable", "unsent"):
        found.add("wsgateway_layer_dropped_total", getattr(counts, f"dropped_{reason}"), reason)
    found.add("wsgateway_layer_channel_full_total", counts.refused_full)
    found.add("wsgateway_layer_gaps_total", counts.windows.gaps)
    found.add("wsgateway_layer_gaps_filled_total", counts.windows.filled)
    found.add("wsgateway_layer_window_stalls_total", counts.windows.stalls)


def _services(found: Families) -> None:
    for name, counts in list(counters.services.items()):
        found.add_histogram("wsgateway_service_handler_seconds", counts.handler, name)
        found.add("wsgateway_service_handlers", counts.running, name)
        for outcome in OUTCOMES:
            count = counts.outcomes[outcome]
            found.add("wsgateway_service_messages_total", count, name, outcome)
        found.add("wsgateway_service_shortened_total", counts.shortened, name)
        found.add("wsgateway_service_redeliveries_total", counts.redelivered, name)


def _outbox(found: Families) -> None:
    counts = counters.outbox
    found.add("wsgateway_outbox_relayed_total", counts.relayed)
    found.add("wsgateway_outbox_set_aside_total", counts.set_aside)
    found.add("wsgateway_outbox_failures_total", counts.failures)
    found.add_histogram("wsgateway_outbox_relay_seconds", counts.lag)


def _events(found: Families) -> None:
    counts = counters.events
    found.add("wsgateway_events_active", counts.active)
    found.add("wsgateway_events_online", counts.online)
    found.add("wsgateway_events_waiting", counts.waiting)
    for outcome in SIGNALS:
        found.add("wsgateway_events_signals_total", counts.outcomes[outcome], outcome)
        found.add("wsgateway_events_posts_total", counts.posts[outcome], outcome)


def _bridges(found: Families) -> None:
    for name, counts in list(counters.bridges.items()):
        found.add("wsgateway_bridge_connected", counts.connected(), name)
        found.add("wsgateway_bridge_blocked", bool(counts.trouble()), name)
        found.add("wsgateway_bridge_cut_total", counts.cut, name)
        for direction, carried, set_aside, failures, waiting in (
            ("send", counts.sent, counts.refused, counts.send_failures, counts.sending),
            (
                "receive",
                counts.received,
                counts.set_aside,
                counts.receive_failures,
                counts.receiving,
            ),
        ):
            found.add("wsgateway_bridge_records_total", carried, name, direction, "carried")
            found.add("wsgateway_bridge_records_total", set_aside, name, direction, "set-aside")
            found.add("wsgateway_bridge_failures_total", failures, name, direction)
            found.add("wsgateway_bridge_waiting", waiting, name, direction)


def _api(found: Families) -> None:
    for result in API_RESULTS:
        found.add("wsgateway_api_requests_total", counters.api.requests[result], result)
