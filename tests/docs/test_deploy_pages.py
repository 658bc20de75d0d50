"""The pages about deployment: the programs accept what the pages tell you to type."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from django.core.management import get_commands, load_command_class

from tests.acceptance.deployment import COMPOSE, DEPLOY, container, manifests, tool
from tests.authority import Authority
from tests.support import ROOT
from wsgateway.broker.embedded import find_server

NAMES = (
    "backups",
    "caddy",
    "deploy",
    "deploy-compose",
    "deploy-heroku",
    "deploy-kubernetes",
    "deploy-systemd",
    "mount",
    "nats-cluster",
    "nats-development",
    "nats-permissions",
    "nginx",
    "upgrade",
)
PAGES = {name: (ROOT / f"docs/how-to/{name}.md").read_text() for name in NAMES}
OWN_COMMANDS = {"migrate", "check", "createsuperuser", "collectstatic"}


def blocks(name: str, language: str) -> list[str]:
    """Return the code blocks of a page, without the indentation that lists give them."""
    found = re.findall(r"(?ms)^( *)```(\w*)\n(.*?)^ *```", PAGES[name])
    return [re.sub(rf"(?m)^{indent}", "", code) for indent, kind, code in found if kind == language]


def commands() -> Iterator[list[str]]:
    """Yield the words of each command line in a block of shell."""
    for name in NAMES:
        for block in blocks(name, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield words


@pytest.mark.parametrize("name", NAMES)
def test_shell_understands_each_block(name: str) -> None:
    for block in blocks(name, "sh"):
        done = subprocess.run(["sh", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr + block


def test_management_commands_exist() -> None:
    used = {words[i + 1] for words in commands() for i, each in enumerate(words)
            if each.endswith("manage.py") and i + 1 < len(words)}  # fmt: skip
    used |= set(re.findall(r"manage\.py (\w+)", "".join(PAGES.values())))
    assert used >= {"migrate", "check", "setup_streams", "gateway"}
    assert used - set(get_commands()) - OWN_COMMANDS == set()


def test_files_that_the_pages_name_exist() -> None:
    text = "".join(PAGES.values())
    made = {"deploy/docker/.env", "deploy/docker/compose.override.yaml"}  # by the reader
    named = set(re.findall(r"(?<![\w/.-])deploy/[\w./@*-]*[\w/*]", text)) - made
    assert len(named) > 15
    for path in named:
        assert list(ROOT.glob(path)), path


def test_each_file_is_on_a_page() -> None:
    """Nobody finds what no page names."""
    text = "".join(PAGES.values())
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            name = re.sub(r"@.*", "@", path.name)
            assert name in text or name == "README.md", path
    folders = {path.name for path in DEPLOY.iterdir() if path.is_dir()}
    readme = (DEPLOY / "README.md").read_text()
    assert folders == set(re.findall(r"`(\w+)/`", readme))
    for link in re.findall(r"\]\(([^)]+)\)", readme):
        assert (DEPLOY / link).is_file(), link


def test_compose_commands_name_services_that_exist() -> None:
    services = set(yaml.safe_load(COMPOSE.read_text())["services"])
    named = set()
    for words in commands():
        if words[:2] == ["docker", "compose"]:
            assert words[2:4] == ["--file", str(COMPOSE.relative_to(ROOT))]
            rest = [each for each in words[5:] if not each.startswith("--")]
            named |= set(rest[:1] if words[4] == "exec" else rest)
    assert {"gateway-1", "gateway-2", "worker", "outbox", "release"} <= named <= services


def test_compose_accepts_the_override(tmp_path: Path) -> None:
    """With the file that it extends, and a service of its own."""
    program = tool("compose-spec", ".ci/run installs it if Go is there")
    [override] = blocks("deploy-compose", "yaml")
    shutil.copy(COMPOSE, tmp_path)
    (tmp_path / "compose.override.yaml").write_text(override)
    command = [program, "-no-interpolation", "compose.yaml", "compose.override.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["events"]["command"][2] == "runevents"
    assert services["events"]["healthcheck"] == services["worker"]["healthcheck"]


def test_kustomize_builds_the_site_of_the_page(tmp_path: Path) -> None:
    program = tool("kubectl", "see Kubernetes")
    [text] = [each for each in blocks("deploy-kubernetes", "yaml") if "Kustomization" in each]
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "my-site").mkdir()
    path = tmp_path / "my-site/kustomization.yaml"
    path.write_text(text.replace("chat.example.com", "talk.example.org"))
    done = subprocess.run([program, "kustomize", str(path.parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    [ingress] = [each for each in built if each["kind"] == "Ingress"]
    assert ingress["spec"]["rules"][0]["host"] == "talk.example.org"
    assert ingress["spec"]["tls"][0]["hosts"] == ["talk.example.org"]
    images = set(re.findall(r"image: (\S+)", done.stdout))
    assert images == {"registry.example.com/wsgateway:1", "nats:2.12-alpine"}
    [config] = [each["data"] for each in built if "ALLOWED_HOSTS" in each.get("data", {})]
    assert config["ALLOWED_HOSTS"] == "talk.example.org"
    assert config["WSGATEWAY_REPLICAS"] == "3"
    assert {each["metadata"]["namespace"] for each in built} == {"chat"}


def test_component_for_presence_signals_fits_the_site(tmp_path: Path) -> None:
    """On Kubernetes nobody could run `runevents` without writing a manifest."""
    program = tool("kubectl", "see Kubernetes")
    site, component = [
        each
        for each in blocks("deploy-kubernetes", "yaml")
        if "resources" in each or "comp" in each
    ]
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "my-site").mkdir()
    path = tmp_path / "my-site/kustomization.yaml"
    path.write_text(site + component)
    done = subprocess.run([program, "kustomize", str(path.parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = {(e["kind"], e["metadata"]["name"]): e for e in yaml.safe_load_all(done.stdout)}
    events, worker = built["Deployment", "events"], built["Deployment", "worker"]
    kubernetes_validate.validate(events, "1.37", strict=True)
    labels = events["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/part-of"] == "wsgateway"  # NATS' NetworkPolicy lets it in
    [pod], [other] = (e["spec"]["template"]["spec"]["containers"] for e in (events, worker))
    assert (pod["image"], pod["envFrom"]) == (other["image"], other["envFrom"])
    assert pod["command"][:2] == ["python", "manage.py"]
    name, *arguments = pod["command"][2:]
    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
    parser.parse_args(arguments)
    assert name == "runevents"


def test_selector_of_the_page_keeps_new_code_from_an_old_database() -> None:
    """One `kubectl apply` started gateways while the Job still migrated."""
    [later] = re.findall(r"app\.kubernetes\.io/name notin \((.*?)\)", PAGES["deploy-kubernetes"])
    first = set()
    for (kind, _), each in manifests().items():
        label = each["metadata"].get("labels", {}).get("app.kubernetes.io/name")
        if label not in later.split(", "):
            first.add(kind)
    assert {"Job", "StatefulSet"} <= first
    assert "Deployment" not in first


def test_nginx_page_quotes_the_site() -> None:
    site = re.sub(r"\s+", " ", (DEPLOY / "nginx/wsgateway.conf").read_text())
    quoted = [each for each in blocks("nginx", "nginx") if "events" not in each]
    assert len(quoted) == 3
    for block in quoted:
        for directive in block.strip().split(";\n"):
            assert re.sub(r"\s+", " ", directive.strip(" ;\n")) in site


def test_nginx_accepts_the_settings_for_many_sockets(tmp_path: Path) -> None:
    program = tool("nginx", ".ci/run installs it")
    [block] = [each for each in blocks("nginx", "nginx") if "events" in each]
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\n{block}\nhttp {{}}\n")
    command = [program, "-t", "-p", str(tmp_path), "-e", "error.log", "-c", "nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "syntax is ok" in done.stderr, done.stderr


def test_nats_accepts_the_tls_block(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("localhost")
    [block] = [each for each in blocks("nats-cluster", "") if "tls {" in each]
    text = block.replace("/etc/nats/server.pem", certificate)
    text = text.replace("/etc/nats/server-key.pem", key)
    (tmp_path / "nats.conf").write_text(text)
    command = [str(find_server()), "-c", str(tmp_path / "nats.conf"), "-t"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def kubernetes_environment() -> dict[str, str]:
    """Return what the StatefulSet sets, with variables filled in as the kubelet does."""
    env = dict.fromkeys(("NATS_PASSWORD", "NATS_CLUSTER_PASSWORD"), "abc123")
    for each in container("StatefulSet", "nats")["env"]:
        text = each.get("value", env.get(each["name"], "nats-0"))
        env[each["name"]] = re.sub(r"\$\((\w+)\)", lambda m: env[m[1]], text)
    return env


def page_environment() -> dict[str, str]:
    """Return what the page puts into ``/etc/nats/env``."""
    block = next(each for each in blocks("nats-cluster", "sh") if "NATS_ROUTES=" in each)
    return dict(word.split("=", 1) for word in shlex.split(block))


@pytest.mark.parametrize("environment", [kubernetes_environment, page_environment])
def test_nats_accepts_its_configuration_with_this_environment(
    environment: Callable[[], dict[str, str]], tmp_path: Path
) -> None:
    """`tests/acceptance/test_deployment.py` runs it with that of compose.yaml."""
    env = {**os.environ, **environment(), "NATS_STORE": str(tmp_path)}
    routes: list[str] = json.loads(env["NATS_ROUTES"])
    assert len(set(routes)) == 3
    command = [str(find_server()), "-c", str(DEPLOY / "nats/nats.conf"), "-t"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nats_server_of_the_page_starts_with_these_options() -> None:
    [line] = [words for words in commands() if words[0] == "nats-server"]
    done = subprocess.run([str(find_server()), *line[1:], "-t"], capture_output=True, text=True)
    assert "flag provided but not defined" not in done.stderr + done.stdout


def test_each_unit_that_a_page_names_exists() -> None:
    named = set()
    for words in commands():
        if words[0] in ("systemctl", "journalctl"):
            named |= {each for each in words[2:] if not each.startswith("-")}
    ours = {each for each in named if each.startswith(("wsgateway", "nats"))}
    files = {path.name for path in DEPLOY.glob("systemd/*")}
    for each in ours:
        name = re.sub(r"@.*", "@", each)
        assert {name, f"{name}.service"} & files, each
    assert len(ours) > 6


def test_ports_and_variables_of_nats_are_those_of_its_configuration() -> None:
    conf = (DEPLOY / "nats/nats.conf").read_text()
    ports = set(re.findall(r"(?m)^\| (\d{4}) \|", PAGES["nats-cluster"]))
    assert ports == set(re.findall(r'"0\.0\.0\.0:(\d+)"', conf))
    block = next(each for each in blocks("nats-cluster", "sh") if "NATS_ROUTES=" in each)
    given = set(re.findall(r"(?m)^(\w+)=", block)) | {"NATS_STORE"}  # the unit sets that
    assert given == set(re.findall(r"(?m)^[^#\n]*\$(\w+)", conf))
