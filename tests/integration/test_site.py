"""The site's pages, with the memory broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.test import AsyncClient, Client

from project.demo.users import create_demo_users
from tests.support import ROOT
from wsgateway import health
from wsgateway.broker import runtime
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.identity import Identity, TokenIdentity
from wsgateway.protocol.subjects import Inbox

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh_brokers() -> Any:
    runtime.reset()
    yield
    runtime.reset()


def log_in(name: str, **fields: Any) -> Any:
    return get_user_model().objects.create_user(name, password=name, **fields)


def test_demo_sends_strangers_to_the_login_page(client: Client) -> None:
    assert client.get("/demo/").headers["location"] == "/login/?next=/demo/"


@pytest.mark.parametrize("debug", [False, True])
def test_start_page_leads_to_what_the_visitor_may_see(
    client: Client, settings: Any, debug: bool
) -> None:
    """It had a log-in button and nothing else."""
    settings.DEBUG = debug
    page = client.get("/").content.decode()
    assert 'src="/static/demo/overview.svg"' in page
    assert 'href="/demo/"' in page
    assert ('href="/admin/"' in page, "admin</code>" in page) == (debug, debug)


def test_drawing_of_the_start_page_is_that_of_the_readme() -> None:
    ours = ROOT / "project/demo/static/demo/overview.svg"
    assert ours.read_bytes() == (ROOT / "docs/images/overview.svg").read_bytes()


def test_documents_are_shown_during_development_once_they_are_built(
    client: Client, settings: Any, tmp_path: Path
) -> None:
    settings.DEBUG = True
    settings.BASE_DIR = tmp_path
    assert "make site" in client.get("/").content.decode()
    assert client.get("/documents/").status_code == 404
    (tmp_path / "build" / "site" / "how-to").mkdir(parents=True)
    (tmp_path / "secret.html").write_text("secret")
    for name in ("index.html", "how-to/index.html"):
        (tmp_path / "build" / "site" / name).write_text(f"<p>{name}</p>")
    assert 'href="/documents/"' in client.get("/").content.decode()
    assert client.get("/documents/").content == b"<p>index.html</p>"
    assert client.get("/documents/how-to/").content == b"<p>how-to/index.html</p>"
    for name in ("nothing.html", "../../secret.html", "%2e%2e/%2e%2e/secret.html"):
        assert client.get(f"/documents/{name}").status_code == 404
    settings.DEBUG = False
    assert client.get("/documents/").status_code == 404


@pytest.mark.parametrize("path", ["/", "/login/", "/admin/login/", "/favicon.ico"])
def test_every_page_has_the_icon(client: Client, path: str) -> None:
    answer = client.get(path)
    if path == "/favicon.ico":
        assert answer.headers["location"] == "/static/demo/favicon.svg"
    else:
        link = '<link rel="icon" type="image/svg+xml" href="/static/demo/favicon.svg">'
        assert link in answer.content.decode()


def test_demo_users_log_in_and_see_their_inbox(client: Client, settings: Any) -> None:
    settings.DEBUG = True
    assert create_demo_users() == ["ann", "bob", "admin"]
    assert create_demo_users() == ["ann", "bob", "admin"]
    answer = client.post("/login/", {"username": "ann", "password": "ann"}, follow=True)
    page = answer.content.decode()
    assert answer.redirect_chain == [("/demo/", 302)]
    assert 'data-path="/ws/demo/ann/"' in page
    assert 'data-path="/ws/demo/bob/" data-token="/demo/token/"' in page
    assert 'aria-live="polite"' in page
    assert 'action="/demo/publish/"' in page
    assert ">Admin<" not in page


def test_wrong_password_says_so(client: Client) -> None:
    page = client.post("/login/", {"username": "ann", "password": "wrong"}).content.decode()
    assert 'role="alert"' in page
    assert 'value="ann"' in page


def test_name_with_special_characters_stays_one_path_segment(client: Client) -> None:
    client.force_login(log_in('a/b?c"<d>'))
    assert 'data-path="/ws/demo/a%2Fb%3Fc%22%3Cd%3E/"' in client.get("/demo/").content.decode()


def test_admin_shows_users(client: Client) -> None:
    client.force_login(log_in("admin", is_staff=True, is_superuser=True))
    assert "admin" in client.get("/admin/auth/user/").content.decode()
    assert ">Admin<" in client.get("/demo/").content.decode()


@pytest.mark.parametrize("path", ["/", "/login/", "/admin/login/", "/healthz"])
def test_pages_allow_no_foreign_and_no_inline_code(client: Client, path: str) -> None:
    answer = client.get(path)
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert b"style=" not in answer.content


@pytest.mark.parametrize("debug", [False, True])
def test_error_pages_have_the_policy_except_for_those_of_debug(
    client: Client, settings: Any, debug: bool
) -> None:
    settings.DEBUG = debug
    answer = client.get("/nowhere/")
    assert answer.status_code == 404
    assert ("Content-Security-Policy" in answer.headers) == (not debug)


def test_second_user_of_the_page_gets_a_token_that_is_good_for_nobody_else(
    client: Client, settings: Any
) -> None:
    settings.DEBUG = True
    client.force_login(log_in("ann"))
    token = client.post("/demo/token/").json()["token"]
    scope = {"query_string": f"token={token}".encode(), "headers": []}
    identity = async_to_sync(TokenIdentity().resolve)(scope)
    assert identity == Identity("demo", "bob")
    assert client.get("/demo/token/").status_code == 405


@pytest.mark.parametrize(("name", "debug"), [("ann", False), ("carl", True), (None, True)])
def test_nobody_else_gets_a_second_user(
    client: Client, settings: Any, name: str | None, debug: bool
) -> None:
    settings.DEBUG = debug
    if name:
        client.force_login(log_in(name, is_staff=True, is_superuser=True))
    answer = client.post("/demo/token/")
    assert (answer.status_code, "token" in answer.json()) == (403, False)
    assert "data-token" not in client.get("/demo/").content.decode()


async def stored(user: str) -> Any:
    inbox = Inbox("demo", user)
    return await runtime.call(lambda broker: broker.inboxes.read_after(inbox, 0, limit=10))


@pytest.mark.django_db(transaction=True)
class TestPublish:
    @pytest.fixture
    async def client(self, settings: Any) -> AsyncClient:
        settings.DEBUG = True
        client = AsyncClient()
        await client.aforce_login(await get_user_model().objects.acreate_user("ann"))
        return client

    async def test_form_stores_a_message(self, client: AsyncClient) -> None:
        data = {"user": "bob", "text": "hi"}
        answer = await client.post("/demo/publish/", data, headers={"accept": "application/json"})
        offset = answer.json()["offset"]
        assert answer.json() == {"user": "bob", "offset": offset}
        answer = await client.post("/demo/publish/", data)
        assert (answer.status_code, answer.headers["location"]) == (302, "/demo/")
        batch = await stored("bob")
        assert [(m.payload, m.kind) for m in batch.messages] == [(b"hi", "text")] * 2
        assert batch.messages[0].offset == offset

    @pytest.mark.parametrize("data", [{}, {"user": "bob"}, {"user": "x" * 300, "text": "hi"}])
    async def test_incomplete_form_is_refused(
        self, client: AsyncClient, data: dict[str, str]
    ) -> None:
        assert (await client.post("/demo/publish/", data)).status_code == 400

    async def test_only_staff_publishes_in_production(
        self, client: AsyncClient, settings: Any
    ) -> None:
        settings.DEBUG = False
        assert (await client.post("/demo/publish/", {"user": "b", "text": "x"})).status_code == 403

    async def test_history_is_that_of_the_page_s_own_inboxes(
        self, client: AsyncClient, settings: Any
    ) -> None:
        for user in ("ann", "bob", "carol"):
            for text in ("old", "new"):
                await client.post("/demo/publish/", {"user": user, "text": f"{text} {user}"})
        newest = (await stored("bob")).messages[-1].offset

        async def texts(user: str, before: int | str) -> list[str] | int:
            answer = await client.get("/demo/history/", {"user": user, "before": before})
            if answer.status_code != 200:
                return int(answer.status_code)
            return [message["text"] for message in answer.json()["messages"]]

        assert await texts("bob", newest + 1) == ["old bob", "new bob"]
        assert await texts("bob", newest) == ["old bob"]
        assert await texts("ann", 10**15) == ["old ann", "new ann"]
        assert await texts("ann", -1) == []
        assert await texts("ann", "") == 400
        assert await texts("carol", newest) == 403
        settings.DEBUG = False  # nobody sees another one's inbox
        assert await texts("bob", newest) == 403

    async def test_strangers_may_not_publish(self) -> None:
        answer = await AsyncClient().post("/demo/publish/", {"user": "b", "text": "x"})
        assert answer.status_code == 403

    async def test_same_id_is_stored_once(self, client: AsyncClient) -> None:
        data = {"user": "carol", "text": "hi", "id": "1-2"}
        headers = {"accept": "application/json"}
        offsets = [
            (await client.post("/demo/publish/", data, headers=headers)).json()["offset"]
            for _ in range(2)
        ]
        assert offsets[0] == offsets[1]
        batch = await stored("carol")
        assert [message.offset for message in batch.messages] == offsets[:1]

    async def test_form_needs_its_token(self, settings: Any) -> None:
        strict = AsyncClient(enforce_csrf_checks=True)
        assert (await strict.post("/demo/publish/", {"user": "b", "text": "x"})).status_code == 403


async def test_health(async_client: AsyncClient) -> None:
    assert (await async_client.get("/healthz")).json() == {"alive": True}
    assert (await async_client.get("/readyz")).json() == {"ready": True}
    assert (await async_client.post("/readyz")).status_code == 405
    await runtime.current().broker.close()


@pytest.fixture(autouse=True)
def ready_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "was_ready", True)


async def test_not_ready_without_servers(
    async_client: AsyncClient, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.PUBSUB_BROKER = "nats"
    answer = await async_client.get("/readyz")
    problem = {"ready": False, "not_ready": {"broker": "not configured"}}
    assert (answer.status_code, answer.json()) == (503, problem)
    assert "set NATS_BROKER_URL" in caplog.text


async def test_not_ready_while_the_broker_is_away(
    async_client: AsyncClient, settings: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason was lost with the probe's own time-out, and each probe logged a warning."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    for _ in range(2):
        assert (await async_client.get("/readyz")).status_code == 503
    [said] = [r.getMessage() for r in caplog.records if "not ready" in r.getMessage()]
    assert f"cannot reach NATS at 127.0.0.1:{free_port}: connection refused" in said
    with pytest.raises(BrokerUnavailable):
        await runtime.current().broker.wait_ready(0.01)
    await runtime.current().broker.close()
