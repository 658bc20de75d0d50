"""The examples of docs/how-to/testing.md, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, site_env


def test_examples_pass(tmp_path: Path) -> None:
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/testing.md").read_text(), re.S)
    for number, example in enumerate(found):
        (tmp_path / f"test_example_{number}.py").write_text(example)
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
    assert "4 passed" in done.stdout, done.stdout + done.stderr
