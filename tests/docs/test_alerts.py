"""Alert rules in Prometheus' own engine: each fires when it should, and no other does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.docs.test_metrics import ALERTS, RULES, promtool

MINUTES = 20
"""How long each case lasts; what is not told otherwise goes on."""
SCRAPED = 'job="wsgateway", instance="a"'
ALIVE = {f'wsgateway_info{{{SCRAPED}, version="1"}}': "1"}
Series = dict[str, str]


def steady(name: str, value: str, labels: str = "") -> Series:
    """Return a series that has one value, or Prometheus' notation of several."""
    return {f"{name}{{{SCRAPED}, {labels}}}": value}


def rising(name: str, each_minute: int, labels: str = "") -> Series:
    """Return a counter."""
    return steady(name, f"0+{each_minute}x{MINUTES}", labels)


def latencies(name: str, quick: int, slow: int, labels: str = "") -> Series:
    """Return a histogram with so many values below 0.1 s and above 2.5 s each minute."""
    found: Series = {}
    for bound, count in (("0.1", quick), ("1.0", quick), ("2.5", quick), ("5.0", quick + slow)):
        found |= rising(f"{name}_bucket", count, f'le="{bound}", {labels}')
    return found | rising(f"{name}_bucket", quick + slow, f'le="+Inf", {labels}')


def queue(messages: str, *, pulls: str = "0", in_flight: str = "0", age: str = "0") -> Series:
    """Return what is known of a queue."""
    return {
        **steady("wsgateway_queue_messages", messages, 'service="orders"'),
        **steady("wsgateway_queue_pulls", pulls, 'service="orders"'),
        **steady("wsgateway_queue_in_flight", in_flight, 'service="orders"'),
        **steady("wsgateway_queue_age_seconds", age, 'service="orders"'),
    }


def stream(size: str, limit: str, messages: str = "1", most: str = "0") -> Series:
    """Return what is known of a stream."""
    return {
        **steady("wsgateway_stream_bytes", size, 'stream="S"'),
        **steady("wsgateway_stream_limit_bytes", limit, 'stream="S"'),
        **steady("wsgateway_stream_messages", messages, 'stream="S"'),
        **steady("wsgateway_stream_limit_messages", most, 'stream="S"'),
    }


def outcomes(**rates: int) -> Series:
    """Return how many messages a service handled each minute, by outcome."""
    found: Series = {}
    for outcome, rate in rates.items():
        labels = f'service="orders", outcome="{outcome.replace("_", "-")}"'
        found |= rising("wsgateway_service_messages_total", rate, labels)
    return found


def starts(**rates: int) -> Series:
    """Return where delivery to clients began each minute."""
    found: Series = {}
    for result, rate in rates.items():
        found |= rising("wsgateway_gateway_starts_total", rate, f'result="{result}"')
    return found


def everybody(name: str, values: tuple[str, str], labels: str) -> Series:
    """Return a cluster-wide gauge as two addresses say it."""
    return {
        f'{name}{{job="wsgateway", instance="{instance}", {labels}}}': value
        for instance, value in zip("ab", values, strict=True)
    }


