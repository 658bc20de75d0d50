"""``deploy/``: each file by its own tool, and the files against each other."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from django.core.management import get_commands, load_command_class

from tests.acceptance.deployment import (
    COMPOSE,
    DEPLOY,
    DOCKERFILE,
    UNITS,
    compose,
    container,
    instruction,
    listed,
    manifests,
    procfile,
    site_variables,
    tool,
    unit,
)
from tests.support import ROOT
from wsgateway.conf import settings
from wsgateway.metrics.catalog import CATALOG

DOTENV = re.findall(r"(?m)^(\w+)=", (DEPLOY / "docker/.env.example").read_text())
SECRETS = {name: f"{name.lower()}-value" for name in DOTENV}
SITE = ("gateway-1", "gateway-2", "worker", "outbox", "release")
"""Services of compose.yaml that run our own image."""
SERVER_TIME = 5.0
"""Longest time that daphne takes on SIGTERM besides WSGATEWAY_CLOSE_TIMEOUT, in seconds."""


def seconds(text: str) -> float:
    """Return a duration as Compose and systemd write it."""
    return float(text.removesuffix("s"))


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a tool, which must be content; return what it said."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# -- by their own tools --------------------------------------------------------------------


def test_hadolint_accepts_the_dockerfile() -> None:
    run(tool("hadolint", "it is in requirements-dev.txt"), str(DOCKERFILE))


def test_compose_specification_accepts_compose_yaml() -> None:
    program = tool("compose-spec", ".ci/run installs it if Go is there")
    run(program, "-no-interpolation", COMPOSE.name, cwd=COMPOSE.parent)


def units_for(folder: Path) -> list[str]:
    """Copy the units to *folder*; the programs that they name exist there."""
    for program in ("venv/bin/python", "venv/bin/daphne", "nats-server"):
        path = folder / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("/bin/true")
    for source in UNITS:
        text = source.read_text().replace("/srv/wsgateway", str(folder))
        text = text.replace("/usr/local/bin/nats-server", f"{folder}/nats-server")
        (folder / source.name).write_text(text.replace("/usr/bin/curl", "/bin/true"))
    return [str(folder / source.name) for source in UNITS]


def test_systemd_accepts_the_units_and_calls_them_hardened(tmp_path: Path) -> None:
    program = tool("systemd-analyze", "it is in Debian's package systemd")
    paths = units_for(tmp_path)
    assert run(program, "verify", "--man=no", *paths) == ""
    for path in paths:
        if path.endswith(".service"):
            run(program, "security", "--offline=true", "--no-pager", "--threshold=20", path)


def test_kubernetes_accepts_the_manifests() -> None:
    for each in manifests().values():
        kubernetes_validate.validate(each, "1.37", strict=True)


def test_kustomize_builds_what_refers_to_itself(tmp_path: Path) -> None:
    """Names of generated ConfigMaps have a hash, and labels reach the pods."""
    text = run(tool("kubectl", "see Kubernetes"), "kustomize", str(DEPLOY / "kubernetes"))
    built = list(yaml.safe_load_all(text))
    for each in built:
        if each["kind"] != "ConfigMap":
            kubernetes_validate.validate(each, "1.37", strict=True)
    config = {each["metadata"]["name"] for each in built if each["kind"] == "ConfigMap"}
    named = set(re.findall(r"configMap(?:Ref)?:\n\s+name: (\S+)", text))
    assert len(config) == 2
    assert named == config
    [policy] = [each for each in built if each["kind"] == "NetworkPolicy"]
    [source] = policy["spec"]["ingress"][0]["from"]
    [(label, value)] = source["podSelector"]["matchLabels"].items()
    workloads = [each for each in built if "template" in each["spec" if "spec" in each else "kind"]]
    assert len(workloads) == 5
    for each in workloads:
        assert each["spec"]["template"]["metadata"]["labels"][label] == value


# -- against each other, and the code ------------------------------------------------------


def options(command: list[str]) -> list[str]:
    """Return a gateway's command line without its address, and without where daphne is."""
    assert Path(command[0]).name == "daphne"
    assert command[1] == "-b"
    assert command[3] == "-p"
    return command[5:]


def test_gateways_run_alike_everywhere() -> None:
    want = options(shlex.split(procfile("web")))
    assert options(listed(instruction("CMD"))) == want
    assert options(shlex.split(unit("wsgateway-gateway@.service")["ExecStart"][0])) == want
    assert "command" not in container("Deployment", "gateway")  # the image's own
    assert "command" not in compose(SECRETS)["services"]["gateway-1"]


def test_release_does_the_same_everywhere() -> None:
    want = procfile("release")
    assert compose(SECRETS)["services"]["release"]["command"] == ["sh", "-c", want]
    assert container("Job", "release")["command"] == ["sh", "-c", want]
    lines = unit("wsgateway-release.service")["ExecStart"]
    assert [line.removeprefix("/srv/wsgateway/venv/bin/") for line in lines] == want.split(" && ")


