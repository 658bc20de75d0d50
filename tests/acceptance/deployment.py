"""What the tests of ``deploy/`` read: the files themselves, and the programs that check them."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT
from wsgateway.conf import SETTINGS

DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "docker/compose.yaml"
DOCKERFILE = DEPLOY / "docker/Dockerfile"
UNITS = sorted([*DEPLOY.glob("systemd/*.service"), *DEPLOY.glob("systemd/*.target")])


def tool(name: str, package: str) -> str:
    """Return the path of a program; skip the test where it is not installed."""
    folders = [os.environ.get("PATH", ""), str(Path(sys.executable).parent), "/usr/sbin"]
    found = shutil.which(name, path=os.pathsep.join([*folders, str(ROOT / ".cache/bin")]))
    if found is None:
        pytest.skip(f"{name} is not installed; {package}")
    return found


def site_variables() -> set[str]:
    """Return the name of each environment variable that ``project/settings.py`` reads."""
    code = (ROOT / "project/settings.py").read_text()
    return {*SETTINGS, *re.findall(r"\benviron\b[^\n]*?\"([A-Z_]+)\"", code), "DATABASE_URL",
            *re.findall(r"env\.required\(\s*os\.environ,\s*\"([A-Z_]+)\"", code)}  # fmt: skip


def procfile(name: str) -> str:
    """Return a line of the Procfile."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines)[name]


# -- Docker --------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile: name and what follows."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    found = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, rest in found]


def instruction(name: str) -> str:
    """Return what follows the last instruction with this name."""
    return [rest for each, rest in instructions() if each == name][-1]


def copy_of_image(folder: Path) -> None:
    """Copy to *folder* what the Dockerfile copies from the repository."""
    sources = [rest for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    for source in sources:
        name = source.split()[0]
        for path in tracked(name):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, target)


def tracked(name: str) -> Iterator[Path]:
    """Yield the files below *name* that git knows and ``.dockerignore`` lets through."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", name],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert listed, f"the Dockerfile copies {name}, which does not exist"
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    for path in listed:
        kept = True
        for rule in rules:
            if matches(path, rule.removeprefix("!")):
                kept = rule.startswith("!")
        if kept:
            yield Path(path)


def matches(path: str, rule: str) -> bool:
    """Say whether a rule of ``.dockerignore`` names *path* or a folder above it."""
    above = [path, *map(str, Path(path).parents)]
    if rule.startswith("**/"):
        return any(fnmatch.fnmatch(Path(each).name, rule[3:]) for each in above)
    return any(fnmatch.fnmatch(each, rule) for each in above)


def compose(values: dict[str, str]) -> dict[str, Any]:
    """Return compose.yaml with the variables of ``.env`` filled in.

    Raises:
        KeyError: One of the variables has no value; the file itself has no defaults.
    """
    text = re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda m: values[m[1]], COMPOSE.read_text())
    found: dict[str, Any] = yaml.safe_load(text)
    return found


# -- Kubernetes ----------------------------------------------------------------------------


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """Return what the kustomization and its component consist of, as kind and name."""
    folder = DEPLOY / "kubernetes"
    names = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    files = [folder / name for name in names if name.endswith(".yaml")]
    files.append(folder / "events/events.yaml")
    found = [each for path in files for each in yaml.safe_load_all(path.read_text())]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def container(kind: str, name: str) -> dict[str, Any]:
    """Return the only container of a workload."""
    [found] = manifests()[kind, name]["spec"]["template"]["spec"]["containers"]
    return dict(found)


# -- systemd -------------------------------------------------------------------------------


def unit(name: str) -> dict[str, list[str]]:
    """Return the keys of a unit, all sections together; each has a list of values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and key.isalpha():
            found.setdefault(key, []).append(value)
    return found


def listed(text: str) -> list[str]:
    """Return a list in JSON, as the Dockerfile writes commands."""
    found: list[str] = json.loads(text)
    return found
