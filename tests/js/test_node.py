"""Runs the JavaScript tests; a failure shows node's report."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.support import ROOT

FILES = sorted((ROOT / "tests" / "js").glob("*.test.mjs"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_javascript(path: object) -> None:
    node = shutil.which("node")
    assert node, "these tests need Node.js"
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=50,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    passed = re.search(r"^# pass (\d+)", done.stdout, re.M)
    assert passed, done.stdout[-3000:]
    assert int(passed[1]) > 0, "node found no test"


def test_typescript_declarations() -> None:
    tsc = ROOT / "tests/js/node_modules/.bin/tsc"
    assert tsc.exists(), 'run "make test", or "npm install" in tests/js'
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext"]
    done = subprocess.run(
        [tsc, *options, "types.ts"],
        capture_output=True,
        text=True,
        cwd=ROOT / "tests/js",
        timeout=50,
    )
    assert done.returncode == 0, done.stdout
