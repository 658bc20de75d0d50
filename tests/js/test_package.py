"""The client as an npm package: what it holds, and that its versions are those of the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import wsgateway
from tests.support import ROOT

FOLDER = ROOT / "wsgateway/static/wsgateway"
PACKAGE: dict[str, Any] = json.loads((FOLDER / "package.json").read_text())


def test_every_version_is_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    exported = re.search(
        r'^export const VERSION = "(.*)";$', (FOLDER / "wsgateway.js").read_text(), re.M
    )
    assert exported
    versions = {
        "pyproject.toml": project["version"],
        "wsgateway.__version__": wsgateway.__version__,
        "package.json": PACKAGE["version"],
        "wsgateway.js": exported[1],
    }
    assert len(set(versions.values())) == 1, versions


def test_package_has_the_licence_of_the_project() -> None:
    assert (FOLDER / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (PACKAGE["license"], PACKAGE["name"]) == (project["license"], project["name"])


def test_npm_packs_the_client_and_nothing_else() -> None:
    """The admin's script and style sheet are in the same folder."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    done = subprocess.run(
        [npm, "pack", "--dry-run", "--json"], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    [packed] = json.loads(done.stdout)
    client = {"wsgateway.js", "wsgateway.d.ts", "protocol.schema.json"}
    assert {file["path"] for file in packed["files"]} == {
        *client,
        *("LICENSE", "README.md", "package.json"),
    }
    exported = [PACKAGE["types"], *PACKAGE["exports"].values()]
    paths = {
        p for entry in exported for p in (entry.values() if isinstance(entry, dict) else [entry])
    }
    assert {Path(path).name for path in paths} == {*client, "package.json"}
