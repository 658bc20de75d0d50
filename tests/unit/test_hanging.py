"""What hangs after a test ends its process, and says where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, site_env


def run(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-p", "tests.hanging"]
    return subprocess.run(
        [*command, *options, "test_it.py"],
        cwd=folder,
        env=site_env(PYTHONPATH=str(ROOT), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        timeout=50,
    )


FIXTURE_THAT_HANGS = """
import threading

import pytest

@pytest.fixture
def server():
    yield
    threading.Event().wait()

def test_fails(server):
    assert not "as it should"
"""

THREAD_THAT_HANGS = """
import threading

def test_succeeds():
    threading.Thread(target=threading.Event().wait).start()
"""


def test_fixture_that_hangs_after_a_failed_test_is_named(tmp_path: Path) -> None:
    """A failure switches pytest-timeout's alarm off, and the run hung without a word."""
    done = run(tmp_path, FIXTURE_THAT_HANGS, "--timeout=1", "-o", "teardown_timeout=2")
    assert done.returncode != 0
    assert "Timeout (0:00:02)" in done.stderr
    assert "in server" in done.stderr


def test_thread_that_hangs_when_python_ends_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, THREAD_THAT_HANGS, "-o", "exit_timeout=2")
    assert "1 passed" in done.stdout
    assert done.returncode != 0
    assert "Timeout (0:00:02)" in done.stderr
