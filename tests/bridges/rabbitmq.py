"""A RabbitMQ of the tests' own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from tests.authority import Authority
from tests.support import listening, wait_for
from wsgateway.broker.embedded import bound_to_parent, free_port

__all__ = ["RabbitServer", "why_not"]

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""What Debian's wrapper in PATH runs, which insists on a user and a home of its own."""

# One scheduler that sleeps while it has nothing to do: the tests share the machine.
ERLANG = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none"

CONFIG = """
listeners.tcp.1 = 127.0.0.1:{port}
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
log.file = false
log.console = true
"""

ADVANCED = """
% Milliseconds; otherwise, quorum queues count what is in them each five seconds
[{rabbit, [{quorum_tick_interval, 100}]}].
"""


def why_not() -> str:
    """Return why RabbitMQ cannot run here; "" if it can."""
    if not PROGRAM.exists():
        return "it is not installed (Debian's package rabbitmq-server); .ci/run installs it"
    return ""


class RabbitServer:
    """A RabbitMQ on loopback, with everything it writes in one folder.

    It runs as the user who runs the tests, and ends with them, even if they are killed. It may be
    stopped, killed and started again on the same ports, with the same data.

    Args:
        folder: Its own.

    Attributes:
        port: For AMQP.
        tls_port: For AMQP with TLS.
        ca: Path of the authority that signed its certificate.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self.tls_port = free_port(), free_port()
        self._authority = Authority(folder)
        self.ca = str(self._authority.path)
        certificate, key = self._authority.issue("rabbitmq")
        config = CONFIG.format(
            port=self.port, tls_port=self.tls_port, ca=self.ca, certificate=certificate, key=key
        )
        (folder / "rabbitmq.conf").write_text(config)
        (folder / "enabled_plugins").write_text("[rabbitmq_consistent_hash_exchange].\n")
        (folder / "advanced.config").write_text(ADVANCED)
        (folder / "rabbitmq-env.conf").touch()  # instead of that in /etc
        self._epmd_port, self._log = free_port(), folder / "log"
        self._epmd: subprocess.Popen[bytes] | None = None
        self._popen: subprocess.Popen[bytes] | None = None

    def client_certificate(self) -> tuple[str, str]:
        """Return the paths of a certificate that it trusts, and of its key."""
        return self._authority.issue("client")

    def url(
        self, user: str = "guest", password: str = "guest", vhost: str = "", *, tls: bool = False
    ) -> str:
        """Return where a client connects."""
        scheme, port = ("amqps", self.tls_port) if tls else ("amqp", self.port)
        who = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"{scheme}://{who}@127.0.0.1:{port}/{quote(vhost, safe='')}"

    @property
    def _environment(self) -> dict[str, str]:
        ours = {
            "HOME": self._folder,  # where Erlang keeps its cookie
            "RABBITMQ_NODENAME": f"tests-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": free_port(),
            "RABBITMQ_CONF_ENV_FILE": self._folder / "rabbitmq-env.conf",
            "RABBITMQ_CONFIG_FILE": self._folder / "rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": self._folder / "advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._folder / "enabled_plugins",
            "RABBITMQ_MNESIA_BASE": self._folder / "data",
            "RABBITMQ_LOG_BASE": self._folder / "logs",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG,
            "RABBITMQ_ALLOW_INPUT": "1",  # a shell that ends with its input: see `eval`
            "ERL_EPMD_PORT": self._epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_SECONDS": "0",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
        return {**kept, "TERM": "dumb"} | {name: str(value) for name, value in ours.items()}

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def start(self, timeout: float = 100.0) -> None:
        """Start it, or undo `pause`, and wait until it takes connections. Idempotent."""
        if self.running:
            if not listening(self.tls_port):
                self.resume()
            return
        self._start_epmd()
        with self._log.open("ab") as log:
            self._popen = subprocess.Popen(
                [PROGRAM],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._wait_until_listening(timeout)

    def _wait_until_listening(self, timeout: float) -> None:
        wait_for(
            lambda: listening(self.tls_port) or self._ended(),
            timeout,
            lambda: f"RabbitMQ listens:\n{self.log[-5000:]}",
        )

    def _start_epmd(self) -> None:
        """Start what tells Erlang's nodes each other's ports, or one would outlive the tests."""
        if self._epmd is None:
            program = shutil.which("epmd")
            assert program is not None, "epmd is missing; it comes with Erlang"
            options = ["-address", "127.0.0.1", "-port", str(self._epmd_port)]
            command = bound_to_parent([program, *options])
            none = subprocess.DEVNULL
            self._epmd = subprocess.Popen(command, stdin=none, stdout=none, stderr=none)
            wait_for(lambda: listening(self._epmd_port), 20, "epmd listens")

    def _ended(self) -> bool:
        if self.running:
            return False
        raise AssertionError(f"RabbitMQ has ended:\n{self.log[-5000:]}")

    def kill(self) -> None:
        """End it, and the programs that it has started, with SIGKILL. Idempotent."""
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait(20)
            assert self._popen.stdin is not None
            self._popen.stdin.close()
            self._popen = None

    def close(self) -> None:
        """End it and all that belongs to it."""
        try:
            self.kill()
        finally:
            if self._epmd is not None:
                self._epmd.kill()
                self._epmd.wait(20)
                self._epmd = None

    def pause(self) -> None:
        """End its service, and every connection, inside a process that goes on: quicker to undo."""
        self.eval("rabbit:stop()")

    def resume(self) -> None:
        """Undo `pause`."""
        self.eval("rabbit:start()")
        self._wait_until_listening(30)

    def drop_connections(self) -> None:
        """End every connection, as a network does: without a word."""
        self.eval("[exit(Pid, kill) || Pid <- rabbit_networking:connections()]")

    def alarm(self, raised: bool) -> None:
        """Raise its memory alarm, or clear it. It then blocks who publishes."""
        limit = "0.00001" if raised else "0.4"
        self.eval(f"vm_memory_monitor:set_vm_memory_high_watermark({limit})")

    def add_vhost(self, name: str) -> None:
        """Add a virtual host, which guest may use."""
        self.eval(f"rabbit_vhost:add({_term(name)}, {_term('tests')})")
        self.permit("guest", name)

    def add_user(self, name: str, password: str, vhost: str = "/", **rights: str) -> None:
        """Add a user; *rights* are those of `permit`."""
        add = "rabbit_auth_backend_internal:add_user"
        self.eval(f"{add}({_term(name)}, {_term(password)}, {_term('tests')})")
        self.permit(name, vhost, **rights)

    def permit(
        self, user: str, vhost: str, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Give a user rights in a virtual host, as regular expressions."""
        words = ", ".join(map(_term, (user, vhost, configure, write, read, "tests")))
        self.eval(f"rabbit_auth_backend_internal:set_permissions({words})")

    def waiting(self, queue: str) -> int:
        """Return how many messages were in a queue a moment ago, handed out or not."""
        return int(self._of_queue(queue, "[{_, N}] = rabbit_amqqueue:info(Q, [messages]), N"))

    def priorities(self, queue: str) -> list[int]:
        """Return those of a queue's consumers."""
        args = f"[{{A, {_term('x-priority')}}} || {{_, _, _, _, _, _, A, _}} <- C]"
        one = "element(2, rabbit_misc:table_lookup(A, K))"
        listed = f"[{one} || {{A, K}} <- {args}]"
        return sorted(
            json.loads(self._of_queue(queue, f"C = rabbit_amqqueue:consumers(Q), {listed}"))
        )

    @contextlib.contextmanager
    def suspended(self, queue: str) -> Iterator[None]:
        """Let a queue answer nobody inside."""
        self._of_queue(queue, "sys:suspend(amqqueue:get_pid(Q))")
        try:
            yield
        finally:
            self._of_queue(queue, "sys:resume(amqqueue:get_pid(Q))")

    def remember_queues(self) -> None:
        """Let it write down which queues it has; killed before that, it forgets the newest."""
        self.eval("[dets:sync(Table) || Table <- dets:all()]")

    def _of_queue(self, queue: str, expression: str) -> str:
        """Evaluate Erlang in which Q is a queue."""
        name = f"rabbit_misc:r({_term('/')}, queue, {_term(queue)})"
        found = f"{{ok, Q}} = rabbit_amqqueue:lookup({name})"
        return self.eval(f"(fun() -> {found}, {expression} end)()")

    @contextlib.contextmanager
    def taking_at_most(self, size: int) -> Iterator[None]:
        """Take no message of more than *size* bytes inside."""
        self.set_limit(size)
        try:
            yield
        finally:
            self.set_limit(2**27)  # its own

    def set_limit(self, size: int) -> None:
        """Set ``max_message_size``, which connections learn when they are made."""
        self.eval(f"application:set_env(rabbit, max_message_size, {size})")

    def eval(self, expression: str, timeout: float = 30.0) -> str:
        """Evaluate Erlang in it, and return the value as Erlang writes it."""
        mark = secrets.token_hex(8)
        # In parts, or the shell's echo of this line could be taken for the answer
        parts = f'["{mark}", "<", catch ({expression}), "{mark}", ">"]'
        self._write(f'io:format("~s~s~w~s~s", {parts}).')
        wait_for(
            lambda: f"{mark}>" in self.log or self._ended(),
            timeout,
            lambda: f"{expression}:\n{self.log[-5000:]}",
        )
        value = self.log.rpartition(f"{mark}<")[2].partition(f"{mark}>")[0]
        assert "'EXIT'" not in value, f"{expression}: {value}"
        return value

    def _write(self, line: str) -> None:
        assert self._popen is not None
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n".encode())
        self._popen.stdin.flush()


def _term(text: str) -> str:
    return f"<<{','.join(map(str, text.encode()))}>>"  # its shell reads Latin-1
