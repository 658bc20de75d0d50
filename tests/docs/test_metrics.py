"""Metrics: the documented table, the dashboard and the alert rules against what is exported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from tests.promql import Query, Selector, parse
from tests.support import ROOT
from wsgateway import counters
from wsgateway.metrics.catalog import CATALOG, CLUSTER, EXPORT, LOCAL, PROCESS_LABEL, Spec
from wsgateway.metrics.collector import COLLECTOR

DASHBOARD = ROOT / "deploy/grafana/wsgateway.json"
RULES = ROOT / "deploy/prometheus/wsgateway.rules.yml"
SCRAPED = {"job", "instance"}
"""Labels that Prometheus itself adds."""
PARTS = {"histogram": ("_bucket", "_sum", "_count")}
BY_SERIES = {f"{spec.name}{part}": spec for spec in CATALOG for part in PARTS.get(spec.type, ("",))}


# -- the table ---------------------------------------------------------------------------


def documented() -> list[tuple[str, ...]]:
    lines = (ROOT / "docs/reference/metrics.md").read_text().splitlines()
    cells = [[c.strip() for c in line.strip("| ").split(" | ")] for line in lines if "|" in line]
    return [tuple(row) for row in cells if row[0].startswith("`wsgateway_")]


def test_every_metric_is_documented_with_type_labels_and_meaning() -> None:
    wanted = [
        (f"`{s.name}`", s.type, ", ".join(f"`{each}`" for each in s.labels) or "-", s.doc)
        for s in CATALOG
    ]
    assert documented() == wanted


def test_collector_exports_exactly_the_metrics_of_the_catalog() -> None:
    registry = CollectorRegistry()
    registry.register(COLLECTOR)
    families = {family.name: family for family in registry.collect()}
    assert set(families) == {spec.family for spec in LOCAL}
    for spec in LOCAL:
        family = families[spec.family]
        assert (family.type, family.documentation) == (spec.type, spec.doc)
        for sample in family.samples:
            assert BY_SERIES[sample.name] is spec
            assert set(sample.labels) - {"le"} == set(spec.labels)


def test_every_metric_of_the_catalog_gets_a_value() -> None:
    """A metric that the collector forgot had a family without samples, which nobody noticed."""
    filled = {family.name for family in COLLECTOR.collect() if family.samples}
    per_service = {spec.family for spec in LOCAL if {"service", "bridge"} & set(spec.labels)}
    assert {spec.family for spec in LOCAL} - filled <= per_service


def test_registered_with_prometheus_client_it_is_described_without_counting() -> None:
    described = {family.name: family.samples for family in COLLECTOR.describe()}
    assert described == {spec.family: [] for spec in LOCAL}


@pytest.mark.parametrize("spec", CATALOG, ids=lambda spec: spec.name)
def test_name_follows_the_conventions(spec: Spec) -> None:
    assert re.fullmatch(r"wsgateway(_[a-z]+)+", spec.name)
    assert spec.name.endswith("_total") == (spec.type == "counter")
    assert spec.name.endswith("_seconds") or spec.type != "histogram"
    assert not {"user", "device", "connection"} & set(spec.labels), "that would be many series"


# -- queries -----------------------------------------------------------------------------


def panels(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield title and query of each target."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def rules(text: str) -> Iterator[dict[str, Any]]:
    """Yield the alerts of a rule file, as far as ours needs YAML."""
    rule: dict[str, Any] = {}
    folded = ""
    for line in text.splitlines():
        if found := re.fullmatch(r"      (- |  )(\w+):(?: (.*))?", line):
            mark, key, value = found.groups()
            if mark == "- ":
                if rule:
                    yield rule
                rule = {}
            folded = key if value == ">-" else ""
            rule[key] = "" if folded else value or {}
        elif found := re.fullmatch(r"          (\w+): (.*)", line):
            rule[list(rule)[-1]][found[1]] = found[2]
        elif folded and line.startswith("          "):
            rule[folded] = f"{rule[folded]} {line.strip()}".strip()
        elif line.strip() and not re.fullmatch(r" *#.*|groups:|  - name: \w+|    rules:", line):
            raise AssertionError(f"the test does not understand {line!r}")
    yield rule


def variables_replaced(query: str) -> str:
    """Return a query of the dashboard as Grafana sends it."""
    return query.replace("$__rate_interval", "5m").replace("$job", "wsgateway")


def own_series() -> set[str]:
    """Return what prometheus-client exports of every process."""
    return {sample.name for family in REGISTRY.collect() for sample in family.samples}


CLUSTER_VALUES = {
    ("wsgateway_outbox_rows", "state"): {"waiting", "failed"},
    ("wsgateway_cluster_up", "source"): {"broker", "outbox"},
    ("wsgateway_metrics_processes", "state"): {"answered", "silent"},
}
"""See `tests.integration.test_metrics`."""


def values_of(spec: Spec, label: str) -> set[str] | None:
    """Return the values that a label can have; None if they are the installation's own."""
    if label in ("service", "bridge", "protocol", "stream", "database", "version", "process"):
        return None
    if spec in CLUSTER or spec in EXPORT:
        return CLUSTER_VALUES[spec.name, label]
    counters.service("orders")
    counters.bridge("warehouse")
    samples = [sample for family in COLLECTOR.collect() for sample in family.samples]
    return {s.labels[label] for s in samples if BY_SERIES[s.name] is spec and label in s.labels}


