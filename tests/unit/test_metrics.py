"""Who may see metrics, and how those of several processes become one page."""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric

from tests.scrape import Samples
from wsgateway.counters import Histogram
from wsgateway.metrics import members
from wsgateway.metrics.access import Asker, is_forwarded, is_restricted, refusal_of
from wsgateway.metrics.catalog import Spec
from wsgateway.metrics.families import Families, decode, encode, merge
from wsgateway.metrics.members import Member, private_folder
from wsgateway.metrics.server import MetricsPortRefused, MetricsServer

TOKEN = "a-token-of-the-tests"


def asker(address: str = "10.1.2.3", authorization: str = "", is_forwarded: bool = False) -> Asker:
    return Asker(address, authorization, is_forwarded)


# -- who may see them --------------------------------------------------------------------


def test_nobody_is_let_in_without_a_setting(settings: Any) -> None:
    assert not is_restricted()
    settings.WSGATEWAY_METRICS_NETWORKS = ["10.0.0.0/8"]
    assert is_restricted()


@pytest.mark.parametrize("given", [TOKEN, f"{TOKEN} "])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_token_lets_in_from_anywhere(settings: Any, scheme: str, given: str) -> None:
    settings.WSGATEWAY_METRICS_TOKEN = TOKEN
    assert refusal_of(asker("", f"{scheme} {given}", is_forwarded=True)) is None


@pytest.mark.parametrize("header", ["", TOKEN, f"Basic {TOKEN}", "Bearer ", f"Bearer {TOKEN}2"])
def test_anything_else_is_refused_with_what_to_send(settings: Any, header: str) -> None:
    settings.WSGATEWAY_METRICS_TOKEN = TOKEN
    refusal = refusal_of(asker(authorization=header))
    assert refusal is not None
    assert refusal.status == 401
    assert "WSGATEWAY_METRICS_TOKEN" in refusal.text
    assert TOKEN not in refusal.text


def test_empty_token_opens_nothing(settings: Any) -> None:
    """Without a token, an empty one would be as good as any."""
    settings.WSGATEWAY_METRICS_NETWORKS = ["10.0.0.0/8"]
    refusal = refusal_of(asker("192.0.2.1", "Bearer "))
    assert refusal is not None
    assert refusal.status == 403


@pytest.mark.parametrize(
    ("address", "is_near"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fd00::1", True),
        ("fd00::1%eth0", True),
        ("11.1.2.3", False),
        ("fe80::1", False),
        ("", False),
        ("/run/site.sock", False),
    ],
)
def test_network_lets_in_its_own_addresses(settings: Any, address: str, is_near: bool) -> None:
    settings.WSGATEWAY_METRICS_NETWORKS = ["10.0.0.0/8", "fd00::/8"]
    assert (refusal_of(asker(address)) is None) is is_near
    forwarded = refusal_of(asker(address, is_forwarded=True))
    assert forwarded is not None
    assert "proxy" in forwarded.text


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("X-Forwarded-For", True),
        ("X-Forwarded-Proto", True),
        ("x-forwarded-host", True),
        ("Forwarded", True),
        ("Via", True),
        ("X-Real-IP", True),
        ("CF-Connecting-IP", True),
        ("Accept", False),
        ("X-Prometheus-Scrape-Timeout-Seconds", False),
    ],
)
def test_proxy_is_known_by_any_of_its_headers(header: str, expected: bool) -> None:
    """One that added only X-Forwarded-Proto counted as the client itself, and let in everybody."""
    assert is_forwarded(["Host", header]) is expected


# -- families ----------------------------------------------------------------------------

SPECS = (
    Spec("a_total", "counter", ("kind",), "A"),
    Spec("b_seconds", "histogram", (), "B"),
)


def families(count: int) -> Families:
    found = Families(SPECS)
    found.add("a_total", count, "x")
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.5)
    found.add_histogram("b_seconds", histogram)
    return found


def test_families_survive_the_way_to_another_process() -> None:
    assert decode(encode(families(3))) == list(families(3))


@pytest.mark.parametrize(
    "data", [b"", b"{}x", b"[1]", b'["ab"]', b'[["a", "b", "nonsense", []]]', b'{"a": 1}']
)
def test_answer_that_is_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)


