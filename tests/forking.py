"""Starts many Python programs fast: in forks, see `tests.forker`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

__all__ = ["Forked", "Forker", "can_fork"]


def can_fork(command: list[str], env: dict[str, str], usual: dict[str, str]) -> bool:
    """Say whether a fork does all that *command* does: a server or worker that is one process.

    Args:
        command: Program and arguments, which run in the checkout.
        env: Its environment.
        usual: What the forker has; what Python itself reads when it starts must be the same.
    """
    if command[0] != sys.executable or _of_python(env) != _of_python(usual):
        return False
    if command[1] == "-m":
        alone = not {"--workers", "--reload"}.intersection(command)
        return alone and command[2] in ("daphne", "uvicorn")
    return command[1] == "manage.py" and "--noreload" in command


def _of_python(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("PYTHON")}


class Forked:
    """A process that a `Forker` has made, with what `Process` wants of `subprocess.Popen`."""

    def __init__(self, pid: int, args: list[str], status: Path) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None and self._status.exists():
            self.returncode = int(self._status.read_text())
        return self.returncode

    def wait(self, timeout: float = 20.0) -> int:
        """Wait until it has ended; return the exit code.

        Raises:
            subprocess.TimeoutExpired: It still runs after *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
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
        self._lock = threading.Lock()  # one order at a time, or each could hear another's answer
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("forker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def fork(
        self,
        argv: list[str],
        cwd: Path,
        env: dict[str, str],
        log: Path,
        *,
        errors: Path | None = None,
        stdin: Path = Path(os.devnull),
    ) -> Forked:
        """Start a program: a script, or ``-m`` and a module, and arguments.

        Args:
            argv: The arguments of Python.
            cwd: Where it runs.
            env: Its environment.
            log: Gets what it prints.
            errors: Gets its standard error; None: *log* does.
            stdin: What it reads.
        """
        assert self._process.stdin is not None
        number = next(self._numbers)
        status = self._folder / f"{number}.status"
        files = [str(stdin), str(log), str(errors or log)]
        order = {"number": number, "argv": argv, "cwd": str(cwd), "env": env, "files": files}
        log.touch()
        text = json.dumps({**order, "status": str(status)})
        with self._lock:
            print(text, file=self._process.stdin, flush=True)
            pid = self._answer(number)
        return Forked(pid, argv, status)

    def _answer(self, number: int) -> int:
        """Return the id of the process that an order has started.

        A test may have timed out while it waited for an answer: nobody knows that process.
        """
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            told, pid = map(int, line.split())
            if told == number:
                return pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise AssertionError("what forks processes for tests has ended; its error is above")

    def run(
        self, argv: list[str], cwd: Path, env: dict[str, str], stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end, within a minute."""
        stem = f"run-{next(self._numbers)}"
        given, out, err = [self._folder / f"{stem}.{name}" for name in ("in", "out", "err")]
        given.write_bytes(stdin)
        code = self.fork(argv, cwd, env, out, errors=err, stdin=given).wait(60)
        return subprocess.CompletedProcess(argv, code, out.read_bytes(), err.read_bytes())

    def close(self) -> None:
        """End it; what it has started goes on."""
        try:
            self._process.communicate(timeout=20.0)
        except subprocess.TimeoutExpired:  # another fork of this process still has its input
            self._process.kill()
            self._process.wait(20.0)
