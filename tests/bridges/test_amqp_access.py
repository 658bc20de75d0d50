"""Who may connect to RabbitMQ, how, and what is said of who may not."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from functools import partial

import pytest

from tests.bridges.amqp_side import Hands, amqp_bridge, service_side
from tests.bridges.rabbitmq import RabbitServer
from tests.bridges.sides import opened, told_without
from tests.support import until
from wsgateway.bridges.amqp import AmqpBus, connection, publishing
from wsgateway.bridges.config import Server
from wsgateway.exceptions import BusMisconfigured, BusUnavailable

pytestmark = pytest.mark.timeout(150)  # a busy machine takes half a minute to start RabbitMQ


PASSWORD = "p@ss/w?rd#%41 ü"


async def test_a_virtual_host_and_a_user_with_just_enough_rights(rabbit: RabbitServer) -> None:
    rabbit.add_vhost("staging/ü")
    bridge = amqp_bridge(rabbit, url=rabbit.url(vhost="staging/ü"))
    await AmqpBus(bridge).set_up()
    rabbit.add_user(
        "ben",
        PASSWORD,
        "staging/ü",
        configure="^$",
        write=rf"^{bridge.prefix}\.(send|dead)$",
        read=rf"^{bridge.prefix}\.bridge\.warehouse\.",
    )
    own = amqp_bridge(
        rabbit, prefix=bridge.prefix, url=rabbit.url("ben", PASSWORD, vhost="staging/ü")
    )
    async with opened(own, set_up=False) as bus, service_side(rabbit, bridge) as service:
        hands = Hands(bus)
        await bus.ready()
        await service.read()
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        await service.produce("orders.ann", ["2"])
        await until(lambda: service.received and hands.records)
        await bus.set_aside(hands.records[0], "why")
        with pytest.raises(BusMisconfigured, match=r"access to .* refused for user 'ben'") as told:
            await bus.set_up()
        right = f"; grant user 'ben' the right configure on exchange '{bridge.prefix}.send'"
        assert right in str(told.value)


async def test_a_user_who_may_create_but_not_bind_is_told(rabbit: RabbitServer) -> None:
    """`setup_bridges` ended with aiormq's traceback."""
    rabbit.add_vhost("binding")
    bridge = amqp_bridge(rabbit, url=rabbit.url("dan", PASSWORD, vhost="binding"))
    name = rf"^{bridge.prefix}\."
    rabbit.add_user("dan", PASSWORD, "binding", configure=name, write=name, read="^$")
    with pytest.raises(BusMisconfigured, match=r"access to .* refused for user 'dan'") as told:
        await AmqpBus(bridge).set_up()
    queues = [f"{bridge.group}.{target}.0" for target in ("inbox", "topic")]
    for queue in queues:
        right = f"; grant user 'dan' the right (configure and )?read on queue '{queue}'"
        assert re.search(right, str(told.value))  # RabbitMQ 4 says which of the two is missing
    # What fails keeps nothing else from being created
    created = [line for line in told.value.lines if line.startswith("created ")]
    assert f"created queue '{bridge.prefix}.dead': quorum, durable" in created
    assert len(created) == 5
    assert len(told.value.lines) == 7
    # Now it may read its queues, but no exchange
    rabbit.add_user("eva", PASSWORD, "binding", configure=name, write=name, read=r"\.[0-9]$")
    bridge = amqp_bridge(
        rabbit, prefix=bridge.prefix, url=rabbit.url("eva", PASSWORD, vhost="binding")
    )
    with pytest.raises(BusMisconfigured) as told:
        await AmqpBus(bridge).set_up()
    for each in ("dead", "recv", "topic"):
        right = f"; grant user 'eva' the right read on exchange '{bridge.prefix}.{each}'"
        assert right in str(told.value)


