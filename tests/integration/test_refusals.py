"""Refused sockets: one rule for raw and v1 sockets, on every server, and a log that helps."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed

from tests.integration.test_servers import APPLICATIONS, V1
from tests.support import SERVERS, Gateway, until
from tests.troubleshooting import Symptom
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.client import Client, GatewayError
from wsgateway.identity import make_token

Factory = Callable[..., Gateway]
COOKIES = {"Cookie": "service=orders; user=ann"}


class Refused(NamedTuple):
    """How a refused socket ends, and what the log says of it.

    Attributes:
        path: Where the client connects; TOKEN stands for ann's.
        headers: What it sends.
        codes: Close codes of a raw and a v1 client.
        reason: What the client reads.
        cure: What only the log says.
        origin: The page behind it.
        cause: What the log says instead of the reason.
    """

    path: str
    headers: dict[str, str]
    codes: tuple[int, int]
    reason: str
    cure: str
    origin: str | None = None
    cause: str = ""

    async def meet(self, gateway: Gateway, token: str, **options: Any) -> tuple[int, str]:
        """Connect so, and return the close frame's code and reason."""
        if self.origin:
            options["origin"] = self.origin
        path = self.path.replace("TOKEN", token)
        return await end_of(gateway, path, additional_headers=self.headers, **options)


REFUSED = {
    "not logged in": Refused(
        "/ws/orders/",
        {},
        (1008, 4501),
        "not logged in; log in first, or send a token",
        "WSGATEWAY_IDENTITY lists wsgateway.identity.TokenIdentity, ",
    ),
    "not logged in at the path of another consumer": Refused(
        "/ws/chat/lobby/",
        {},
        (1008, 4501),
        "not logged in; log in first, or send a token",
        "If this is your own consumer's URL, list its route before the gateway's",
        cause="service 'chat' is not in WSGATEWAY_SERVICES. ",
    ),
    "cut token": Refused(
        "/ws/orders/?token=TOKENx", {}, (1008, 4501), "the token is not valid", "SECRET_KEY"
    ),
    "another user's name": Refused(
        "/ws/orders/bob/?token=TOKEN",
        {},
        (1008, 4503),
        "the path names another user",
        "Connect as that user, or without a user in the path",
    ),
    "another service": Refused(
        "/ws/demo/?token=TOKEN",
        {},
        (1008, 4503),
        "the path names another service",
        "Correct the path, or make a token or cookie for that service",
    ),
    "unknown service": Refused(
        "/ws/chat/lobby/",
        {"Cookie": "user=ann"},
        (1008, 4503),
        "service 'chat' is not in WSGATEWAY_SERVICES",
        "Add it there, or correct the client's path. If this is your own consumer's URL, list its "
        "route before the gateway's",
    ),
    "service of topics": Refused(
        "/ws/demo-room/",
        {"Cookie": "user=ann"},
        (1008, 4503),
        "service 'demo-room' has topics, not users",
        "Connect to a service of users, and subscribe to the topics on that socket",
    ),
    "not a name": Refused(
        "/ws/orders/",
        {"Cookie": f"user={'x' * 256}"},
        (1008, 4500),
        "user is not a usable name: name of 256 bytes exceeds 255 bytes: ",
        "",
    ),
    "two users": Refused(
        "/ws/orders/",
        {"Cookie": "user=ann; user=bob"},
        (1008, 4500),
        "cookie 'user' has 2 different values; send one",
        "",
    ),
    "too many sockets": Refused(
        "/ws/orders/",
        COOKIES,
        (1008, 4504),
        "the user already has the maximum number of connections (1)",
        "raise WSGATEWAY_MAX_CONNECTIONS_PER_USER",
    ),
    "another page": Refused(
        "/ws/orders/",
        COOKIES,
        (1008, 4503),
        "origin 'https://evil.example' may not connect",
        "WSGATEWAY_ALLOWED_ORIGINS",
        origin="https://evil.example",
    ),
    "unknown path": Refused(
        "/nowhere",
        COOKIES,
        (1008, 4506),
        "unknown path; is the slash at its end missing?",
        "Add a route to the URLRouter in asgi.py, or correct the client's path",
    ),
}


@pytest.fixture
def token(settings: Any) -> str:
    """A token of ann's for the service orders, which gateways in tests take."""
    settings.SECRET_KEY = "tests"
    return make_token("orders", "ann")


async def end_of(gateway: Gateway, path: str, **options: Any) -> tuple[int, str]:
    """Return the close frame's code and reason."""
    options.setdefault("additional_headers", {})
    async with gateway.connect("", "", path=path, **options) as ws:
        with pytest.raises(ConnectionClosed) as ended:
            await asyncio.wait_for(ws.recv(), 10)
    assert ended.value.rcvd is not None, "cut without a close frame"
    return ended.value.rcvd.code, ended.value.rcvd.reason