def test_merged_samples_say_whose_they_are() -> None:
    samples = Samples(merge({"1": families(3), "2": families(4)}))
    assert [family.name for family in samples.families] == ["a", "b_seconds"]
    assert samples.by("a_total", "process") == {("1",): 3, ("2",): 4}
    assert samples.get("b_seconds_bucket", process="2", le="2.0") == 1
    assert samples.get("b_seconds_bucket", process="2", le="1.0") == 0


def test_labels_that_the_catalog_does_not_have_are_a_mistake() -> None:
    with pytest.raises(ValueError):
        Families(SPECS).add("a_total", 1, "x", "y")


# -- processes ---------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder for sockets of this test's own, with a short name: the system limits it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("m")))


def test_folder_is_private() -> None:
    folder = private_folder("127.0.0.1:9100")
    assert folder == private_folder("127.0.0.1:9100")
    assert folder != private_folder("127.0.0.2:9100")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_folder_that_others_may_enter_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody else could have made it first, and listen there."""
    folder = private_folder("127.0.0.1:9100")
    folder.chmod(0o755)
    member = Member("127.0.0.1:9100", lambda: b"mine")
    member.open()
    assert member.ask_others() == ({}, 0)
    assert "not a folder that only this user enters" in caplog.text
    member.close()


def test_link_to_a_folder_is_not_used(tmp_path: Path) -> None:
    folder = private_folder("127.0.0.1:9100")
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        private_folder("127.0.0.1:9100")


def test_members_find_each_other_and_forget_the_dead() -> None:
    here, there = Member("site:1", lambda: b"here"), Member("site:1", lambda: b"there")
    here.open()
    there.open()
    try:
        found = here.ask_others()
        assert list(found.by_process.values()) == [b"there"]
        assert found.silent == 0
        # Both are of this process, so the second is told apart
        assert next(iter(found.by_process)).startswith(f"{os.getpid()}-")
        folder = private_folder("site:1")
        dead = folder / "1-dead.sock"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(dead))
        assert len(here.ask_others().by_process) == 1
        assert not dead.exists()
    finally:
        there.close()
        here.close()
    assert not folder.exists()


def test_member_that_does_not_answer_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "ANSWER_WITHIN", 0.2)
    member = Member("site:1", lambda: b"here")
    member.open()
    path = private_folder("site:1") / "7-abcd.sock"
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(path))
        frozen.listen()
        assert member.ask_others() == ({}, 1)
    member.close()


def test_member_that_is_killed_while_it_is_asked_is_gone() -> None:
    """It counted as silent, as if it stood still, if it died before it accepted the connection."""
    member = Member("site:1", lambda: b"here")
    member.open()
    path = private_folder("site:1") / "7-abcd.sock"
    dying = socket.socket(socket.AF_UNIX)
    dying.bind(str(path))
    dying.listen()

    def die() -> None:
        select.select([dying], [], [], 5.0)  # a connection waits to be accepted
        dying.close()

    thread = threading.Thread(target=die)
    thread.start()
    assert member.ask_others() == ({}, 0)
    thread.join()
    member.close()


# -- the port ----------------------------------------------------------------------------


def test_port_of_another_program_is_refused_with_what_to_do(free_port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        with pytest.raises(MetricsPortRefused, match=r"choose another\s+--metrics-port"):
            MetricsServer("127.0.0.1", free_port)


@pytest.mark.parametrize(("host", "port"), [("no such host", 9100), ("127.0.0.1", 70_000)])
def test_address_that_cannot_be_is_refused(host: str, port: int) -> None:
    with pytest.raises(MetricsPortRefused, match=str(port)):
        MetricsServer(host, port)


def test_server_on_an_address_of_version_6_says_where_it_is() -> None:
    try:
        server = MetricsServer("::1", 0)
    except MetricsPortRefused:
        pytest.skip("this machine has no IPv6")
    server.open()
    assert server.url == f"http://[::1]:{server.server_port}/metrics"
    server.close()


# -- prometheus-client -------------------------------------------------------------------


def test_metric_of_prometheus_client_is_what_we_think() -> None:
    """A canary: `families` makes the base class itself, which the library calls internal."""
    family = Metric("a", "A", "counter")
    family.add_sample("a_total", {"kind": "x"}, 1)
    assert family.samples[0][:3] == ("a_total", {"kind": "x"}, 1)
