"""Management commands as operators and scripts run them: processes, in pipes and in terminals."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, NamedTuple

from django.core.management import CommandError, call_command

from tests import LIMITS, SERVICES
from tests.support import ROOT, forker, site_env

__all__ = ["ESCAPES", "Ended", "Site", "call", "called", "documented"]

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What colours and moves in a terminal."""


def documented(name: str) -> set[str]:
    """Return the names of JSON that docs/reference/commands.md has for a command or an action."""
    text = (ROOT / "docs/reference/commands.md").read_text()
    found = re.search(rf"^##+ {name}\n(.*?)(?=^##|\Z)", text, re.S | re.M)
    assert found is not None
    return set(re.findall(r"`(\w+)`", found[1]))


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str = ""

    @property
    def json(self) -> Any:
        """What it printed with ``--json``."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """The lines of its standard output."""
        return self.out.splitlines()


class Site:
    """The site in ``project/``, for its commands.

    Args:
        folder: Where its database would be.
        env: What it needs besides DEBUG=1: at least NATS_BROKER_URL and WSGATEWAY_PREFIX.
    """

    def __init__(self, folder: Path, **env: str) -> None:
        ours = {
            "DEBUG": "1",
            "SECRET_KEY": "tests",
            "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
            "WSGATEWAY_SERVICES": ",".join(SERVICES),
            **{name: str(value) for name, value in LIMITS.items()},
        }
        self.env = site_env(**{**ours, **env})

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of ``manage.py`` with *arguments*."""
        return [sys.executable, "manage.py", *arguments]

    def run(self, *arguments: str, stdin: bytes = b"", **env: str) -> Ended:
        """Run a command as a script does, in a fork; see `tests.forking`."""
        done = forker().run(["manage.py", *arguments], ROOT, {**self.env, **env}, stdin)
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def show(self, *arguments: str, columns: int = 80, typed: str = "", **env: str) -> Ended:
        """Run a command in a terminal; return all that it shows, its standard error included.

        Args:
            arguments: Those of ``manage.py``.
            columns: The terminal's width.
            typed: What somebody types.
            env: More of the environment.
        """
        ours, theirs = pty.openpty()
        size = struct.pack("HHHH", 40, columns, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST  # line ends as they are written
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        env = {
            "TERM": "xterm-256color",
            **{k: v for k, v in self.env.items() if k != "COLUMNS"},
            **env,
        }
        with subprocess.Popen(
            self.command(*arguments), cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs
        ) as process:
            os.close(theirs)
            os.write(ours, typed.encode())
            shown = _read_all(ours)
            code = process.wait(60)
        os.close(ours)
        return Ended(code, shown.decode())


async def call(*arguments: str) -> Ended:
    """Run an action of ``gateway`` in this process, as `call_command` does."""
    return await asyncio.to_thread(called, *arguments)


def called(*arguments: str) -> Ended:
    """Do the same, from synchronous code."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("gateway", *arguments, stdout=out, stderr=err)
    except CommandError as exc:
        return Ended(exc.returncode, out.getvalue(), f"{err.getvalue()}{exc}")
    return Ended(0, out.getvalue(), err.getvalue())


def _read_all(terminal: int) -> bytes:
    found = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError as exc:
            if exc.errno != errno.EIO:  # Linux says so when nobody has it open any more
                raise
            return found
        if not data:
            return found
        found += data
