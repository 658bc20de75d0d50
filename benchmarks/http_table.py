"""The rows of the benchmark `http` as the tables that stand in the documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["tables"]

Row = dict[str, Any]
Cell = Callable[[Row], str]
NAMES = {"daphne": "wsgateway on daphne", "uvicorn": "wsgateway on uvicorn", "pushpin": "Pushpin"}
TRANSPORTS = {"sse": "server-sent events", "ws": "websockets"}


def tables(rows: list[Row]) -> str:
    """Return all tables as Markdown, each below the case that it shows."""
    found = []
    for transport, title in TRANSPORTS.items():
        chosen = [row for row in rows if row.get("transport") == transport]
        found.append(_table(title, PUBLISH, [row for row in chosen if row["case"] == "publish"]))
        killed = [row for row in chosen if row["case"] == "kill"]
        found.append(_table(f"{title}, killed in the middle", KILL, killed))
    frames = [row for row in rows if row["case"] == "frames"]
    found.append(_table("client frames to a backend", FRAMES, frames))
    killed = [row for row in rows if row["case"] == "kill frames"]
    found.append(_table("client frames to a backend, killed in the middle", KILL_FRAMES, killed))
    return "\n\n".join(filter(None, found))


def _table(title: str, lines: dict[str, Cell], rows: list[Row]) -> str:
    if not rows:
        return ""
    head = [title, *(NAMES[row["system"]] for row in rows)]
    body = [[name, *map(cell, rows)] for name, cell in lines.items()]
    return "\n".join(map(_line, [head, ["---", *["---:"] * len(rows)], *body]))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(name: str) -> Cell:
    return lambda row: f"{row[name]:,.0f}"


def _pair(first: str, second: str) -> Cell:
    return lambda row: f"{row[first]:,.1f} / {row[second]:,.1f}"


def _memory(row: Row) -> str:
    """Return the resident memory of all processes."""
    return f"{sum(row['MB'].values()):,.0f}"


def _lost(of: str) -> Cell:
    def lost(row: Row) -> str:
        count, wanted = row[f"lost of {of}"], row[f"wanted of {of}"]
        return f"{count:,} ({count / wanted:.1%})" if count else "0"

    return lost


PUBLISH: dict[str, Cell] = {
    "to all, 5/s: latency p50 / p99, ms": _pair("topic p50 ms", "topic p99 ms"),
    "to one, 200/s: latency p50 / p99, ms": _pair("user p50 ms", "user p99 ms"),
    "to all, 10 a request: delivered/s": _number("topic: delivered/s"),
    "to one, 1 a request: delivered/s": _number("user: delivered/s"),
    "to one, 100 a request: delivered/s": _number("users at once: delivered/s"),
    "to all: CPU a delivery, µs": _number("topic: CPU us"),
    "to one, 1 a request: CPU a delivery, µs": _number("user: CPU us"),
    "to one, 100 a request: CPU a delivery, µs": _number("users at once: CPU us"),
    "connects/s": _number("connects/s"),
    "memory of all processes, MB": _memory,
    "memory a reader, KB": _number("KB/reader"),
}
KILL: dict[str, Cell] = {
    "deliveries wanted, to all": _number("wanted of the topic"),
    "lost": _lost("the topic"),
    "deliveries wanted, to one": _number("wanted of users"),
    "lost ": _lost("users"),
    "twice": _number("twice"),
    "out of order": _number("out of order"),
}
FRAMES: dict[str, Cell] = {
    "1 client: p50 / p99, ms": _pair("1 client p50 ms", "1 client p99 ms"),
    "100 clients: answered/s": _number("answered/s"),
    "100 clients: p50 / p99, ms": _pair("p50 ms", "p99 ms"),
    "CPU an answer, µs": _number("CPU us"),
    "memory of all processes, MB": _memory,
}
KILL_FRAMES: dict[str, Cell] = {
    "frames sent": _number("asked"),
    "without an answer": _number("lost"),
    "answered twice": _number("twice"),
}