def management_commands() -> Iterator[list[str]]:
    """Yield the arguments of each ``manage.py`` that a file of ``deploy/`` or the Procfile runs."""
    lines = [line.split(": ", 1)[1] for line in (ROOT / "Procfile").read_text().splitlines()]
    for path in UNITS:
        lines += unit(path.name).get("ExecStart", [])
    services = compose(SECRETS)["services"].values()
    containers = [container(*each) for each in manifests() if each[0] in ("Deployment", "Job")]
    commands = [each.get("command", []) for each in (*services, *containers)]
    lines += [each[2] if each[:2] == ["sh", "-c"] else shlex.join(each) for each in commands]
    for line in lines:
        for command in line.split(" && "):
            _, found, arguments = command.partition("manage.py ")
            if found:
                yield shlex.split(arguments)


def test_management_commands_understand_their_arguments() -> None:
    names = set()
    for name, *arguments in management_commands():
        names.add(name)
        command = load_command_class(get_commands()[name], name)
        command.create_parser("manage.py", name).parse_args(arguments)
    ours = {"runservice", "runoutbox", "runevents", "setup_streams"}
    assert names == {"migrate", "check"} | ours


def test_every_port_is_the_one_that_the_image_listens_at() -> None:
    port = int(instruction("EXPOSE"))
    assert listed(instruction("CMD"))[4] == str(port)
    assert f"127.0.0.1:{port}/healthz" in instruction("HEALTHCHECK")
    services = compose(SECRETS)["services"]
    for name in ("gateway-1", "gateway-2"):
        assert f"127.0.0.1:{port}/readyz" in services[name]["healthcheck"]["test"][-1]
        assert f"{name}:{port}" in services["proxy"]["environment"]["GATEWAYS"].split()
    [http] = container("Deployment", "gateway")["ports"]
    assert http == {"name": "http", "containerPort": port}


def test_compose_names_only_variables_that_the_site_reads() -> None:
    services = compose(SECRETS)["services"]
    for name in SITE:
        assert set(services[name]["environment"]) <= site_variables()
    for name in ("nats-1", "nats-2", "nats-3"):
        assert set(services[name]["environment"]) == nats_variables()


def nats_variables() -> set[str]:
    """Return the variables that nats.conf needs."""
    lines = (DEPLOY / "nats/nats.conf").read_text().splitlines()
    return set(re.findall(r"\$(\w+)", "\n".join(each for each in lines if each[:1] != "#")))


def test_compose_has_each_service_and_volume_that_it_refers_to() -> None:
    found = compose(SECRETS)
    services, volumes = found["services"], set(found["volumes"])
    used = set()
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).is_file(), source
            else:
                used.add(source)
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "test" in services[needed]["healthcheck"]
    assert used == volumes


def test_compose_limits_every_log() -> None:
    """Docker keeps every line for ever, and the disk that fills up is NATS' and PostgreSQL's."""
    for name, service in compose(SECRETS)["services"].items():
        assert {"max-size", "max-file"} <= set(service["logging"]["options"]), name


def test_compose_has_no_secret_of_its_own() -> None:
    """Each has to be set; a default would be everybody's."""
    text = COMPOSE.read_text()
    assert not re.search(r"\$\{\w+:?[-+]", text)
    for name in DOTENV:
        assert f"${{{name}:?" in text, f"{name} may be missing"
    assert set(re.findall(r"\$\{(\w+)", text)) == set(DOTENV)
    values = re.findall(r"(?m)^\w+=(.*)$", (DEPLOY / "docker/.env.example").read_text())
    assert set(values) == {""}


def test_kubernetes_names_only_variables_that_the_site_reads() -> None:
    text = (DEPLOY / "kubernetes/kustomization.yaml").read_text()
    config = yaml.safe_load(text)["configMapGenerator"][0]["literals"]
    secret = (DEPLOY / "kubernetes/secret.example.env").read_text()
    names = {each.split("=")[0] for each in config} | set(re.findall(r"(?m)^(\w+)=", secret))
    assert names <= site_variables()
    assert "SECRET_KEY" in names
    nats = {each["name"] for each in container("StatefulSet", "nats")["env"]}
    assert nats == nats_variables()


def test_everybody_gets_the_time_that_draining_takes() -> None:
    drain = settings.CLOSE_TIMEOUT + SERVER_TIME
    services = compose(SECRETS)["services"]
    for name in SITE:
        assert seconds(services[name]["stop_grace_period"]) > drain
    for path in DEPLOY.glob("systemd/wsgateway-*.service"):
        if "release" not in path.name:
            assert seconds(unit(path.name)["TimeoutStopSec"][0]) > drain
    for name in ("gateway", "worker", "outbox", "events"):
        pod = manifests()["Deployment", name]["spec"]["template"]["spec"]
        before = pod["containers"][0].get("lifecycle", {}).get("preStop")
        sleep = float(before["exec"]["command"][1]) if before else 0.0
        assert pod["terminationGracePeriodSeconds"] > sleep + drain


