"""The same small jobs as a service, as a Channels worker and as Celery tasks."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

__all__ = ["PAUSE", "tick", "ticks"]

PAUSE = 0.005
"""Seconds that the ``slow`` job waits, as for a database."""

_counter: memoryview | None = None
_lock = threading.Lock()  # Celery's jobs run in threads


def tick() -> None:
    """Count one job of this process where the benchmark sees it."""
    global _counter
    with _lock:
        if _counter is None:
            path = Path(os.environ["BENCH_TICKS"]) / str(os.getpid())
            path.write_bytes(bytes(8))
            with path.open("r+b") as file:
                _counter = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
        _counter[0] += 1


def ticks(folder: Path) -> int:
    """Return how many jobs all processes have counted."""
    return sum(int.from_bytes(path.read_bytes(), "little") for path in folder.iterdir())
