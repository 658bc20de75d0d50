"""The services of ``deploy/docker/compose.yaml``, as processes of this machine.

There is no container engine here. So the files that the image would have are copied to a folder,
and the commands of the Dockerfile and of compose.yaml run there, with other addresses.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from tests.acceptance.deployment import DEPLOY, compose, copy_of_image, instruction, listed
from tests.support import Process, listening, site_env, wait_for
from wsgateway.broker.embedded import find_server, free_port

VALUES = {
    "SITE_ADDRESS": "localhost",
    **{
        name: secrets.token_hex(24)
        for name in ("SECRET_KEY", "POSTGRES_PASSWORD", "NATS_PASSWORD", "NATS_CLUSTER_PASSWORD")
    },
}
"""What an operator puts into ``.env``."""
SERVICES = compose(VALUES)["services"]
GATEWAYS = ("gateway-1", "gateway-2")
COMMANDS = ("worker", "outbox")
SERVERS = ("nats-1", "nats-2", "nats-3")
METRICS_TOKEN = secrets.token_hex(16)


def first_process(command: list[str]) -> list[str]:
    """Return how to run *command* as process 1, which gets no signals that it does not handle."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    with contextlib.suppress(OSError):
        if subprocess.run([*unshare, "true"], capture_output=True).returncode == 0:
            return [*unshare, *command]
    return command


class Contained(Process):
    """A process as a container runs it: the first one."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str], cwd: Path) -> None:
        super().__init__(first_process(command), log, env, cwd)
        self.ready = False
        """Whether it was found ready, and was not asked to end since then."""
        self._earlier = len(self.output) if log.exists() else 0

    def says(self, text: str) -> bool:
        """Whether it has written *text*; an earlier process had the same log."""
        return text in self.output[self._earlier :]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to process 1, each of which asks it to end."""
        self.ready = False
        children = psutil.Process(self.pid).children() if self.command[0] == "unshare" else []
        os.kill(children[0].pid if children else self.pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM, within: float = 30.0) -> float:
        """Stop it as the engine does; return how long that took."""
        began = time.monotonic()
        self.send(number)
        assert self.wait(within) == 0, self.output
        return time.monotonic() - began


