"""``pip install .`` in another Django project."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT, site_env

SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["channels", "wsgateway"]
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=site_env(**env),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "wsgateway", source / "wsgateway", ignore=ignore)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    return next((source / "dist").glob("*.whl"))


def test_wheel_holds_what_the_app_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("wsgateway/")}
        others = {name.partition("/")[0] for name in archive.namelist()} - {"wsgateway"}
    kept = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "wsgateway").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == kept
    assert "wsgateway/py.typed" in held
    assert "wsgateway/templates/wsgateway/demo.html" in held
    assert "wsgateway/static/wsgateway/demo.css" in held
    assert [name for name in others if not name.endswith(".dist-info")] == []


def test_installed_app_passes_the_checks_of_a_minimal_project(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site-packages"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", target, wheel, cwd=tmp_path)
    (tmp_path / "minimal.py").write_text(SETTINGS)
    env = {"PYTHONPATH": f"{target}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "minimal"}
    django = (sys.executable, "-W", "error", "-m", "django")
    assert "no issues" in run(*django, "check", cwd=tmp_path, **env)
    where = "import wsgateway; print(wsgateway.__file__)"
    assert run(sys.executable, "-c", where, cwd=tmp_path, **env).startswith(str(target))