HANDLING = steady("wsgateway_service_handlers", "1", 'service="orders"')
SILENT = 'state="silent"'
CASES: list[tuple[str, Series, set[str]]] = [
    ("all is well", {}, set()),
    # The broker
    ("ready", steady("wsgateway_broker_connections", "0", 'state="disconnected"'), set()),
    (
        "one process is away",
        steady("wsgateway_broker_connections", "1", 'state="disconnected"'),
        {"BrokerNotReady"},
    ),
    (
        "a stream is missing",
        steady("wsgateway_broker_connections", "1", 'state="connected"'),
        {"BrokerNotReady"},
    ),
    (
        "a moment without a connection",
        steady("wsgateway_broker_connections", "1 0x19", 'state="disconnected"'),
        set(),
    ),
    ("a connection that comes and goes", rising("wsgateway_broker_losses_total", 1),
     {"BrokerFlaps"}),
    ("two restarts of NATS", steady("wsgateway_broker_losses_total", "0x10 1x4 2x6"), set()),
    (
        "nobody can ask the broker",
        everybody("wsgateway_cluster_up", ("0", "0"), 'source="broker"'),
        {"ClusterUnknown"},
    ),
    (
        "one of two can ask the broker",
        everybody("wsgateway_cluster_up", ("0", "1"), 'source="broker"'),
        set(),
    ),
    # Streams
    ("room", stream("79", "100"), set()),
    ("no limit", stream("1e12", "0"), set()),
    ("bytes", stream("81", "100"), {"StreamFillsUp"}),
    ("messages", stream("1", "100", "81", "100"), {"StreamFillsUp"}),
    ("both", stream("81", "100", "81", "100"), {"StreamFillsUp"}),
    ("a replica is away", steady("wsgateway_stream_healthy", "0", 'stream="S"'),
     {"StreamUnhealthy"}),
    # Queues
    ("an idle worker", queue("0", pulls="1"), set()),
    ("a slow worker", queue("5", pulls="1", age="400"), {"QueueIsStuck"}),
    ("no worker, nothing to do", queue("0"), set()),
    ("no worker", queue("5"), {"QueueHasNoWorker"}),
    ("a worker that died while it handled one", queue("5", in_flight="1"), {"QueueHasNoWorker"}),
    ("all workers are busy", queue("5", in_flight="1") | HANDLING, set()),
    ("a webhook that answers", steady("wsgateway_queue_paused", "0", 'service="orders"'), set()),
    ("a webhook that is gone", steady("wsgateway_queue_paused", "1", 'service="orders"'),
     {"WebhookIsGone"}),
    # Services
    ("all are handled", outcomes(done=100, retried=0, dead_lettered=0), set()),
    ("few are tried again", outcomes(done=100, retried=10), set()),
    ("many are tried again", outcomes(done=100, retried=50), {"HandlersFail"}),
    ("dead letters", outcomes(done=100, dead_lettered=1), {"DeadLetters"}),
    # The gateway
    ("one frame was refused", steady("wsgateway_gateway_publish_errors_total", "0 1x19",
                                     'reason="too_big"'), set()),
    ("frames are refused", rising("wsgateway_gateway_publish_errors_total", 1,
                                  'reason="queue_full"'), {"PublishFails"}),
    ("quick", latencies("wsgateway_gateway_publish_seconds", 1000, 1), set()),
    ("slow", latencies("wsgateway_gateway_publish_seconds", 90, 10), {"PublishIsSlow"}),
    ("no traffic", latencies("wsgateway_gateway_publish_seconds", 0, 0), set()),
    ("live", latencies("wsgateway_gateway_delivery_lag_seconds", 1000, 1, 'path="live"'), set()),
    ("late", latencies("wsgateway_gateway_delivery_lag_seconds", 90, 10, 'path="live"'),
     {"DeliveryIsSlow"}),
    ("fetched after hours",
     latencies("wsgateway_gateway_delivery_lag_seconds", 0, 10, 'path="fetched"'), set()),
    ("some return after weeks", starts(recovered=100, new=50, trimmed=5, epoch=0), set()),
    ("many miss messages", starts(recovered=100, new=0, trimmed=50, epoch=0),
     {"MessagesMayBeMissing"}),
    ("another stream", starts(recovered=100, trimmed=0, epoch=1), {"StreamWasReplaced"}),
    ("an older stream", starts(recovered=100, trimmed=0, ahead=1), {"StreamWasReplaced"}),
    ("logouts", rising("wsgateway_gateway_disconnects_total", 5, 'by="gateway", code="4016"'),
     set()),
    ("a broken consumer",
     rising("wsgateway_gateway_disconnects_total", 5, 'by="gateway", code="4018"'),
     {"SocketsFail"}),
    ("a broken resolver", rising("wsgateway_gateway_refused_total", 5, 'code="4018"'),
     {"SocketsFail"}),
    ("a client that sends our code",
     rising("wsgateway_gateway_disconnects_total", 5, 'by="client", code="4018"'), set()),
    # The channel layer, the outbox, events
    ("messages expire", rising("wsgateway_layer_dropped_total", 5, 'reason="expired"'), set()),
    ("channels are full", rising("wsgateway_layer_dropped_total", 5, 'reason="full"'),
     {"LayerDrops"}),
    ("a relay runs", steady("wsgateway_outbox_age_seconds", "2", 'database="default"'), set()),
    ("no relay", steady("wsgateway_outbox_age_seconds", "0+60x20", 'database="default"'),
     {"OutboxIsStuck"}),
    ("many rows wait", steady("wsgateway_outbox_rows", "9", 'database="d", state="waiting"'),
     set()),
    ("a row is set aside", steady("wsgateway_outbox_rows", "1", 'database="d", state="failed"'),
     {"OutboxRowsFailed"}),
    ("receivers keep up", rising("wsgateway_events_signals_total", 9, 'outcome="sent"'), set()),
    ("receivers are slow", rising("wsgateway_events_signals_total", 9, 'outcome="dropped"'),
     {"SignalsDropped"}),
    ("one of two bridges reaches the bus",
     everybody("wsgateway_bridge_connected", ("0", "1"), 'bridge="warehouse"'), set()),
    ("no bridge reaches the bus",
     everybody("wsgateway_bridge_connected", ("0", "0"), 'bridge="warehouse"'),
     {"BridgeIsCutOff"}),
    ("a bridge that is cut off waits, too",
     everybody("wsgateway_bridge_connected", ("0", "0"), 'bridge="warehouse"')
     | everybody("wsgateway_bridge_blocked", ("1", "1"), 'bridge="warehouse"'),
     {"BridgeIsCutOff"}),
    ("one of two bridges waits",
     everybody("wsgateway_bridge_connected", ("1", "1"), 'bridge="warehouse"')
     | everybody("wsgateway_bridge_blocked", ("0", "1"), 'bridge="warehouse"'),
     {"BridgeIsBlocked"}),
    ("a bridge waits for a moment",
     steady("wsgateway_bridge_blocked", "0x10 1 0x9", 'bridge="warehouse"'), set()),
    ("a bridge sets records aside",
     rising("wsgateway_bridge_records_total", 1,
            'bridge="warehouse", direction="receive", outcome="set-aside"'),
     {"BridgeSetsAside"}),
    # Processes at one port
    ("all answer", steady("wsgateway_metrics_processes", "0", SILENT), set()),
    ("one stands still for a moment", steady("wsgateway_metrics_processes", "0x10 1 0x9", SILENT),
     set()),
    ("one stands still, and takes every second scrape",
     steady("wsgateway_metrics_processes",
            "0 0 0 " + "1 stale " * (MINUTES // 2 - 1), SILENT), {"ProcessSilent"}),
]  # fmt: skip


def case(name: str, series: Series, alerts: set[str]) -> dict[str, Any]:
    """Return a test for promtool: which alerts fire after `MINUTES`."""
    fires = [{"labels": f'{{alertname="Wsgateway{each}"}}', "value": 1} for each in sorted(alerts)]
    return {
        "name": name,
        "interval": "1m",
        "input_series": [
            {"series": name, "values": f"{value}x{MINUTES}" if is_number(value) else value}
            for name, value in (series).items()
        ],
        "promql_expr_test": [
            {
                "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{MINUTES - 1}m",
                "exp_samples": fires,
            }
        ],
    }


def is_number(text: str) -> bool:
    """Say whether *text* is a value, not a notation of several."""
    return text.replace(".", "").replace("e", "").isdecimal()


def check(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    """Let promtool run *cases*."""
    path = tmp_path / "alerts.yml"  # JSON is YAML
    path.write_text(json.dumps({"rule_files": [str(RULES)], "tests": cases}))
    command = [promtool(), "test", "rules", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_alert_fires_when_it_should_and_no_other_does(tmp_path: Path) -> None:
    check(tmp_path, [case(name, ALIVE | series, alerts) for name, series, alerts in CASES])


def test_without_any_process_one_alert_fires(tmp_path: Path) -> None:
    """All others were silent when every process was gone."""
    check(tmp_path, [case("nothing answers", {}, {"Absent"})])


def test_every_alert_is_tried() -> None:
    tried = {f"Wsgateway{each}" for _, _, alerts in CASES for each in alerts}
    assert tried | {"WsgatewayAbsent"} == {rule["alert"] for rule in ALERTS}


def test_an_alert_that_does_not_fire_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="WsgatewayBrokerNotReady"):
        check(tmp_path, [case("all is well", ALIVE, {"BrokerNotReady"})])