class Stack:
    """What compose.yaml describes, besides PostgreSQL and the proxy, as processes of this machine.

    Args:
        folder: For everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image = folder / "image"
        self.ports = {name: free_port() for name in SERVERS}  # and gateways', once they start
        self.routes = {name: free_port() for name in SERVERS}
        self.monitors = {name: free_port() for name in SERVERS}
        self.processes: dict[str, Contained] = {}
        copy_of_image(self.image)
        self.env = self.site_environment()

    # -- NATS ------------------------------------------------------------------------------

    def here(self, text: str) -> str:
        """Return a text of compose.yaml with the addresses of this machine."""
        for name in SERVERS:
            text = text.replace(f"{name}:4222", f"127.0.0.1:{self.ports[name]}")
            text = text.replace(f"{name}:6222", f"127.0.0.1:{self.routes[name]}")
        return text

    def start_nats(self, name: str) -> None:
        """Start one server, which first checks its configuration."""
        conf = (DEPLOY / "nats/nats.conf").read_text()
        for number, port in (
            ("4222", self.ports[name]),
            ("6222", self.routes[name]),
            ("8222", self.monitors[name]),
        ):
            assert f'"0.0.0.0:{number}"' in conf
            conf = conf.replace(f'"0.0.0.0:{number}"', f'"127.0.0.1:{port}"')
        path = self.folder / f"{name}.conf"
        path.write_text(conf)
        given = {k: self.here(v) for k, v in SERVICES[name]["environment"].items()}
        env = {**os.environ, **given, "NATS_STORE": str(self.folder / name)}
        program, *arguments = SERVICES[name]["command"]
        assert program == "nats-server"
        command = [str(find_server()), *arguments]
        command[command.index("/etc/nats/nats.conf")] = str(path)
        checked = subprocess.run([*command, "-t"], env=env, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        self.start(name, command, env, self.folder)

    def nats_is_ready(self, name: str) -> bool:
        """Ask what the health check asks."""
        url = SERVICES[name]["healthcheck"]["test"][-1]
        with contextlib.suppress(OSError):
            answer = urllib.request.urlopen(url.replace("8222", str(self.monitors[name])))
            with answer:
                return bool(answer.status == 200)
        return False

    @property
    def urls(self) -> list[str]:
        """The servers, with the password of the site."""
        login = f"wsgateway:{VALUES['NATS_PASSWORD']}"
        return [f"nats://{login}@127.0.0.1:{self.ports[name]}" for name in SERVERS]

    # -- the site --------------------------------------------------------------------------

    def site_environment(self) -> dict[str, str]:
        """Return what compose.yaml gives the site, and what tests need besides."""
        given = {k: self.here(v) for k, v in SERVICES["gateway-1"]["environment"].items()}
        given["DATABASE_URL"] = f"sqlite:///{self.folder / 'db.sqlite3'}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {"PATH": path, "WSGATEWAY_SERVICES": "demo,faults"}
        return site_env(**given, **ours, WSGATEWAY_METRICS_TOKEN=METRICS_TOKEN)

    def shell(self, line: str) -> None:
        """Run a command to its end."""
        done = subprocess.run(
            line, shell=True, cwd=self.image, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, name: str, command: list[str], env: dict[str, str], cwd: Path) -> None:
        process = Contained(command, self.folder / f"{name}.log", env, cwd)
        self.processes[name] = process
        process.spawn()

    def launch(self, name: str) -> None:
        """Start any of them."""
        if name in SERVERS:
            self.start_nats(name)
        elif name in GATEWAYS:
            self.start_gateway(name)
        else:
            self.start_command(name)

    def start_gateway(self, name: str) -> None:
        """Start what the image runs without a command."""
        port = self.ports.setdefault(name, free_port())  # not earlier: it is free only now
        command = listed(instruction("CMD"))
        command[2], command[4] = "127.0.0.1", str(port)
        self.start(name, command, self.env, self.image)

    def start_command(self, name: str) -> None:
        """Start a service that has a command of its own."""
        command = [self.local(each) for each in SERVICES[name]["command"]]
        if "--ready-file" in command:  # not that of a process before it, which was killed
            Path(command[command.index("--ready-file") + 1]).unlink(missing_ok=True)
        self.start(name, command, self.env, self.image)

    def local(self, word: str) -> str:
        """Return a word of a command with the folder of this stack for ``/tmp``."""
        return word.replace("/tmp/", f"{self.folder}/")

    def is_healthy(self, name: str, check: list[str] | None = None) -> bool:
        """Run a health check: that of compose.yaml, or *check*."""
        words = list(check or SERVICES[name]["healthcheck"]["test"])
        assert words.pop(0) == "CMD"
        words = [self.local(each).replace("8000", str(self.ports.get(name))) for each in words]
        return subprocess.run(words, env=self.env, capture_output=True).returncode == 0

    def is_ready(self, name: str) -> bool:
        """Ask what an engine would; where compose.yaml has no check, read what it says."""
        if name in SERVERS:
            return self.nats_is_ready(name)
        if name == "outbox":
            return self.processes[name].says("outbox: ready")
        port = self.ports.get(name)  # the check itself starts a process
        return (port is None or listening(port)) and self.is_healthy(name)

    def wait_until_ready(self, name: str) -> None:
        """Wait as long as an engine would."""
        process = self.processes[name]
        wait_for(lambda: not process.running or self.is_ready(name), 60, f"{name} is ready")
        assert process.running, process.output
        process.ready = True

    def restore(self) -> None:
        """Start again what a test ended, and wait until everything is ready."""
        away = [name for name, process in self.processes.items() if not self.is_settled(process)]
        for name in away:
            self.processes[name].kill()
            self.launch(name)
        for name in away:
            self.wait_until_ready(name)

    @staticmethod
    def is_settled(process: Contained) -> bool:
        return process.running and process.ready