@pytest.mark.parametrize("server", SERVERS)
async def test_refused_clients_learn_code_and_reason_and_the_log_names_the_cure(
    gateway_factory: Factory, token: str, server: str
) -> None:
    """A raw client got HTTP 403, which a browser cannot read, or 1008, as it came; most reasons
    were logged at INFO, which Django does not show."""
    gateway = gateway_factory(server, WSGATEWAY_MAX_CONNECTIONS_PER_USER="1")
    async with gateway.connect("orders", "ann"):
        for refused in REFUSED.values():
            raw = await refused.meet(gateway, token)
            v1 = await refused.meet(gateway, token, **V1)
            assert (raw[0], v1[0]) == refused.codes
            assert raw[1] == v1[1]
            assert raw[1].startswith(refused.reason)
            path = refused.path.partition("?")[0]
            for code in (f"1008 ({refused.codes[1]})", refused.codes[1]):
                want = f"WARNING wsgateway: refused a websocket at {path!r} with {code}: "
                want += refused.cause or refused.reason
                await until(lambda want=want: want in gateway.output, what=want)
                line = next(line for line in gateway.output.splitlines() if want in line)
                assert refused.cure in line
                own = "own consumer" in line
                assert own is ("WSGATEWAY_SERVICES" in line)  # and only then
    assert "Traceback" not in gateway.output
    assert token not in "".join(
        line for line in gateway.output.splitlines(True) if "wsgateway:" in line
    )


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_every_entry_point_of_a_project_refuses_with_a_code(
    gateway_factory: Factory, server: str, application: str
) -> None:
    gateway = gateway_factory(
        server,
        application=f"tests.asgi_apps:{application}",
        WSGATEWAY_IDENTITY="wsgateway.identity.CookieIdentity",
    )
    hidden = server == "daphne" and application == "unknown_middleware"
    code, reason = await end_of(gateway, "/ws/orders/")
    assert (code, reason.partition(";")[0]) == ((4501, "") if hidden else (1008, "not logged in"))
    want = f"with {'4501' if hidden else '1008 (4501)'}: not logged in;"
    await until(lambda: want in gateway.output, what=want)
    assert "Traceback" not in gateway.output


async def test_another_users_path_does_not_tell_whether_there_is_such_a_user(
    gateway: Gateway, token: str
) -> None:
    async with gateway.connect("orders", "bob"):
        ends = {
            await end_of(gateway, f"/ws/orders/{name}/?token={token}", **options)
            for name in ("bob", "nobody")
            for options in ({}, {"subprotocols": ["chat"]})
        }
    assert ends == {(1008, "the path names another user")}


async def test_service_that_exists_is_not_told_to_strangers(
    gateway_factory: Factory, token: str
) -> None:
    """The log may name the cause, a service that does not exist; the client may not learn it."""
    gateway = gateway_factory(DJANGO_SETTINGS_MODULE="tests.service_app.settings")
    async with gateway.connect("orders", "ann"):  # so the broker is connected
        assert len({await end_of(gateway, f"/ws/{name}/bob/") for name in ("orders", "chat")}) == 1
    ends = [await end_of(gateway, f"/ws/{name}/?token={token}", **V1) for name in ("demo", "chat")]
    assert ends == 2 * [(4503, "the path names another service")]
    want = "with 4503: service 'chat' does not exist. "
    await until(lambda: want in gateway.output, what=want)


async def test_flood_of_refused_clients_does_not_flood_the_log(gateway_factory: Factory) -> None:
    gateway = gateway_factory(DEBUG="0", ALLOWED_HOSTS="127.0.0.1")
    await asyncio.gather(*(end_of(gateway, "/ws/orders/") for _ in range(200)))
    assert gateway.output.count("refused a websocket") == 1


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_broker_that_is_away_costs_a_line_with_its_reason(
    gateway_factory: Factory, server: str
) -> None:
    """Each socket logged a line of its own while the broker was away."""
    gateway = gateway_factory(
        server,
        NATS_BROKER_URL=f"nats://127.0.0.1:{free_port()}",
        WSGATEWAY_BROKER_TIMEOUT="0.5",
    )
    clients = (end_of(gateway, "/ws/orders/", additional_headers=COOKIES) for _ in range(20))
    assert set(await asyncio.gather(*clients)) == {(1013, "broker unavailable")}
    assert len(re.findall(r"refused .* websocket.*\. Cannot reach NATS at", gateway.output)) == 1


