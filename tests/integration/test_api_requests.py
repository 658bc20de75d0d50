"""What the server API asks of every request: a key, a right, a body that it can read."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.util
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.test import AsyncClient, Client, RequestFactory
from django.utils import timezone
from django.views.debug import ExceptionReporter

from tests.integration.backends import (
    HELLO,
    JSON,
    ROOT,
    Caller,
    api_memory,
    caller,
    problem,
    stored,
)
from wsgateway import counters
from wsgateway.api import admission, keys
from wsgateway.api.site import api
from wsgateway.broker.memory import MemoryBroker
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.models import ApiKey

__all__ = ["api_memory", "caller"]  # fixtures

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.api_site.urls"),
    pytest.mark.usefixtures("api_memory"),
]


@pytest.mark.parametrize("operation", ["publish", "publish-many", "disconnect", "revoke"])
def test_body_with_far_too_many_members_has_one_error(caller: Caller, operation: str) -> None:
    """Each had an error of its own: 2 MB held up every socket of the process for 5 seconds."""
    junk = {f"member{number}": 0 for number in range(1000)}
    body = {"messages": [junk]} if operation == "publish-many" else junk
    answer = caller.post(operation, body).json()
    [error] = (answer["results"][0]["problem"] if "results" in answer else answer)["errors"]
    assert error["detail"].startswith("1000 members; there are only service, ")


class TestBody:
    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b"{", "at line 1"),
            (b"\xff", "UTF-8"),
            (b"[" * 100_000, "nested too deeply"),
            (b'{"a": NaN}', "NaN"),
            (b'{"text": "a", "text": "b"}', "given twice"),
            (b'{"text": "\\ud800"}', "not JSON in UTF-8"),
            (b'{"ttl": 1' + b"0" * 5000 + b"}", "not JSON"),
        ],
    )
    def test_body_that_is_not_json(self, caller: Caller, body: bytes, text: str) -> None:
        assert text in problem(caller.post("publish", body), 400, "unreadable")["detail"]

    @pytest.mark.parametrize("body", [[], [HELLO], "text", 1, None, True])
    def test_body_that_is_no_object(self, caller: Caller, body: Any) -> None:
        problem(caller.post("publish", body), 422, "invalid")

    @pytest.mark.parametrize(
        "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
    )
    def test_only_json_is_accepted(self, caller: Caller, kind: str) -> None:
        """Forms are what a foreign page can have a browser send."""
        response = caller.client.post(
            f"{ROOT}publish", json.dumps(HELLO), content_type=kind, headers=caller.headers
        )
        problem(response, 415, "not-json")
        assert stored() == []

    def test_body_of_10_mb_is_refused_before_it_is_read(self, caller: Caller) -> None:
        body = b'{"text": "' + b"x" * 10_000_000 + b'"}'
        document = problem(caller.post("publish", body), 413, "too-large")
        assert "exceeds DATA_UPLOAD_MAX_MEMORY_SIZE (2621440 bytes)" in document["detail"]

    def test_body_of_unknown_length_is_refused(self, caller: Caller) -> None:
        """One in chunks could be of any size; the test client gives an empty one no length."""
        problem(caller.post("publish", b""), 411, "length-required")


def last_use(caller: Caller) -> dt.datetime:
    caller.row.refresh_from_db()
    assert caller.row.last_used_at is not None
    return caller.row.last_used_at


class TestKeys:
    @pytest.mark.parametrize(
        "header",
        [
            "",
            "Bearer",
            "Bearer wsg_",
            "Basic {key}",
            "{key}",
            "Bearer {key}x",
            "Bearer {prefix}{wrong}",
            "Bearer wsg_000000000000_{wrong}",
        ],
    )
    def test_without_a_key_nothing_happens(self, caller: Caller, header: str) -> None:
        prefix = caller.key[: -len("x" * 43)]
        value = header.format(key=caller.key, prefix=prefix, wrong="x" * 43)
        caller.headers = {"Authorization": value} if value else {}
        response = caller.post("publish", b"not even read")
        problem(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"].startswith("Bearer")

    def test_error_report_does_not_show_the_key(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Django mails it to the admins, with the local variables of each frame."""

        def fail(*arguments: Any, **options: Any) -> None:
            raise OperationalError("the database is away")

        monkeypatch.setattr(ApiKey.objects, "filter", fail)
        with pytest.raises(OperationalError) as caught:
            asyncio.run(keys.find(caller.key))
        ours: Any = caught.tb  # from our code on: the test's own frame holds the key as well
        while not ours.tb_frame.f_code.co_filename.endswith("api/keys.py"):
            ours = ours.tb_next
        error = caught.value.with_traceback(ours)
        report = ExceptionReporter(RequestFactory().get("/"), type(error), error, ours)
        text = report.get_traceback_html()
        assert "the database is away" in text
        assert caller.key[-43:] not in text

    def test_cookies_do_not_count_and_so_csrf_does_not_apply(self, caller: Caller) -> None:
        """A page elsewhere can have a browser send cookies, but not the header with the key."""
        caller.client = Client(enforce_csrf_checks=True)
        caller.client.force_login(User.objects.create_superuser("root"))
        for _ in ("no token is asked for", "and none is set"):
            assert caller.post("publish", HELLO).status_code == 200
        assert not caller.client.cookies.keys() & {"csrftoken"}
        caller.headers = {}
        problem(caller.post("publish", HELLO), 401, "unauthorized")

    def test_secret_is_stored_as_a_hash(self, caller: Caller) -> None:
        secret = caller.key.rpartition(f"{caller.row.prefix}_")[2]
        row = ApiKey.objects.values().get()
        assert secret not in str(row)
        assert caller.row.prefix == row["prefix"]

    def test_revoked_key_is_refused_at_once(self, caller: Caller) -> None:
        assert caller.post("publish", HELLO).status_code == 200
        assert keys.revoke([caller.row]) == 1
        problem(caller.post("publish", HELLO), 401, "unauthorized")
        assert keys.revoke([caller.row]) == 0

    def test_last_use_is_written_once_a_minute(
        self, caller: Caller, django_assert_num_queries: Any
    ) -> None:
        assert caller.row.last_used_at is None
        with django_assert_num_queries(2):
            caller.post("publish", HELLO)
        assert timezone.now() - last_use(caller) < dt.timedelta(seconds=50)
        with django_assert_num_queries(1):
            caller.post("publish", HELLO)
        old = timezone.now() - dt.timedelta(seconds=61)
        ApiKey.objects.update(last_used_at=old)
        caller.post("publish", HELLO)
        assert last_use(caller) > old

    def test_rate_is_limited_by_key(self, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr(admission, "rates", admission.Rates(lambda: now))
        slow = Caller(rate=0.5)
        allowed = int(admission.BURST * 0.5)
        assert [slow.post("publish", HELLO).status_code for _ in range(allowed)] == [200] * allowed
        response = slow.post("publish", HELLO)
        assert "0.5 times per second" in problem(response, 429, "too-many-requests")["detail"]
        assert response.headers["Retry-After"] == "2"
        assert caller.post("publish", HELLO).status_code == 200
        now += 2
        assert slow.post("publish", HELLO).status_code == 200
        problem(slow.post("publish", HELLO), 429, "too-many-requests")

    def test_works_beside_a_project_that_wants_logins_and_transactions(
        self, caller: Caller, settings: Any
    ) -> None:
        """Django refuses asynchronous views in a transaction, and redirects who has no session."""
        login = "django.contrib.auth.middleware.LoginRequiredMiddleware"
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, login]
        settings.DATABASES["default"]["ATOMIC_REQUESTS"] = True
        try:
            assert caller.post("publish", HELLO).status_code == 200
            assert caller.client.get(f"{ROOT}openapi.json").status_code == 200
            problem(caller.client.get(f"{ROOT}x"), 404, "not-found")
        finally:
            settings.DATABASES["default"]["ATOMIC_REQUESTS"] = False


