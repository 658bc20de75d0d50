"""Every metric: name, type, labels, meaning; a test compares docs/reference/metrics.md with it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CATALOG", "CLUSTER", "PROCESS_LABEL", "Spec"]

PROCESS_LABEL = "process"
"""On everything that one process counts: its process id."""


class Spec(NamedTuple):
    """One metric.

    Attributes:
        name: As queries write it; a histogram's without ``_bucket``, ``_sum`` and ``_count``.
        type: counter, gauge or histogram.
        labels: Besides `PROCESS_LABEL`.
        doc: What it means, one line.
    """

    name: str
    type: str
    labels: tuple[str, ...]
    doc: str

    @property
    def family(self) -> str:
        """The name of its family: a counter's is without ``_total``."""
        return self.name.removesuffix("_total") if self.type == "counter" else self.name


GATEWAY = (
    Spec(
        "wsgateway_gateway_sockets",
        "gauge",
        ("service", "protocol"),
        "Open sockets; protocol is raw, wsgateway.v1 or sse",
    ),
    Spec(
        "wsgateway_gateway_connects_total",
        "counter",
        ("service", "protocol"),
        "Sockets that were accepted",
    ),
    Spec(
        "wsgateway_gateway_refused_total",
        "counter",
        ("code",),
        "Handshakes that were refused, by close code",
    ),
    Spec(
        "wsgateway_gateway_disconnects_total",
        "counter",
        ("by", "code"),
        "Sockets that ended, by who closed them (gateway or client) and close code",
    ),
    Spec(
        "wsgateway_gateway_frames_total",
        "counter",
        ("service", "protocol", "direction"),
        "Websocket frames; direction is in (from clients) or out",
    ),
    Spec(
        "wsgateway_gateway_bytes_total",
        "counter",
        ("service", "protocol", "direction"),
        "Bytes of these frames, uncompressed and without the websocket's own",
    ),
    Spec(
        "wsgateway_gateway_messages_total",
        "counter",
        ("service", "protocol"),
        "Stored messages that were written to sockets",
    ),
    Spec(
        "wsgateway_gateway_starts_total",
        "counter",
        ("result",),
        "Where delivery to wsgateway.v1 clients began, or began again: recovered, or why "
        "messages may be missing",
    ),
    Spec(
        "wsgateway_gateway_publish_seconds",
        "histogram",
        (),
        "From a client's frame until the broker has stored it",
    ),
    Spec(
        "wsgateway_gateway_publish_errors_total",
        "counter",
        ("reason",),
        "Clients' frames that were not stored",
    ),
    Spec(
        "wsgateway_gateway_delivery_lag_seconds",
        "histogram",
        ("path",),
        "From storing a message until it was written to a socket, of one message in 13. Path is "
        "live, or fetched: read from the stream",
    ),
    Spec(
        "wsgateway_gateway_unconfirmed_total",
        "counter",
        (),
        "Messages written to sockets that ended before the client confirmed them; they are "
        "delivered again",
    ),
    Spec(
        "wsgateway_gateway_skipped_total",
        "counter",
        (),
        "Stored messages that were skipped because they cannot be sent as a frame",
    ),
    Spec(
        "wsgateway_gateway_gaps_total",
        "counter",
        (),
        "Times that live delivery missed a message of a socket",
    ),
    Spec(
        "wsgateway_gateway_gaps_filled_total",
        "counter",
        (),
        "Those gaps that were filled from the stream",
    ),
    Spec(
        "wsgateway_gateway_window_stalls_total",
        "counter",
        (),
        "Times that messages waited because a socket had WSGATEWAY_WINDOW unconfirmed ones",
    ),
    Spec(
        "wsgateway_gateway_watched_users",
        "gauge",
        (),
        "Users and topics whose presence sockets watch, each counted once",
    ),
    Spec(
        "wsgateway_gateway_topic_subscriptions",
        "gauge",
        (),
        "Topics that sockets read, each counted once for each socket",
    ),
    Spec(
        "wsgateway_gateway_refused_topic_subscriptions_total",
        "counter",
        ("code",),
        "Subscriptions to topics that were refused, by code",
    ),
    Spec(
        "wsgateway_gateway_slow_topic_subscriptions_total",
        "counter",
        (),
        "Subscriptions to ephemeral topics that ended because the client read too slowly",
    ),
    Spec("wsgateway_gateway_fetches_total", "counter", (), "Reads of inboxes from the stream"),
    Spec(
        "wsgateway_gateway_fetched_messages_total",
        "counter",
        (),
        "Messages that these reads brought",
    ),
    Spec(
        "wsgateway_gateway_cursor_writes_total",
        "counter",
        ("result",),
        "Writes of devices' positions; result is ok or failed",
    ),
)
BROKER = (
    Spec(
        "wsgateway_broker_connections",
        "gauge",
        ("state",),
        "Connections to the broker: ready, connected (but a stream is missing, for example), or "
        "disconnected",
    ),
    Spec("wsgateway_broker_connects_total", "counter", (), "Connections that were established"),
    Spec(
        "wsgateway_broker_reconnects_total",
        "counter",
        (),
        "Those that replaced a lost connection",
    ),
    Spec("wsgateway_broker_losses_total", "counter", (), "Connections that were lost"),
)
LAYER = (
    Spec(
        "wsgateway_layer_sent_total",
        "counter",
        ("kind",),
        "Messages sent to a channel of one process (specific), a normal channel (normal), a "
        "group (group) or a durable group (durable)",
    ),
    Spec(
        "wsgateway_layer_received_total",
        "counter",
        (),
        "Messages that receive() returned",
    ),
    Spec(
        "wsgateway_layer_dropped_total",
        "counter",
        ("reason",),
        "Messages that were dropped: the channel was full, the message expired, was unreadable, "
        "or was unsent because the connection was lost",
    ),
    Spec(
        "wsgateway_layer_channel_full_total",
        "counter",
        (),
        "Sends that raised ChannelFull",
    ),
    Spec(
        "wsgateway_layer_gaps_total",
        "counter",
        (),
        "Times that live delivery missed a message of a durable group",
    ),
    Spec(
        "wsgateway_layer_gaps_filled_total",
        "counter",
        (),
        "Those gaps that were filled from the stream",
    ),
    Spec(
        "wsgateway_layer_window_stalls_total",
        "counter",
        (),
        "Times that messages of a durable group waited because a member was at its capacity",
    ),
)
SERVICE = (
    Spec(
        "wsgateway_service_handler_seconds",
        "histogram",
        ("service",),
        "How long handlers ran, whatever their outcome",
    ),
    Spec("wsgateway_service_handlers", "gauge", ("service",), "Handlers that are running"),
    Spec(
        "wsgateway_service_messages_total",
        "counter",
        ("service", "outcome"),
        "Messages by outcome: done, retried, rejected or dead-lettered",
    ),
    Spec(
        "wsgateway_service_shortened_total",
        "counter",
        ("service",),
        "Dead letters that hold only a part of their message, because it did not fit",
    ),
    Spec(
        "wsgateway_service_redeliveries_total",
        "counter",
        ("service",),
        "Deliveries to a worker that were not a message's first: retries, and messages whose "
        "worker died or was too slow",
    ),
)
OUTBOX = (
    Spec("wsgateway_outbox_relayed_total", "counter", (), "Rows that were relayed"),
    Spec(
        "wsgateway_outbox_set_aside_total",
        "counter",
        (),
        "Rows that were set aside because they can never be stored",
    ),
    Spec(
        "wsgateway_outbox_failures_total",
        "counter",
        (),
        "Errors of the database or the broker after which the relay tried again",
    ),
    Spec(
        "wsgateway_outbox_relay_seconds",
        "histogram",
        (),
        "From writing a row until its message was stored",
    ),
)
EVENTS = (
    Spec(
        "wsgateway_events_active",
        "gauge",
        (),
        "1 in the runevents process that sends signals, 0 in those that stand by",
    ),
    Spec("wsgateway_events_online", "gauge", (), "Users who are online, as far as it knows"),
    Spec("wsgateway_events_waiting", "gauge", (), "Signals that wait for receivers"),
    Spec(
        "wsgateway_events_signals_total",
        "counter",
        ("outcome",),
        "Signals: sent, failed (a receiver raised), dropped (too many waited)",
    ),
    Spec(
        "wsgateway_events_posts_total",
        "counter",
        ("outcome",),
        "Events for the webhook: sent, failed (after the last try), dropped (too many waited)",
    ),
)
BRIDGES = (
    Spec(
        "wsgateway_bridge_connected",
        "gauge",
        ("bridge",),
        "1 if the bridge's Kafka or RabbitMQ can be reached, 0 otherwise",
    ),
    Spec(
        "wsgateway_bridge_blocked",
        "gauge",
        ("bridge",),
        "1 while something keeps the bridge from carrying all records: Kafka, RabbitMQ or NATS is "
        "away, full or misconfigured; 0 otherwise",
    ),
    Spec(
        "wsgateway_bridge_records_total",
        "counter",
        ("bridge", "direction", "outcome"),
        "Records that were carried, or set aside because they never can be. Direction is send "
        "(from clients to services) or receive",
    ),
    Spec(
        "wsgateway_bridge_cut_total",
        "counter",
        ("bridge",),
        "Records that were set aside, but did not fit into ws.dead as they were",
    ),
    Spec(
        "wsgateway_bridge_failures_total",
        "counter",
        ("bridge", "direction"),
        "Tries that failed because Kafka, RabbitMQ or NATS was away, full or misconfigured; they "
        "are repeated",
    ),
    Spec(
        "wsgateway_bridge_waiting",
        "gauge",
        ("bridge", "direction"),
        "Records in hand: taken, and not carried yet",
    ),
)
API = (
    Spec(
        "wsgateway_api_requests_total",
        "counter",
        ("result",),
        "Requests to the server API: ok, refused (a status of 4xx), failed (5xx)",
    ),
)
LOCAL = (
    Spec("wsgateway_info", "gauge", ("version",), "Always 1; the version of wsgateway"),
    *GATEWAY,
    *BROKER,
    *LAYER,
    *SERVICE,
    *OUTBOX,
    *EVENTS,
    *BRIDGES,
    *API,
)
CLUSTER = (
    Spec(
        "wsgateway_queue_messages",
        "gauge",
        ("service",),
        "Clients' messages that no worker has acknowledged",
    ),
    Spec(
        "wsgateway_queue_in_flight",
        "gauge",
        ("service",),
        "Those that a worker has taken, and has not finished, even if it died since",
    ),
    Spec(
        "wsgateway_queue_pulls",
        "gauge",
        ("service",),
        "Workers' open requests for more; 0 if there is no worker, or all of them are busy",
    ),
    Spec(
        "wsgateway_queue_paused",
        "gauge",
        ("service",),
        "1 if workers get no messages because a webhook answered 410, 0 otherwise",
    ),
    Spec(
        "wsgateway_queue_age_seconds",
        "gauge",
        ("service",),
        "Age of the oldest of these messages; 0 if there is none",
    ),
    Spec(
        "wsgateway_queue_dead_letters",
        "gauge",
        ("service",),
        "Dead letters of the service",
    ),
    Spec("wsgateway_stream_messages", "gauge", ("stream",), "Messages in a stream"),
    Spec("wsgateway_stream_bytes", "gauge", ("stream",), "Bytes in a stream"),
    Spec(
        "wsgateway_stream_limit_bytes",
        "gauge",
        ("stream",),
        "Bytes that the stream may hold; 0 if there is no limit",
    ),
    Spec(
        "wsgateway_stream_limit_messages",
        "gauge",
        ("stream",),
        "Messages that the stream may hold; 0 if there is no limit",
    ),
    Spec(
        "wsgateway_stream_healthy",
        "gauge",
        ("stream",),
        "1 if the stream exists, has a leader, and none of its replicas is away; otherwise 0",
    ),
    Spec(
        "wsgateway_outbox_rows",
        "gauge",
        ("database", "state"),
        "Rows of the outbox that are waiting, or set aside (failed)",
    ),
    Spec(
        "wsgateway_outbox_age_seconds",
        "gauge",
        ("database",),
        "Age of the oldest waiting row; 0 if there is none",
    ),
    Spec(
        "wsgateway_cluster_up",
        "gauge",
        ("source",),
        "1 if the source of cluster-wide metrics, broker or outbox, answered; otherwise 0, and "
        "its metrics are missing",
    ),
)
"""The same in every process that is asked; without `PROCESS_LABEL`."""
EXPORT = (
    Spec(
        "wsgateway_metrics_processes",
        "gauge",
        ("state",),
        "Processes that share this port: answered, or silent for a second",
    ),
)
CATALOG = (*LOCAL, *CLUSTER, *EXPORT)
