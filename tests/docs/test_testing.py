"""The example of docs/testing.md, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, site_env


def test_example_passes(tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", (ROOT / "docs/testing.md").read_text(), re.S)
    assert found
    (tmp_path / "test_example.py").write_text(found[1])
    plugin = ["-p", "wsgateway.testing.plugin"]  # the entry point, once the package is installed
    done = subprocess.run(
        [
            *[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin],
            *["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-n0", str(tmp_path)],
        ],
        cwd=ROOT,
        env=site_env(DEBUG="1"),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
