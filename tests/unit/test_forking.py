"""What forks processes for tests mixes none of them up."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.forking import Forker
from tests.support import process_alive, wait_for

SCRIPT = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(float(sys.argv[1]))"


class LateError(Exception):
    """What the alarm of a timeout raises."""


def test_order_that_timed_out_confuses_no_other(tmp_path: Path) -> None:
    """Each later order got the process of the one before it, killed that, and waited in vain."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def ring(*_: object) -> None:
        raise LateError

    forker = Forker(Path(sys.executable), tmp_path)
    usual = signal.signal(signal.SIGUSR1, ring)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(LateError):  # it imports Django first, which takes longer
            forker.fork([str(script), "60"], tmp_path, {}, tmp_path / "lost.log")
        second = forker.fork([str(script), "0"], tmp_path, {}, tmp_path / "second.log")
        assert second.wait() == 0
        assert int((tmp_path / "second.log").read_text()) == second.pid
        said = (tmp_path / "lost.log").read_text()  # nothing, if it was killed before
        if said:
            wait_for(lambda: not process_alive(int(said)))
    finally:
        signal.signal(signal.SIGUSR1, usual)
        forker.close()


def test_orders_of_several_threads_confuse_none(tmp_path: Path) -> None:
    """Each read the others' answers, killed their processes, and waited for its own in vain."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    forker = Forker(Path(sys.executable), tmp_path)

    def run(number: int) -> bool:
        log = tmp_path / f"{number}.log"
        forked = forker.fork([str(script), "0"], tmp_path, {}, log)
        return forked.wait(30) == 0 and int(log.read_text()) == forked.pid

    try:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(run, range(40), timeout=50))
    finally:
        forker.close()
