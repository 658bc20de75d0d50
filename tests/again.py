"""A pytest plugin of `.ci/run`: writes down which few tests failed, so that they may run once more.

``python -m pytest -p tests.again --failures-to FILE`` writes their names to FILE, one a line, as
``pytest @FILE`` takes them. It writes nothing if more than `MOST` failed in more than one file, or
if the run did not reach its end. It also shows each failure at once: if the run is ended before its
own end, nobody else does.
"""

from __future__ import annotations

from pathlib import Path

import pytest

MOST = 5
"""If more tests fail, a busy machine is not the reason."""
MOST_OF_ONE_FILE = 30
"""Unless they are of one file: those may share a server that did not start."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--failures-to", type=Path, metavar="FILE", help="write the names of failures")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(AtOnce(config))


class AtOnce:
    """Shows each failure when it happens."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            terminal = self._config.get_terminal_writer()
            terminal.line()
            terminal.sep("_", report.nodeid)
            terminal.line(report.longreprtext)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    path = config.getoption("failures_to")
    reports = [*terminalreporter.stats.get("failed", ()), *terminalreporter.stats.get("error", ())]
    names = sorted({report.nodeid for report in reports})
    whole = exitstatus == pytest.ExitCode.TESTS_FAILED and not config.getoption("maxfail")
    files = {name.partition("::")[0] for name in names}
    most = MOST_OF_ONE_FILE if len(files) == 1 else MOST
    if path and whole and 0 < len(names) <= most:
        path.write_text("".join(f"{name}\n" for name in names))