def test_nats_gets_the_time_that_lame_duck_mode_takes() -> None:
    conf = (DEPLOY / "nats/nats.conf").read_text()
    duration = seconds(re.findall(r"(?m)^lame_duck_duration: (\w+)", conf)[0])
    assert seconds(compose(SECRETS)["services"]["nats-1"]["stop_grace_period"]) > duration
    assert seconds(unit("nats-server.service")["TimeoutStopSec"][0]) > duration
    pod = manifests()["StatefulSet", "nats"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > duration
    assert compose(SECRETS)["services"]["nats-1"]["stop_signal"] == "SIGUSR2"
    assert unit("nats-server.service")["KillSignal"] == ["SIGUSR2"]
    hook = container("StatefulSet", "nats")["lifecycle"]["preStop"]["exec"]["command"]
    assert hook == ["nats-server", "--signal", "ldm=1"]  # process 1 of the container


def test_silence_is_longer_than_the_heartbeat_in_every_proxy() -> None:
    heartbeat = settings.PING_INTERVAL + settings.PING_TIMEOUT
    conf = (DEPLOY / "nginx/wsgateway.conf").read_text()
    timeouts = re.findall(r"proxy_(?:read|send)_timeout (\w+);", conf)
    assert len(timeouts) == 2
    assert all(seconds(each) > heartbeat for each in timeouts)
    assert "read_timeout" not in (DEPLOY / "caddy/Caddyfile").read_text()  # Caddy has none


def test_autoscaler_and_its_adapter_name_a_metric_that_exists() -> None:
    [metric] = manifests()["HorizontalPodAutoscaler", "gateway"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    [spec] = [spec for spec in CATALOG if spec.name == name]
    assert spec.type == "gauge"
    values = yaml.safe_load((DEPLOY / "kubernetes/prometheus-adapter-values.yaml").read_text())
    [rule] = values["rules"]["custom"]
    assert rule["name"]["matches"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")


def test_pod_monitor_selects_pods_and_ports_that_exist() -> None:
    monitor = yaml.safe_load((DEPLOY / "kubernetes/pod-monitor.yaml").read_text())["spec"]
    [selector] = monitor["selector"]["matchExpressions"]
    containers = [container("Deployment", name) for name in selector["values"]]
    ports = {port["name"] for each in containers for port in each["ports"]}
    assert {each["port"] for each in monitor["podMetricsEndpoints"]} == ports
    for each in monitor["podMetricsEndpoints"]:
        assert each["authorization"]["credentials"]["key"] in site_variables()


def test_services_select_pods_and_ports_that_exist() -> None:
    found = manifests()
    pods = {}
    for (kind, _), each in found.items():
        if kind in ("Deployment", "StatefulSet"):
            template = each["spec"]["template"]
            labels = template["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"] == labels
            label = labels["app.kubernetes.io/name"]
            pods[label] = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    for (kind, name), each in found.items():
        if kind == "Service":
            label = each["spec"]["selector"]["app.kubernetes.io/name"]
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= pods[label], name
        elif kind == "PodDisruptionBudget":
            assert each["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] in pods
    [rule] = found["Ingress", "gateway"]["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    ports = found["Service", backend["name"]]["spec"]["ports"]
    assert backend["port"]["name"] in {port["name"] for port in ports}


@pytest.mark.parametrize("name", ["gateway", "worker", "nats"])
def test_draining_a_node_never_stops_all_of_them(name: str) -> None:
    """Both workers could be evicted from one node together, so that nobody answered clients."""
    found = manifests()
    assert found["PodDisruptionBudget", name]["spec"]["maxUnavailable"] == 1
    kind = "StatefulSet" if name == "nats" else "Deployment"
    pod = found[kind, name]["spec"]["template"]["spec"]
    assert "topologySpreadConstraints" in pod or "podAntiAffinity" in pod["affinity"]


@pytest.mark.parametrize("name", ["gateway", "worker", "outbox", "events", "nats"])
def test_pods_are_locked_down(name: str) -> None:
    kind = "StatefulSet" if name == "nats" else "Deployment"
    pod = manifests()[kind, name]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    uid = pod["securityContext"].get("runAsUser") or instruction("USER")
    assert int(uid) > 0  # "wsgateway" would not do: Kubernetes cannot tell that it is not root


def test_final_image_installs_nothing() -> None:
    """Compilers, pip's cache and package lists stay in the stage that builds."""
    final = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    assert "useradd" in final
    assert not re.search(r"\b(?:apt-get|pip|npm)\b", final)
