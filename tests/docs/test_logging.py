"""The configuration in ``docs/how-to/logging.md`` writes each line with its fields as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from tests.support import ROOT

PAGE = (ROOT / "docs/how-to/logging.md").read_text()
PLAIN, JSON = re.findall(r"```python\n(.*?)```", PAGE, re.S)
LOG = """
import logging, logging.config
logging.config.dictConfig(LOGGING)
logger = logging.getLogger("wsgateway.services")
try:
    1 / 0
except ZeroDivisionError as exc:
    logger.error("message %s becomes a dead letter", 7, exc_info=exc, extra={"offset": 7})
logger.debug("nobody reads this")
"""


def test_every_logger_is_listed() -> None:
    """The list lacked those of signals and of the outbox."""
    code = "".join(path.read_text() for path in (ROOT / "wsgateway").rglob("*.py"))
    used = set(re.findall(r'getLogger\("(wsgateway[a-z.]*)"\)', code))
    first = PAGE.partition("## Handlers that fail")[0]
    assert set(re.findall(r"`(wsgateway[a-z.]*)`", first)) == used


def test_first_configuration_shows_the_lines_of_wsgateway() -> None:
    code = PLAIN + LOG
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.startswith("message 7 becomes a dead letter\nTraceback")
    assert "nobody reads this" not in done.stderr


def test_shown_formatter_writes_fields_and_tracebacks_into_one_line() -> None:
    code = JSON + LOG
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    [line] = done.stderr.splitlines()
    found = json.loads(line)
    assert found.pop("time")
    assert found.pop("exc_info").endswith("ZeroDivisionError: division by zero")
    assert found == {
        "level": "ERROR",
        "logger": "wsgateway.services",
        "message": "message 7 becomes a dead letter",
        "offset": 7,
    }


def test_the_site_uses_the_same_formatter() -> None:
    shown: dict[str, object] = {}
    exec(JSON, shown)
    script = "import json; from project.settings import LOGGING; print(json.dumps(LOGGING))"
    env = {"DEBUG": "1", "LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True
    )
    site = json.loads(done.stdout)
    assert site["formatters"]["json"] == shown["LOGGING"]["formatters"]["json"]  # type: ignore[index]
    assert site["handlers"]["console"]["formatter"] == "json"
    assert site["loggers"]["wsgateway"]["level"] == "DEBUG"
