"""Apache Kafka in KRaft mode, as tests start it: brokers that are controllers, too."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.authority import Authority
from tests.support import ROOT, Process, site_env, wait_for
from wsgateway.broker.embedded import free_port

JARS = ROOT / ".cache/kafka"
"""Where ``.ci/run`` puts Kafka's jars."""
USER, PASSWORD = "ann", "pass-word%41 of ann"
"""Who may do everything with SASL."""
STRANGER = "eve"
"""Who may log in with the same password, and do nothing."""
CLUSTER_ID = "d3NnYXRld2F5LXRlc3RzLQ"
JVM = ["-Xmx320m", "-Xms128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
LOG = "-Dorg.slf4j.simpleLogger."
LEVELS = [
    LOG + "defaultLogLevel=warn",
    LOG + "log.kafka.server.KafkaRaftServer=info",
    LOG + "showDateTime=true",
    LOG + "dateTimeFormat=HH:mm:ss.SSS",
]
STARTED = "Kafka Server started"
PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


def why_not() -> str | None:
    """Return why Kafka cannot run here; None if it can."""
    if shutil.which("java") is None:
        return "Java is not installed"
    if not any(JARS.glob("kafka_*.jar")):
        return "Kafka's jars are not in .cache/kafka; .ci/run fetches them with Maven"
    return None


def java(main: str, *arguments: str) -> list[str]:
    """Return the command that runs a class of Kafka's jars."""
    program = shutil.which("java") or "java"
    return [program, *JVM, *LEVELS, "-cp", f"{JARS}/*", main, *arguments]


def run_java(main: str, *arguments: str, timeout: float = 60.0) -> None:
    """Run a class of Kafka's jars to its end; fail with what it printed."""
    try:
        done = subprocess.run(
            java(main, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as exc:
        said = (exc.stdout or b"").decode(errors="replace")
        raise AssertionError(f"{main} has not ended within {timeout} s:\n{said}") from None
    assert done.returncode == 0, f"{main}:\n{done.stdout.decode(errors='replace')}"


class KafkaServer:
    """A broker, or one of several, in a folder of its own. It keeps its ports when it restarts.

    Args:
        folder: For its data, its certificate and its log.
        node: Its number in the cluster.
        controllers: The port of each node's controller, the first node's first.
        authority: Signs its certificate, for TLS.
    """

    def __init__(
        self, folder: Path, node: int, controllers: Sequence[int], authority: Authority
    ) -> None:
        self.folder = folder
        self.node = node
        self.authority = authority
        names = ("PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL", "SSL")
        self.ports = {name: free_port() for name in names}
        self._controllers = list(controllers)
        self._settings = folder / "server.properties"
        self._seen = 0  # how often its log said, before it was spawned, that it has started
        self._process = Process(
            java("kafka.Kafka", str(self._settings)), folder / "log", site_env(), folder
        )

    def address(self, listener: str = "PLAINTEXT") -> str:
        """Return HOST:PORT of a listener."""
        return f"127.0.0.1:{self.ports[listener]}"

    @property
    def ca(self) -> str:
        """The path of the certificate that signed its own."""
        return str(self.authority.path)

    @property
    def log(self) -> str:
        return self._process.output

    def format(self) -> None:
        """Write its settings, and prepare its folder for them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._settings.write_text("".join(f"{k}={v}\n" for k, v in self._properties().items()))
        users = [
            f"{mechanism}=[name={name},password={PASSWORD}]"
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for name in (USER, STRANGER)
        ]
        scram = [part for user in users for part in ("--add-scram", user)]
        options = ["-t", CLUSTER_ID, "-c", str(self._settings), *scram]
        run_java("kafka.tools.StorageTool", "format", *options)

    def spawn(self) -> None:
        """Start it without waiting for it."""
        self._seen = self.log.count(STARTED) if self._process.log.exists() else 0
        self._process.spawn()

    def wait_ready(self, timeout: float = 50.0) -> None:
        """Wait until it serves clients."""

        def ready() -> bool:
            assert self._process.running, f"Kafka has ended:\n{self.log}"
            return self.log.count(STARTED) > self._seen

        wait_for(ready, timeout, lambda: f"{STARTED!r} in Kafka's log:\n{self.log[-5000:]}")

    def start(self) -> None:
        """Start it, or let it go on, and wait until it serves clients. Idempotent."""
        if self.running:
            self.resume()
        else:
            self.spawn()
        self.wait_ready()

    def stop(self) -> None:
        """End it as an operator would."""
        self.resume()
        self._process.stop(40)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()

    def pause(self) -> None:
        """Stop it where it is: its connections stay open, and nothing answers."""
        self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        if self._process.running:
            self._process.send(signal.SIGCONT)

    @property
    def running(self) -> bool:
        return self._process.running

    def _properties(self) -> dict[str, str | int]:
        certificate, key = self.authority.issue(f"kafka-{self.node}")
        count = len(self._controllers)
        listeners = [f"{name}://127.0.0.1:{port}" for name, port in self.ports.items()]
        controller = f"CONTROLLER://127.0.0.1:{self._controllers[self.node - 1]}"
        voters = [f"{n}@127.0.0.1:{port}" for n, port in enumerate(self._controllers, 1)]
        kinds = [f"{name}:{name}" for name in self.ports]
        users = "".join(f' user_{name}="{PASSWORD}"' for name in (USER, STRANGER))
        properties: dict[str, str | int] = {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "controller.quorum.voters": ",".join(voters),
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join([*listeners, controller]),
            "advertised.listeners": ",".join(listeners),
            "listener.security.protocol.map": ",".join([*kinds, "CONTROLLER:PLAINTEXT"]),
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            # 128 MB by default, half of our heap: after a few restarts there was no memory left
            "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
            "offsets.topic.num.partitions": 3,
            "offsets.topic.replication.factor": count,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": count,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": count,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 3000,
            "controlled.shutdown.enable": str(count > 1).lower(),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:ANONYMOUS;User:{USER}",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": inline(certificate),
            "ssl.keystore.key": inline(key),
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        }
        for name in ("sasl_plaintext", "sasl_ssl"):
            prefix = f"listener.name.{name}"
            properties[f"{prefix}.plain.sasl.jaas.config"] = f"{PLAIN} required{users};"
            for mechanism in ("scram-sha-256", "scram-sha-512"):
                properties[f"{prefix}.{mechanism}.sasl.jaas.config"] = f"{SCRAM} required;"
        return properties


def inline(path: str) -> str:
    """Return a PEM file as one line of a properties file."""
    return Path(path).read_text().replace("\n", "\\n")


@contextmanager
def kafka_cluster(folder: Path, nodes: int = 1) -> Iterator[list[KafkaServer]]:
    """Run a cluster of *nodes* brokers."""
    authority = Authority(folder)
    ports = [free_port() for _ in range(nodes)]
    servers = [
        KafkaServer(folder / f"kafka-{node}", node, ports, authority)
        for node in range(1, nodes + 1)
    ]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.format()
            server.spawn()
        for server in servers:
            server.wait_ready()
        yield servers
