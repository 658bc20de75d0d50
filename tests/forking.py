"""Starts many Python programs fast: in forks, see `tests.forker`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
from pathlib import Path

from tests.support import process_alive, wait_for

__all__ = ["Forked", "Forker"]


class Forked:
    """A process that a `Forker` has made, with what `Process` wants of `subprocess.Popen`."""

    def __init__(self, pid: int, status: Path) -> None:
        self.pid = pid
        self._status = status

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if process_alive(self.pid):
            return None
        return int(self._status.read_text()) if self._status.exists() else -signal.SIGKILL

    def wait(self, timeout: float = 20.0) -> int:
        """Wait until it has ended; return the exit code."""
        wait_for(lambda: self.poll() is not None, timeout, "the process ends")
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class Forker:
    """Starts Python programs in an environment faster than Python itself.

    Args:
        python: The environment's.
        folder: For files of its own.
        env: What it has to import with; None: what this process has.
    """

    def __init__(self, python: Path, folder: Path, env: dict[str, str] | None = None) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("forker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def fork(self, argv: list[str], cwd: Path, env: dict[str, str], log: Path) -> Forked:
        """Start a program: a script, or ``-m`` and a module, and arguments."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        status = self._folder / f"{log.stem}.status"
        order = {"argv": argv, "cwd": str(cwd), "env": env, "log": str(log), "status": str(status)}
        log.touch()
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return Forked(int(self._process.stdout.readline()), status)

    def run(self, argv: list[str], cwd: Path, env: dict[str, str]) -> str:
        """Run a program to its end; return what it prints, whether it fails or not."""
        log = self._folder / f"forked-{next(self._numbers)}.log"
        self.fork(argv, cwd, env, log).wait(60)
        return log.read_text()

    def close(self) -> None:
        """End it; what it has started goes on."""
        self._process.communicate()
