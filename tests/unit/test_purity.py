"""What decides is pure: it can be imported, and tested, without what does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "wsgateway"
PURE = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in (PACKAGE / "protocol").rglob("[a-z]*.py")
)
SHELLS = ["asyncio", "django", "channels", "nats", "daphne", "twisted", "websockets"]


@pytest.mark.parametrize(
    "module", [*PURE, "exceptions", "client.inbox", "client.monitor", "client.outbox"]
)
def test_import_loads_no_shell(module: str) -> None:
    code = (
        f"import sys, wsgateway.{module}; "
        f"print([name for name in {SHELLS} if name in sys.modules], end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]", "")


def test_a_shell_would_be_noticed() -> None:
    shells = f"[name for name in {SHELLS} if name in sys.modules]"
    code = f"import sys, wsgateway.gateway.publish_queue; print({shells}, end='')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "asyncio" in done.stdout
