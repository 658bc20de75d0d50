"""A worker process that ends takes one test with it, and the run goes on to its end."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, site_env

pytest.importorskip("xdist")

TESTS = "def test_one(): pass\ndef test_two(): pass\n"
ENDS = "import os\ndef test_one(): pass\ndef test_two(): os._exit(1)\ndef test_three(): pass\n"


@pytest.mark.parametrize("last", ["a", "m", "z"])
def test_run_goes_on_without_what_ended_a_worker(tmp_path: Path, last: str) -> None:
    """Others got the files that were done, waited for a test after their last one, and hung."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for letter in "bcdefghijklnopqrstuvwxy":
        (tmp_path / f"test_{letter}.py").write_text(TESTS)
    (tmp_path / f"test_{last}.py").write_text(ENDS)
    options = "-p xdist -p tests.scheduling -n 2 --dist loadfile --no-loadscope-reorder"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split()],
        cwd=tmp_path,
        env=site_env(PYTHONPATH=str(ROOT), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert re.search(r"1 failed, 48 passed", done.stdout), done.stdout
    assert f"crashed while running 'test_{last}.py::test_two'" in done.stdout
