"""The commands of docs/tutorial/demo.md are those that ``make run`` prints.

`tests.acceptance.test_launcher` runs what it prints.
"""

from __future__ import annotations

import re
from typing import Any

from project.demo.launcher import tour
from tests.support import ROOT

PAGE = (ROOT / "docs/tutorial/demo.md").read_text()


def test_commands_of_the_page_are_printed(settings: Any) -> None:
    settings.DEBUG = True
    printed = tour("127.0.0.1", 8000, "nats://127.0.0.1:4222", ["ann"])
    shown = [
        line for code in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in code.split("\n")
    ]
    commands = [line.partition(".venv/bin/python ")[2] or line for line in shown if line]
    assert len(commands) == 3
    for command in commands:
        assert f"{command}\n" in printed