def problems(query: Query) -> Iterator[str]:
    """Yield what a query names that nobody exports."""
    known = own_series()
    for selector in query.selectors:
        if selector.metric not in BY_SERIES and selector.metric not in known:
            yield f"nobody exports {selector.metric}"
            continue
        allowed = labels_of(selector)
        for label, operator, value in selector.matchers:
            if label not in allowed:
                yield f"{selector.metric} has no label {label}"
            elif label not in SCRAPED and not can_match(selector, label, operator, value):
                yield f"no {label} of {selector.metric} is {value}"
    for labels, about in query.groups:
        for selector in about:
            for label in set(labels) - labels_of(selector):
                yield f"{selector.metric} has no label {label} to group by"


def labels_of(selector: Selector) -> set[str]:
    spec = BY_SERIES.get(selector.metric)
    if spec is None:
        return SCRAPED | {PROCESS_LABEL}
    found = SCRAPED | set(spec.labels)
    found |= {"le"} if selector.metric.endswith("_bucket") else set()
    return found | ({PROCESS_LABEL} if spec in LOCAL else set())


def can_match(selector: Selector, label: str, operator: str, value: str) -> bool:
    spec = BY_SERIES.get(selector.metric)
    values = None if spec is None else values_of(spec, label)
    if values is None:
        return True
    parts = value.split("|") if operator in ("=~", "!~") else [value]
    return set(parts) <= values


DASHBOARD_QUERIES = [*panels(json.loads(DASHBOARD.read_text()))]
ALERTS = [*rules(RULES.read_text())]


@pytest.mark.parametrize(("title", "text"), DASHBOARD_QUERIES)
def test_query_of_the_dashboard_names_what_is_exported(title: str, text: str) -> None:
    assert list(problems(parse(variables_replaced(text)))) == []


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_names_what_is_exported(rule: dict[str, Any]) -> None:
    assert list(problems(parse(rule["expr"]))) == []
    assert rule["labels"]["severity"] in ("warning", "critical")
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    kept = {label for labels, _ in parse(rule["expr"]).groups for label in labels}
    assert used <= kept


def test_dashboard_and_alerts_cover_every_part() -> None:
    texts = [text for _, text in DASHBOARD_QUERIES]
    named = {s.metric for text in texts for s in parse(variables_replaced(text)).selectors}
    shown = {BY_SERIES[name].name for name in named if name in BY_SERIES}
    missing = {spec.name for spec in CATALOG} - shown
    # What another panel shows in another way, or what is of use in an alert only
    assert missing == {
        "wsgateway_bridge_cut_total",
        "wsgateway_broker_connects_total",
        "wsgateway_cluster_up",
        "wsgateway_events_posts_total",
        "wsgateway_gateway_fetched_messages_total",
        "wsgateway_layer_gaps_filled_total",
        "wsgateway_layer_gaps_total",
        "wsgateway_layer_window_stalls_total",
        "wsgateway_outbox_failures_total",
        "wsgateway_outbox_relayed_total",
        "wsgateway_outbox_set_aside_total",
        "wsgateway_queue_paused",
        "wsgateway_queue_pulls",
        "wsgateway_service_shortened_total",
        "wsgateway_stream_healthy",
    }


def test_dashboard_asks_the_data_source_that_the_reader_chooses() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert names == {"datasource", "job"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sum(wsgateway_gateway_socket)", "nobody exports wsgateway_gateway_socket"),
        ("sum by (user) (wsgateway_gateway_sockets)", "has no label user to group by"),
        ('wsgateway_gateway_sockets{code="1"}', "has no label code"),
        ('wsgateway_broker_connections{state="open"}', "is open"),
        ("wsgateway_gateway_publish_seconds", "nobody exports"),
        ("max by (process) (wsgateway_queue_age_seconds)", "has no label process"),
        ("up * on (service) wsgateway_info", "nobody exports up"),
    ],
)
def test_query_that_names_something_else_is_found(text: str, problem: str) -> None:
    assert problem in " ".join(problems(parse(text)))


@pytest.mark.parametrize(
    "text", ["sum(", "rate(a[5m)", "a b", "nothing(a)", "sum by service (a)", 'a{b="c}', "a @"]
)
def test_what_is_not_promql_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


def promtool() -> str:
    """Return the path of Prometheus' own checker, which Debian's package prometheus has."""
    found = shutil.which("promtool") or shutil.which("promtool", path=str(ROOT / ".cache/bin"))
    if found is None:
        pytest.skip("promtool is not installed; it is in Debian's package prometheus")
    return str(found)


def test_promtool_accepts_the_rules() -> None:
    command = [promtool(), "check", "rules", str(RULES)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(ALERTS)} rules found" in result.stdout


def test_promtool_accepts_what_is_exported(tmp_path: Path) -> None:
    from prometheus_client import generate_latest

    registry = CollectorRegistry()
    registry.register(COLLECTOR)
    command = [promtool(), "check", "metrics"]
    result = subprocess.run(command, input=generate_latest(registry), capture_output=True)
    assert result.returncode == 0, (result.stdout + result.stderr).decode()
