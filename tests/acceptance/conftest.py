"""Fixtures of the acceptance tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT, site_env

HOSTS = """
import os
import socket

name = os.environ["PRETENDED_HOST"]
socket.gethostname = lambda: name
"""
"""Runs in each process at its start, so that pictures do not show the name of this machine."""


@pytest.fixture(scope="session")
def demo_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that knows the demo users, made once: it takes seconds."""
    path = tmp_path_factory.mktemp("database") / "db.sqlite3"
    env = site_env(DEBUG="1", SECRET_KEY="tests", DATABASE_URL=f"sqlite:///{path}")
    script = "from project.demo.users import create_demo_users as c; c()"
    for command in (["migrate", "-v0"], ["shell", "-v0", "-c", script]):
        subprocess.run([sys.executable, "manage.py", *command], cwd=ROOT, env=env, check=True)
    return path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("wsgateway", "project"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next((source / "dist").glob("*.whl"))


@pytest.fixture
def pretended(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """The environment of a process on a host of another name."""
    folder = tmp_path / "hosts"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOSTS)
    return lambda name: {"PYTHONPATH": str(folder), "PRETENDED_HOST": name}
