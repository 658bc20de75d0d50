"""`.ci/run` runs again what failed, if that was little and everything else has run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.again import MOST
from tests.support import ROOT, site_env

TESTS = """
import os, pytest
from pathlib import Path

@pytest.mark.parametrize("text", ["a b", "[x]::'\\"", "\\n", "é"][:{names}])
def test_odd_name(text):
    marker = Path("ran" + ascii(text).encode().hex())
    assert marker.exists() or marker.touch()

@pytest.mark.parametrize("number", range({failing}))
def test_failing(number):
    assert False

def test_passing():
    Path("passed").touch()
"""


def run(folder: Path, *arguments: str) -> int:
    return ran(folder, *arguments).returncode


def ran(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-c", "pytest.ini", "-p", "xdist"]
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=site_env(PYTHONPATH=str(ROOT), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("workers", ["0", "2"])
def test_few_failures_are_named_as_pytest_takes_them(tmp_path: Path, workers: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(TESTS.format(names=4, failing=0))
    names = tmp_path / "failures"
    failed = run(tmp_path, "-p", "tests.again", "--failures-to", str(names), "-n", workers)
    assert failed == pytest.ExitCode.TESTS_FAILED
    assert len(names.read_text().splitlines()) == 4
    (tmp_path / "passed").unlink()
    assert run(tmp_path, f"@{names}") == pytest.ExitCode.OK
    assert not (tmp_path / "passed").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_each_failure_is_shown_at_once(tmp_path: Path, workers: str) -> None:
    """A run that CI ended after its time named none of those that had failed."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(TESTS.format(names=0, failing=2))
    done = ran(tmp_path, "-p", "tests.again", "--failures-to", "failures", "-n", workers)
    during, end, _ = done.stdout.partition("= FAILURES =")
    assert end
    for number in range(2):
        assert f"test_it.py::test_failing[{number}]" in during
    assert "assert False" in during


def test_failures_of_one_file_may_have_one_cause(tmp_path: Path) -> None:
    """A server that did not start fails all tests that share it."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(TESTS.format(names=0, failing=2 * MOST))
    names = tmp_path / "failures"
    run(tmp_path, "-p", "tests.again", "--failures-to", str(names))
    assert len(names.read_text().splitlines()) == 2 * MOST


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (TESTS.format(names=0, failing=MOST + 1), ()),
        (TESTS.format(names=0, failing=3), ("--maxfail=2",)),
        (TESTS.format(names=0, failing=0), ()),
        ("import nonsense", ()),
        (TESTS.format(names=0, failing=1), ("--nonsense",)),
    ],
    ids=["too many", "stopped", "none", "no tests", "usage"],
)
def test_other_failures_are_not(tmp_path: Path, code: str, arguments: tuple[str, ...]) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name in ("test_it.py", "test_more.py"):
        (tmp_path / name).write_text(code)
    names = tmp_path / "failures"
    run(tmp_path, "-p", "tests.again", "--failures-to", str(names), *arguments)
    assert not names.exists()
