"""The examples of docs/how-to/testing.md, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import PLUGIN, ROOT, site_env


def install(folder: Path) -> Path:
    """Make a folder for PYTHONPATH in which the package seems to be installed."""
    entry = folder / "site" / "wsgateway-0.0.dist-info"
    entry.mkdir(parents=True)
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: wsgateway\nVersion: 0.0\n")
    (entry / "entry_points.txt").write_text("[pytest11]\nwsgateway = wsgateway.testing.plugin\n")
    return entry.parent


@pytest.mark.parametrize("installed", [False, True])
def test_examples_pass(tmp_path: Path, installed: bool) -> None:
    """With the package installed, pytest had the plugin twice, and did not start."""
    site = install(tmp_path) if installed else tmp_path
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/testing.md").read_text(), re.S)
    for number, example in enumerate(found):
        (tmp_path / f"test_example_{number}.py").write_text(example)
    done = subprocess.run(
        [
            *[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGIN],
            *["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-n0", str(tmp_path)],
        ],
        cwd=ROOT,
        env=site_env(DEBUG="1", PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "7 passed" in done.stdout, done.stdout + done.stderr
