"""The benchmarks run: their numbers stand in the documents, with the command that measures them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.http_systems import missing

ROOT = Path(__file__).resolve().parents[2]
FEW = ["services", "--rounds", "1", "--systems", "ours", "--jobs", "100"]
QUICK = ["--quick", "--transports", "sse"]
COMMANDS = [
    [*FEW, "--only", "latency,many,outbox", "--messages", "100", "--rows", "100"],
    ["sockets", "--quick", "--server", "daphne"],
    ["admin", "--users", "20", "--looks", "1"],
    ["metrics", "--rounds", "1", "--users", "10", "--messages", "200"],
    ["v1", "--quick", "--servers", "uvicorn", "--kinds", "v1", "--sockets", "100"],
    ["topics", "--quick", "--servers", "uvicorn", "--sockets", "1000"],
    ["http", *QUICK, "--systems", "uvicorn", "--cases", "publish", "kill"],
    pytest.param(
        ["http", *QUICK, "--systems", "pushpin"],
        marks=pytest.mark.skipif(bool(missing()), reason=missing() or "it is there"),
    ),
    ["bridges", "--buses", "kafka", "--messages", "500"],
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_benchmark_measures(command: list[str]) -> None:
    """That of `send_many` failed for two versions: its service was not declared."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.timeout(300)
def test_commands_that_profile_show_where_the_time_goes(tmp_path: Path) -> None:
    """Those of CONTRIBUTING.md, one after the other: the first writes what the second reads."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    for part in ("-m benchmarks layer", "pstats"):
        (line,) = (line for line in page.splitlines() if part in line and "python" in line)
        words = shlex.split(line.replace("--seconds 5", "--seconds 0.5"))
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in done.stderr, done.stderr
    assert "wsgateway/layer/" in done.stdout, done.stdout
