"""Does what the tutorial's pages say: writes their files, runs their commands, compares output."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from tests.forking import Forker
from tests.support import ROOT, Process, site_env, wait_for
from wsgateway.broker.embedded import free_port

__all__ = ["PAGES", "Walk", "read_page"]

FOLDER = ROOT / "docs/tutorial"
PAGES = sorted(path.name for path in FOLDER.glob("[0-9]-*.md"))

PART = re.compile(r"^## (?P<title>[^\n]+)$|^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.S | re.M)
FILE = re.compile(r"`(?P<name>[\w/.-]+)`[^`\n.]*:\s*\Z")
ADDITION = re.compile(r"In `(?P<name>[\w/.-]+)`, add one line\s+before `(?P<before>[^`]+)`:\s*\Z")
APPEND = "to the end of"
SERVERS = ("runserver", "runservice", "daphne", "nats-server")
"""What runs until it is stopped; the pages say when, except that each replaces its former self."""
READY = {
    "runserver": "connected to NATS",
    "daphne": "connected to NATS",
    "nats-server": "Server is ready",
}
"""What a server prints once it can be used."""
UNSTABLE = re.compile(r"127\.0\.0\.1:\d+|(?<=version )[\d.]+\d|\(\d+(?= silenced)")
"""What may differ in output: ports, versions, and what is silenced for newer ones."""
PASSWORD = "correct-horse-battery"


class Block(NamedTuple):
    """A block of code.

    Attributes:
        page: The page's file name.
        section: The heading above it; empty before the first one.
        before: The text of the page before it.
        language: What the page says it is.
        code: What is in it.
    """

    page: str
    section: str
    before: str
    language: str
    code: str


def read_page(page: str) -> list[Block]:
    """Return the blocks of a page of the tutorial."""
    text = (FOLDER / page).read_text()
    found, section = [], ""
    for match in PART.finditer(text):
        if match["title"]:
            section = match["title"]
        else:
            before = text[: match.start()]
            found.append(Block(page, section, before, match["language"], match["code"]))
    assert text.count("\n```") == 2 * len(found), f"{page} has a block that is not closed"
    return found


class Walk:
    """A reader who types everything.

    Ports and passwords are the test's own; uv and the wheel stand in for pip and the checkout.

    Args:
        folder: Holds the project, and would hold the checkout.
        wheel: The package.
        constraints: Options for uv that choose versions.
    """

    def __init__(self, folder: Path, wheel: Path, constraints: list[str]) -> None:
        self.project = folder / "chatsite"
        self.port = free_port()
        self.walked: list[Block] = []
        self.written: set[str] = set()
        self.servers: dict[str, Process] = {}
        self._wheel = wheel
        self._constraints = constraints
        self._nats_port = free_port()
        self._exported: dict[str, str] = {}
        self._folder = folder
        self._last: Process | str = ""
        self._numbers = itertools.count(1)
        self._forker: Forker | None = None

    @property
    def bin(self) -> Path:
        """The programs of the project's virtual environment."""
        return self.project / ".venv/bin"

    @property
    def url(self) -> str:
        """Where the site is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """What the terminal has in its environment."""
        inherited = site_env()
        inherited.pop("PYTHONPATH", None)
        path = f"{self.bin}:{inherited['PATH']}"
        passwords = {"DJANGO_SUPERUSER_PASSWORD": PASSWORD}
        return {**inherited, "PATH": path, **passwords, **self._exported}

    def section(self, page: str, section: str = "") -> None:
        """Do what a section says."""
        blocks = [block for block in read_page(page) if block.section == section]
        assert blocks, f"{page} has no code below {section!r}"
        for block in blocks:
            self._do(block)
            self.walked.append(block)

    def _do(self, block: Block) -> None:
        if block.language == "sh":
            for line in block.code.splitlines():
                self._last = self._type(line)
        elif block.code.startswith("jetstream {"):
            (self._folder / "nats.conf").write_text(block.code)
            self.run(f"nats-server -t -c {self._folder}/nats.conf")
        elif addition := ADDITION.search(block.before):
            path = self.project / addition["name"]
            text = path.read_text()
            assert text.count(addition["before"]) == 1, f"{addition['before']!r} in {path}"
            path.write_text(text.replace(addition["before"], block.code + addition["before"]))
        elif match := FILE.search(block.before):
            self.written.add(match["name"])
            self._write(self.project / match["name"], block)
        else:
            self._compare(block)

    def _write(self, path: Path, block: Block) -> None:
        sentence = re.split(r"\n\n|(?<=[.:])\s", block.before.rstrip())[-1]
        if APPEND in sentence:
            path.write_text(f"{path.read_text()}\n{block.code}")
            return
        assert path.exists() == ("replace" in sentence.lower()), f"{block.page}: {sentence}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.code)

    def _compare(self, block: Block) -> None:
        """Wait until the last command has printed what the page shows."""
        wanted = [UNSTABLE.sub("…", line) for line in block.code.splitlines()]

        def is_shown() -> bool:
            shown = self._last if isinstance(self._last, str) else self._last.output
            return all(line in UNSTABLE.sub("…", shown) for line in wanted)

        if isinstance(self._last, Process):
            for line in block.code.splitlines():
                wait_for(is_shown, 60, f"{line!r} in {self._last.output}")
        assert is_shown(), f"{block.page} shows {wanted}, but this was printed: {self._last}"

    # -- the terminal ----------------------------------------------------------------------

    def _type(self, line: str) -> Process | str:
        """Type a command; return what it prints, or the process if it goes on."""
        words = shlex.split(line)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self._exported[name] = self._own_ports(value)
            return ""
        if line in ("mkdir chatsite", "cd chatsite", "source .venv/bin/activate"):
            self.project.mkdir(exist_ok=True)
            return ""
        for server in SERVERS:
            if server in words:
                return self._start(server, line)
        return self.run(line)

    def run(self, line: str) -> str:
        """Run a command to its end; return what it prints."""
        uv = f"{sys.executable} -m uv --quiet"  # fast, and has what was installed before
        line = self._own_ports(line)
        if line == "python3 -m venv .venv":
            python = os.environ.get("TUTORIAL_PYTHON", sys.executable)
            line = f"{uv} venv --python {python} .venv"
        elif line.startswith("python -m pip wheel"):
            (self.project / "wheels").mkdir()
            shutil.copy(self._wheel, self.project / "wheels")
            return ""
        elif install := re.fullmatch(r"python -m pip install (.*)", line):
            options = shlex.join(self._constraints)
            what = install[1].replace("../wsgateway", str(self._wheel))
            line = f"{uv} pip install --python .venv {options} {what}"
        elif "createsuperuser" in line:
            line += " --noinput"
        process = self._spawn(line, self._folder / f"command-{next(self._numbers)}.log")
        code = process.wait(120)
        assert code == 0, f"{line}\n{process.output}"
        return process.output

    def _spawn(self, line: str, log: Path) -> Process:
        """Start a program; Python's in forks, once there is an environment."""
        process = Process(["bash", "-c", f"exec {line}"], log, self.env, self.project)
        words = shlex.split(line)
        if words[0] != "python":
            process.spawn()
            return process
        if self._forker is None:
            self._forker = Forker(self.bin / "python", self._folder)
        process.popen = self._forker.fork(words[1:], self.project, self.env, log)
        return process

    def _own_ports(self, line: str) -> str:
        line = line.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        line = line.replace("127.0.0.1:4222", f"127.0.0.1:{self._nats_port}")
        return re.sub(r"^8000$", str(self.port), line)

    def _start(self, name: str, line: str) -> Process:
        self.stop(name)
        if name == "runserver":
            line += f" {self.port} --noreload"
        elif name == "runservice":
            line += " --noreload"
        elif name == "nats-server":
            line = line.replace("/tmp/chat-nats", str(self._folder / "nats"))
            line += f" -a 127.0.0.1 -p {self._nats_port}"
        log = self._folder / f"{name}-{next(self._numbers)}.log"
        process = self.servers[name] = self._spawn(line, log)
        if ready := READY.get(name):
            process.wait_for_line(ready, 60)
        return process

    def reload(self) -> None:
        """Do what ``runserver`` does when code changes; here it has no reloader, to be fast."""
        self._start("runserver", "python manage.py runserver")

    def stop(self, *names: str) -> None:
        """Press Ctrl-C in the terminals of these servers, or of all."""
        for name in names or SERVERS:
            if process := self.servers.pop(name, None):
                os.killpg(process.pid, signal.SIGINT)
                process.wait()

    def close(self) -> None:
        """End what runs, whatever happened."""
        for process in self.servers.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        if self._forker is not None:
            self._forker.close()