async def test_a_bridge_that_may_not_carry_says_which_right_it_lacks(
    rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It told to grant the rights that a page lists."""
    bridge = amqp_bridge(rabbit)
    await AmqpBus(bridge).set_up()
    rabbit.add_user("flo", PASSWORD, configure="^$", write="^$", read="^$")
    own = amqp_bridge(rabbit, prefix=bridge.prefix, url=rabbit.url("flo", PASSWORD))
    async with opened(own, set_up=False) as bus:
        with pytest.raises(BusMisconfigured) as told:
            await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        text = f"; grant user 'flo' the right write on exchange '{bridge.prefix}.send'"
        assert str(told.value).endswith(text)
        Hands(bus)
        await until(lambda: "; grant user 'flo' the right read on queue" in caplog.text)


async def test_servers_that_are_away_are_logged_once_each(
    free_port: int, rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Two reasons that took turns, such as those of two servers, filled the log."""
    caplog.set_level(logging.DEBUG, "wsgateway.bridges")
    url = f"amqp://127.0.0.1:{free_port},localhost:{free_port}"
    async with opened(amqp_bridge(rabbit, url=url), set_up=False):
        await until(lambda: len(caplog.records) >= 4)
    lines = [record.levelname for record in caplog.records if record.name == "wsgateway.bridges"]
    assert lines[:4] == ["WARNING", "WARNING", "DEBUG", "DEBUG"]


async def test_who_is_refused_is_told_why_and_no_password_is_shown(
    rabbit: RabbitServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rabbit.add_user("cas", PASSWORD)
    wrong = PASSWORD + "!"
    where = f"127.0.0.1:{rabbit.port}"
    reasons = {
        rabbit.url("cas", wrong): (
            f"RabbitMQ at {where} rejected the login of user 'cas'; correct 'username' and "
            "'password' of bridge 'warehouse'"
        ),
        rabbit.url("cas", PASSWORD, vhost="none"): (
            f"RabbitMQ at {where} does not let user 'cas' use virtual host 'none'; create it, "
            "grant the user rights there, or correct 'url' of bridge 'warehouse'"
        ),
    }
    rabbit.add_vhost("closed")
    reasons[rabbit.url("cas", PASSWORD, vhost="closed")] = "use virtual host 'closed'"
    secret = (PASSWORD, wrong, "p%40ss")
    for url, reason in reasons.items():
        bridge = amqp_bridge(rabbit, url=url)
        async with opened(bridge, set_up=False) as bus:
            produce = partial(bus.produce, "orders", "ann", b"", {})
            for attempt in (bus.ready, bus.set_up, produce):
                assert reason in await told_without(secret, attempt, BusMisconfigured)
            assert PASSWORD not in repr(bridge) + repr(bus)
        assert reason in caplog.text
    assert not [text for text in secret if text in caplog.text]


async def test_no_payload_is_logged_and_an_outage_once(
    rabbit: RabbitServer, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """aiormq logged all that it sent if the root's level was DEBUG, and each try as an error."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "wsgateway.bridges")
    bridge = amqp_bridge(rabbit)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.read()
        await bus.produce("orders", "ann", b"MARKED-PAYLOAD", {"Ws-Id": "1"})
        await until(lambda: service.received)
    assert "MARKED-PAYLOAD" not in caplog.text
    away = amqp_bridge(rabbit, url=f"amqp://127.0.0.1:{free_port}")
    caplog.clear()
    async with opened(away, set_up=False):
        await until(lambda: len(caplog.records) >= 3)
    lines = [(record.name, record.levelname) for record in caplog.records]
    again = ("wsgateway.bridges", "DEBUG")
    assert [each for each in lines if each != again] == [("wsgateway.bridges", "WARNING")]


async def test_tls_with_an_authority_and_a_client_certificate(rabbit: RabbitServer) -> None:
    cert, key = rabbit.client_certificate()
    options = {"url": rabbit.url(tls=True), "ca": rabbit.ca, "cert": cert, "key": key}
    bridge = amqp_bridge(rabbit, **options)
    async with opened(bridge) as bus, service_side(rabbit, bridge) as service:
        await service.read()
        await bus.produce("orders", "ann", b"1", {"Ws-Id": "1"})
        await until(lambda: service.received)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "self-signed certificate in certificate chain; set 'ca' of bridge 'warehouse' to"),
        ({"ca": "/nowhere/ca.pem"}, "cannot load the certificate files of bridge 'warehouse'"),
        ({"port": "plain"}, "check that 'url' of bridge 'warehouse' names a port for TLS"),
    ],
)
async def test_what_is_wrong_with_tls_is_said(
    rabbit: RabbitServer, change: dict[str, str], reason: str
) -> None:
    change = dict(change)
    url = rabbit.url(tls=True)
    if change.pop("port", None):
        url = url.replace(str(rabbit.tls_port), str(rabbit.port))
        change["ca"] = rabbit.ca
    async with opened(amqp_bridge(rabbit, url=url, **change), set_up=False) as bus:
        with pytest.raises(BusMisconfigured) as refused:
            await bus.ready()
        assert reason in str(refused.value)


async def test_a_server_that_is_away_costs_no_caller_more_than_its_patience(
    free_port: int, rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CONFIRM_TIMEOUT", 0.2)
    bridge = amqp_bridge(rabbit, url=f"amqp://127.0.0.1:{free_port}")
    begun = time.monotonic()
    async with opened(bridge, set_up=False) as bus:
        for attempt in (bus.produce("orders", "ann", b"", {}), bus.set_up()):
            with pytest.raises(BusUnavailable, match=f"RabbitMQ at 127.0.0.1:{free_port}"):
                await attempt
        assert not bus.connected
    assert time.monotonic() - begun < 8


async def test_a_server_that_does_not_answer_is_told(
    rabbit: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        server = Server(*deaf.getsockname())
        with pytest.raises(BusUnavailable) as error:
            await AmqpBus(amqp_bridge(rabbit, url=f"amqp://{server}")).set_up()
    assert str(error.value).startswith(f"cannot reach RabbitMQ at {server}: no answer within 0.2 s")


async def test_closing_ends_a_wait_for_a_server_that_is_away(
    free_port: int, rabbit: RabbitServer
) -> None:
    bridge = amqp_bridge(rabbit, url=f"amqp://127.0.0.1:{free_port}")
    async with opened(bridge, set_up=False) as bus:
        waiting = asyncio.create_task(bus.ready())
        with pytest.raises(BusUnavailable, match=r"^cannot reach RabbitMQ at 127\.0\.0\.1"):
            await bus.produce("orders", "ann", b"", {})
        assert not waiting.done()
        await bus.close()
        with pytest.raises(BusUnavailable, match="closing"):
            await waiting


async def test_a_refused_login_is_told_although_another_server_is_away(
    free_port: int, rabbit: RabbitServer
) -> None:
    """Only the last server's error was told: it cannot be reached."""
    url = f"amqp://guest:wrong@127.0.0.1:{rabbit.port},127.0.0.1:{free_port}"
    with pytest.raises(BusMisconfigured, match="rejected the login of user 'guest'") as refused:
        await AmqpBus(amqp_bridge(rabbit, url=url)).set_up()
    assert str(refused.value).endswith("'guest' may log in only from RabbitMQ's own machine")


async def test_another_server_of_the_cluster_is_tried(free_port: int, rabbit: RabbitServer) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{free_port},127.0.0.1:{rabbit.port}"
    async with opened(amqp_bridge(rabbit, url=url)) as bus:
        await until(lambda: bus.connected)
