"""A pytest plugin: what hangs after a test, or at the end of all, ends its process and says where.

The alarm of pytest-timeout rings once, and not at all once a test has failed: pytest then cancels
it, and its own ``faulthandler_timeout``. So nothing bounds what fixtures do after that, for example
while a server that the test has stopped does not answer. Nor does anything bound a thread that
Python waits for when it ends. Both look the same from outside: the run says nothing more, and goes
on for ever.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Generator

import pytest

STDERR = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("teardown_timeout", "seconds that fixtures may take to end", default="120")
    parser.addini("exit_timeout", "seconds that Python may take to end after pytest", default="120")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    assert sys.__stderr__ is not None
    config.stash[STDERR] = os.dup(sys.__stderr__.fileno())  # pytest takes over the original


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    seconds = float(item.config.getini("teardown_timeout"))
    faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # xdist's workers wait here until the last of them is done, and are killed then
    seconds = float(config.getini("exit_timeout"))
    faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[STDERR])
