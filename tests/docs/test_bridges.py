"""What docs/how-to/bridges.md shows, against the code."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.pages import BLOCK, DocumentPage
from wsgateway.bridges import headers
from wsgateway.bridges.config import OPTIONS, bridge_flaws, bridge_of
from wsgateway.bridges.names import parse_key
from wsgateway.protocol.subjects import Inbox, encode_token

PAGE = DocumentPage("how-to/bridges.md")


def section(title: str) -> str:
    return PAGE.text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_settings_of_the_page_are_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(re.findall(r'os\.environ\["(\w+)"\]', PAGE.text)):
        monkeypatch.setenv(name, "x")
    blocks = [match[2] for match in BLOCK.finditer(PAGE.text) if "WSGATEWAY_BRIDGES" in match[2]]
    assert len(blocks) >= 2
    names: dict[str, Any] = {}
    local = "WSGATEWAY_BRIDGES = {{'local': {{{}, 'services': ['orders']}}}}"
    blocks += map(local.format, re.findall(r'`("url": "\S+localhost\S*")`', PAGE.text))
    for block in blocks:
        exec(block, names)
        bridges = names["WSGATEWAY_BRIDGES"]
        assert bridge_flaws(bridges) == ""
        for name, options in bridges.items():
            assert bridge_of(name, options, "ws").is_encrypted == (name != "local")


def test_every_option_is_on_the_page_with_its_default() -> None:
    found = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*?) \|", section("Options"), re.M)
    defaults = {name: value for names, value in found for name in re.findall(r"\w+", names)}
    assert set(defaults) == set(OPTIONS)
    for bus in ("kafka", "amqp"):
        bridge = bridge_of("NAME", {"url": f"{bus}://a", "services": ["orders"]}, "ws")
        for name in ("concurrency", "partitions", "queues", "sasl", "group"):
            assert defaults[name].strip('`"') == str(getattr(bridge, name))


def test_every_header_that_a_bridge_adds_is_on_the_page() -> None:
    read = section("What your service reads")
    for name in ("SERVICE", "USER", "ID", "OFFSET", "ATTEMPT"):
        assert f"`{getattr(headers, f'{name}_HEADER')}`" in read
    for name in ("REASON", "PLACE", "CUT", "PART"):
        assert f"`{getattr(headers, f'{name}_HEADER')}`" in PAGE.text


def test_key_of_the_page_is_what_the_code_makes() -> None:
    assert "`ann@example.com` is\n`ann=40example=2Ecom`" in PAGE.text
    assert encode_token("ann@example.com") == "ann=40example=2Ecom"
    assert parse_key("inbox", None, "orders.ann") == Inbox("orders", "ann")
