"""docs/reference/protocol.md and the clients' pages against the code."""

from __future__ import annotations

import gzip
import json
import re
import subprocess

import pytest

from tests.docs.test_tables import rows
from tests.support import ROOT
from wsgateway.client.session import should_reconnect
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.codes import CloseCode

STATIC = ROOT / "wsgateway/static/wsgateway"
PAGE = (ROOT / "docs/reference/protocol.md").read_text()


def test_close_codes() -> None:
    assert rows("reference/protocol.md", first=r"\d{4}") == [
        [str(int(code)), code.reason, "yes" if code.reconnect else "no"] for code in CloseCode
    ]


def test_error_codes() -> None:
    table = [
        row for row in rows("reference/protocol.md", first=r"`\w+`") if row[1] in ("yes", "no")
    ]
    assert table == [
        [f"`{code}`", "yes" if code.temporary else "no", code.meaning]
        for code in protocol.ErrorCode
    ]


def test_reasons() -> None:
    names = "|".join(protocol.Reason)
    table = rows("reference/protocol.md", first=f"`({names})`")
    expected = [[f"`{reason}`", reason.meaning] for reason in protocol.Reason]
    assert [row for row in table if row in expected] == expected


def test_both_clients_come_back_after_the_same_codes() -> None:
    script = (
        f"import {{shouldReconnect}} from '{(STATIC / 'wsgateway.js').as_uri()}';"
        "const all = []; for (let c = 1000; c < 5000; c += 1) all.push(shouldReconnect(c));"
        "console.log(JSON.stringify(all));"
    )
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [should_reconnect(code) for code in range(1000, 5000)]
    assert all(should_reconnect(code) == code.reconnect for code in CloseCode)


def test_final_standard_codes_are_documented() -> None:
    final = [code for code in range(1000, 1016) if not should_reconnect(code)]
    text = f"{', '.join(map(str, final[:-1]))} and {final[-1]}"
    assert text in " ".join(PAGE.split())


@pytest.mark.parametrize("text", re.findall(r'^\{"type".*?\}$', PAGE, re.M | re.S))
def test_examples_mean_something(text: str) -> None:
    frame = json.loads(text)
    sent = {("message", "id"), ("ack", "offset")}
    if frame["type"] in ("watch", "refresh", "subscribe", "unsubscribe") or any(
        frame["type"] == kind and field in frame for kind, field in sent
    ):
        protocol.parse_client(text)
    else:
        assert not isinstance(protocol.parse_server(text), protocol.Unknown)


def test_bounds_of_a_subscribe_are_documented() -> None:
    assert f"a number from 1 to {protocol.MAX_SINCE} " in PAGE
    assert f"at most {protocol.MAX_TOKEN:,} characters" in PAGE


def test_size_of_the_javascript_client_is_the_documented_one() -> None:
    size = len(gzip.compress((STATIC / "wsgateway.js").read_bytes(), 9))
    page = (ROOT / "docs/reference/client-javascript.md").read_text()
    documented = float(re.search(r"\*\*([0-9.]+) kB\*\* gzipped", page)[1])  # type: ignore[index]
    assert abs(size / 1000 - documented) < 0.2


def test_options_of_the_javascript_client_are_documented_and_typed() -> None:
    source = (STATIC / "wsgateway.js").read_text()
    options = re.search(r"const DEFAULTS = \{(.*?)\n\};", source, re.S)
    assert options
    defaults = dict(re.findall(r"^  (\w+): (.*),$", options[1], re.M))
    names = set(defaults)
    page = (ROOT / "docs/reference/client-javascript.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| .* \|$", page, re.M))
    assert documented.keys() == names
    for name, default in defaults.items():
        if default not in ("undefined", "{}"):
            assert documented[name] == f"`{default.replace('_', '')}`"
    types = re.search(
        r"interface Options \{(.*?)\n\}", (STATIC / "wsgateway.d.ts").read_text(), re.S
    )
    assert types
    assert set(re.findall(r"^  (\w+)\?:", types[1], re.M)) == names