Call = Callable[[Caller, str, str], Any]
OPERATIONS: dict[str, tuple[str, Call]] = {
    "publish": (
        "publish",
        lambda caller, users, _: caller.post("publish", {**HELLO, "service": users}),
    ),
    "user_history": (
        "history",
        lambda caller, users, _: caller.get("history/user", service=users, user="ann"),
    ),
    "topic_history": (
        "history",
        lambda caller, _, rooms: caller.get("history/topic", service=rooms, topic="42"),
    ),
    "online": ("presence", lambda caller, users, _: caller.get("online", service=users)),
    "connections": (
        "presence",
        lambda caller, users, _: caller.get("connections", service=users, user="ann"),
    ),
    "readers": (
        "presence",
        lambda caller, _, rooms: caller.get("readers", service=rooms, topic="42"),
    ),
    "disconnect": (
        "disconnect",
        lambda caller, users, _: caller.post("disconnect", {"service": users, "user": "ann"}),
    ),
    "revoke": (
        "revoke",
        lambda caller, _, rooms: caller.post("revoke", {"service": rooms, "topic": "42"}),
    ),
    "recheck": (
        "revoke",
        lambda caller, _, rooms: caller.post("recheck", {"service": rooms, "topic": None}),
    ),
}
"""For each operation that names a service, its action, and a call of it in a service."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_authorisation_matrix(operation: str) -> None:
    """A key may do what its actions say, in its services, and nothing else anywhere."""
    action, call = OPERATIONS[operation]
    others = [other for other in keys.ACTIONS if other != action]
    for services, actions, allowed in (
        (["orders", "room"], [action], True),
        (["*"], [action], True),
        (["service1", "pointer"], [*keys.ACTIONS], False),
        (["orders", "room"], others, False),
        (["*"], others, False),
    ):
        response = call(Caller(*actions, services=tuple(services)), "orders", "room")
        if allowed:
            assert response.status_code in (200, 204), response.content
        else:
            problem(response, 403, "forbidden")


def test_matrix_has_every_operation() -> None:
    document = api.get_openapi_schema(path_prefix=ROOT)
    found = {each["operationId"] for path in document["paths"].values() for each in path.values()}
    assert found == {*OPERATIONS, "publish_many", "stats"}  # these two have tests of their own


def test_right_is_checked_before_the_service_is_looked_for() -> None:
    """A key learns nothing of services that it has no right in."""
    mine = Caller(services=("orders",))
    for service in ("service1", "nowhere"):
        problem(mine.post("publish", {**HELLO, "service": service}), 403, "forbidden")


def test_urls_and_methods_that_are_not_there(caller: Caller) -> None:
    response = caller.get("publish")
    assert "POST, not GET" in problem(response, 405, "method-not-allowed")["detail"]
    assert response.headers["Allow"] == "POST"
    caller.client = Client(enforce_csrf_checks=True)  # a 403 about CSRF explained nothing
    for path in ("", "publish/", "nothing", "../v2/publish"):
        answer = problem(caller.client.post(f"{ROOT}{path}"), 404, "not-found")
        assert "v1/openapi.json lists them all" in answer["detail"]


async def test_serves_below_asgi(transactional_db: None) -> None:
    """Where the process has an event loop, its connection is used."""
    caller = await sync_to_async(Caller)()
    response = await AsyncClient().post(
        f"{ROOT}publish", HELLO, content_type=JSON, headers=caller.headers
    )
    assert response.json() == {"offset": 1, "duplicate": False}


def test_requests_are_counted_by_result(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    counters.reset()
    caller.post("publish", HELLO)
    caller.post("publish", {**HELLO, "service": "nowhere"})
    caller.get("publish")

    async def fail(*arguments: Any, **options: Any) -> None:
        raise BrokerUnavailable("no answer")

    monkeypatch.setattr(MemoryBroker, "publish", fail)
    caller.post("publish", HELLO)
    assert counters.api.requests == {"ok": 1, "refused": 2, "failed": 1}


@pytest.mark.parametrize("debug", [False, True])
def test_fault_of_ours_is_left_to_django(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, settings: Any, debug: bool
) -> None:
    """Django logs it and tells Sentry; as a problem document, it would look like the caller's."""

    async def fail(*arguments: Any) -> None:
        raise TypeError("a bug")

    settings.DEBUG = debug
    monkeypatch.setattr(keys, "note_use", fail)
    with pytest.raises(TypeError, match="a bug"):
        caller.post("publish", HELLO)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wsgateway.api.urls", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install 'wsgateway\[api\]'"):
        importlib.import_module("wsgateway.api.urls")