@pytest.mark.parametrize("server", SERVERS)
async def test_client_that_vanishes_within_its_handshake_is_no_error(
    gateway_factory: Factory, server: str
) -> None:
    """On uvicorn with uvloop it was: "unable to perform operation; the handler is closed"."""
    gateway = gateway_factory(server)
    for number in range(120):
        path = ("/nowhere/", "/ws/orders/")[number % 2]
        cookie = ("", "Cookie: user=ann\r\n")[number // 2 % 2]
        protocol = ("", "Sec-WebSocket-Protocol: wsgateway.v1\r\n")[number // 4 % 2]
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            client.sendall(
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                f"Sec-WebSocket-Version: 13\r\n{cookie}{protocol}\r\n".encode()
            )
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    async with gateway.connect("orders", "ann") as ws:  # all of them have been served
        await (await ws.ping())
    gateway.stop()
    assert "Traceback" not in gateway.output
    assert "ERROR" not in gateway.output


@pytest.fixture(scope="module")
def make_once(
    nats_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Factory]:
    """Make a gateway, or return the one that was made with the same environment."""
    folder, made = tmp_path_factory.mktemp("gateways"), {}
    common = {"NATS_BROKER_URL": nats_server.url, "DATABASE_URL": f"sqlite:///{folder / 'db'}"}

    def make(**env: str) -> Gateway:
        key = tuple(sorted(env.items()))
        if key not in made:
            made[key] = Gateway(folder, {**common, "WSGATEWAY_PREFIX": "refusals", **env})
            made[key].start()
        return made[key]

    yield make
    for gateway in made.values():
        gateway.kill()


UNREAD = Refused("/ws/orders/?token=TOKEN", {}, (1008, 4501), "nothing reads the token", "")
UNDECLARED = Refused(
    "/ws/chat/lobby/", {"Cookie": "user=ann"}, (1008, 4503), "service 'chat' does not exist", ""
)


@pytest.mark.gateway
@pytest.mark.parametrize(
    ("refused", "env"),
    [
        pytest.param(
            REFUSED["not logged in"],
            {},
            marks=pytest.mark.troubleshooting(
                "refused a websocket at … with 1008 (4501): not logged in;"
            ),
        ),
        pytest.param(
            UNREAD,
            {"WSGATEWAY_IDENTITY": "wsgateway.identity.CookieIdentity"},
            marks=pytest.mark.troubleshooting("with 1008 (4501): nothing reads the token;"),
        ),
        pytest.param(
            REFUSED["cut token"],
            {},
            marks=pytest.mark.troubleshooting("with 1008 (4501): the token is not valid."),
        ),
        pytest.param(
            REFUSED["another user's name"],
            {},
            marks=pytest.mark.troubleshooting("with 1008 (4503): the path names another user."),
        ),
        pytest.param(
            REFUSED["unknown service"],
            {},
            marks=pytest.mark.troubleshooting(
                "with 1008 (4503): service … is not in WSGATEWAY_SERVICES."
            ),
        ),
        pytest.param(
            REFUSED["service of topics"],
            {},
            marks=pytest.mark.troubleshooting("with 1008 (4503): service … has topics, not users."),
        ),
        pytest.param(
            UNDECLARED,
            {"DJANGO_SETTINGS_MODULE": "tests.service_app.settings"},
            marks=pytest.mark.troubleshooting("with 1008 (4503): service … does not exist."),
        ),
        pytest.param(
            REFUSED["not logged in at the path of another consumer"],
            {},
            marks=pytest.mark.troubleshooting(
                "with … service … If this is your own consumer's URL, list its route before the "
                "gateway's"
            ),
        ),
        pytest.param(
            REFUSED["another page"],
            {},
            marks=pytest.mark.troubleshooting("with 1008 (4503): origin … may not connect."),
        ),
        pytest.param(
            REFUSED["too many sockets"],
            {"WSGATEWAY_MAX_CONNECTIONS_PER_USER": "1"},
            marks=pytest.mark.troubleshooting(
                "with 1008 (4504): the user already has the maximum number of connections (…)."
            ),
        ),
        pytest.param(
            REFUSED["unknown path"],
            {},
            marks=pytest.mark.troubleshooting("with 1008 (4506): unknown path;"),
        ),
    ],
)
async def test_row_of_the_troubleshooting_page(
    symptom: Symptom, make_once: Factory, token: str, refused: Refused, env: dict[str, str]
) -> None:
    gateway = make_once(**env)
    before = len(gateway.output)
    async with gateway.connect("orders", "ann"):
        await refused.meet(gateway, token)
    await until(lambda: symptom.is_in(gateway.output[before:]), what=symptom.text)


@pytest.mark.troubleshooting("refused with HTTP 403 before the gateway answered")
async def test_client_learns_that_the_gateway_did_not_refuse_it(
    symptom: Symptom, gateway_factory: Factory
) -> None:
    """The error said that the gateway closed the connection, with 4501."""
    gateway = gateway_factory(application="tests.asgi_apps:validated")
    client = Client(gateway.ws("/ws/orders/ann/"), additional_headers=COOKIES, proxy=None)
    with pytest.raises(GatewayError) as caught:
        await client.open()
    symptom.must_show_in(str(caught.value))
    assert "closed the connection" not in str(caught.value)
