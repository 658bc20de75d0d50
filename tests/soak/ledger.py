"""What each process of a soak run did, one JSON object a line. Survives SIGKILL.

A line is one `write` in append mode, made after the fact it tells: what stands in a ledger has
happened. A process that is started again reads its own ledger and goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Entry", "Ledger", "read"]

Entry = dict[str, Any]


class Ledger:
    """Appends to one file.

    Args:
        path: Made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, kind: str, **fields: Any) -> None:
        """Append one line: *kind*, the time, this process, and *fields*."""
        entry = {"kind": kind, "at": time.time(), "pid": os.getpid(), **fields}
        os.write(self._file, json.dumps(entry, separators=(",", ":")).encode() + b"\n")


def read(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file; none if there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # else the disk was full, or the machine stopped
                yield json.loads(line)
