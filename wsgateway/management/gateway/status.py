"""``manage.py gateway status``: gateways, services, workers and streams at a glance."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from rich.text import Text

from wsgateway.broker import runtime
from wsgateway.broker.operations import Stream
from wsgateway.management.arguments import require_complete
from wsgateway.management.base import Action, Options
from wsgateway.management.output import Cell, Column, Level, Output, safe, size
from wsgateway.management.overview import Overview, ServiceLine, look
from wsgateway.presence import Gateway
from wsgateway.readable import duration
from wsgateway.services.status import BridgeWork, Worker

__all__ = ["Status"]

GATEWAYS = [
    Column("Gateway", whole=False),
    Column("Up", right=True),
    Column("Sockets", right=True),
    Column("In/s", right=True),
    Column("Out/s", right=True),
    Column("Memory", right=True),
    Column("State"),
    Column("Version", extra=True),
]
SERVICES = [
    Column("Service", whole=False),
    Column("Users", right=True),
    Column("Sockets", right=True),
    Column("Waiting", right=True),
    Column("Running", right=True),
    Column("Oldest", right=True),
    Column("Workers", right=True),
    Column("Dead", right=True),
]
WORKERS = [
    Column("Worker", whole=False),
    Column("Up", right=True),
    Column("Services", whole=False),
    Column("Running", right=True),
    Column("Handled", right=True),
    Column("Retried", right=True),
    Column("Failed", right=True),
    Column("Version", extra=True),
]
BRIDGES = [
    Column("Bridge", whole=False),
    Column("Worker", whole=False),
    Column("Sent", right=True),
    Column("Refused", right=True),
    Column("Received", right=True),
    Column("Set aside", right=True),
    Column("In hand", right=True),
    Column("State", whole=False),
]
STREAMS = [
    Column("Stream", whole=False),
    Column("Messages", right=True),
    Column("Size", right=True),
    Column("Used"),
    Column("Copies", right=True),
    Column("State"),
    Column("Leader", extra=True),
    Column("Holds", extra=True, cut=True),
]


class Status(Action):
    """All at a glance."""

    name = "status"
    help = "show gateways, services, workers and streams, and what is wrong with them"

    def run(self, out: Output, options: Options) -> None:
        """Print it."""
        found = runtime.call_sync(look)
        out.document(found.as_fields())
        _show(out, found)
        require_complete(found.silent)


def _show(out: Output, found: Overview) -> None:
    now = dt.datetime.now(dt.UTC)
    out.line(f"{found.broker}, prefix {found.prefix}")
    out.line()
    gateways = (_gateway(each, now) for each in found.gateways)
    out.table("Gateways", GATEWAYS, gateways, empty="No gateway answers.")
    out.line()
    services = (_service(each, now) for each in found.services)
    out.table("Services", SERVICES, services, empty="No service exists.")
    out.line()
    workers = (_worker(each, now) for each in found.workers)
    out.table("Workers", WORKERS, workers, empty="No worker answers.")
    out.line()
    if bridges := [row for each in found.workers for row in _bridges(each)]:
        out.table("Bridges", BRIDGES, bridges)
        out.line()
    out.table("Streams", STREAMS, map(_stream, found.streams), empty="No stream exists.")
    alerts = found.alerts(now)
    if alerts:
        out.line()
        out.line(Text("To look at", style="bold cyan"))
    for alert in alerts:
        color = "red" if alert.level == "error" else "yellow"
        out.line(Text(safe(alert.text), style=color))


def _age(moment: dt.datetime, now: dt.datetime) -> str:
    return duration((now - moment).total_seconds(), units=1)


def _gateway(each: Gateway, now: dt.datetime) -> tuple[Cell, ...]:
    return (
        each.id,
        _age(each.started, now),
        each.sockets,
        f"{each.rates.get('messages_in', 0.0):.1f}",
        f"{each.rates.get('messages_out', 0.0):.1f}",
        size(each.memory),
        Text("draining", style="yellow") if each.draining else Text("ready", style="green"),
        each.version,
    )


def _service(each: ServiceLine, now: dt.datetime) -> tuple[Cell, ...]:
    queue = each.queue
    is_wrong = queue.paused or (queue.waiting and not each.workers)
    return (
        queue.service,
        each.users,
        each.sockets,
        queue.waiting,
        queue.in_flight,
        _age(queue.oldest, now) if queue.oldest else None,
        Text("paused" if queue.paused else "0", style="red") if is_wrong else each.workers,
        Text(str(queue.dead), style="yellow") if queue.dead else 0,
    )


def _worker(each: Worker, now: dt.datetime) -> tuple[Cell, ...]:
    return (
        each.id,
        _age(each.started, now),
        ", ".join(each.services),
        each.busy,
        each.handled,
        each.retried,
        each.failed,
        each.version,
    )


def _bridges(each: Worker) -> Iterator[tuple[Cell, ...]]:
    for name, bridge in each.bridges.items():
        yield (
            name,
            each.id,
            bridge.sent,
            Text(str(bridge.refused), style="yellow") if bridge.refused else 0,
            bridge.received,
            Text(str(bridge.set_aside), style="yellow") if bridge.set_aside else 0,
            bridge.waiting,
            _state(bridge),
        )


def _state(bridge: BridgeWork) -> Text:
    if bridge.connected and not bridge.trouble:
        return Text("connected", style="green")
    why = bridge.trouble and f": {bridge.trouble}"
    cut_off = f"cut off from {bridge.bus}" if bridge.bus else "cut off"
    return Text(safe(f"{'waits' if bridge.connected else cut_off}{why}"), style="red")


def _stream(each: Stream) -> tuple[Cell, ...]:
    state = Text("ok", style="green")
    if each.last_error:
        state = Text("error", style="red")
    elif each.differences:
        state = Text("differs", style="yellow")
    return (
        each.name,
        each.messages,
        size(each.bytes),
        Level(each.level) if each.max_bytes or each.max_messages else None,
        f"{sum(peer.current for peer in each.peers) + 1}/{each.replicas}",
        state,
        each.leader or None,
        each.purpose,
    )
