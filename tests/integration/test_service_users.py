"""Whose message is it? The resolver that named the sender finds the Django user."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ObjectDoesNotExist

from tests.unit.test_identity import scope
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.messages import RESOLVER_HEADER
from wsgateway.broker.work import Job
from wsgateway.identity import Identity, SessionIdentity, resolve_identity
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.message import Message

pytestmark = pytest.mark.django_db

HERE = __name__
SESSION = "wsgateway.identity.SessionIdentity"
TOKEN = "wsgateway.identity.TokenIdentity"


class ByPrimaryKey(SessionIdentity):
    """As in the documents."""

    def user_name(self, user: Any) -> str:
        return str(user.pk)

    def get_user(self, name: str) -> Any:
        return get_user_model().objects.get(pk=name)


class NamesOnly(SessionIdentity):
    def user_name(self, user: Any) -> str:
        return str(user.pk)


class ByApiKey:
    async def resolve(self, scope: Any) -> Identity | None:
        return Identity("orders", "robot")


KEYS, NAMES_ONLY, ROBOT = f"{HERE}.ByPrimaryKey", f"{HERE}.NamesOnly", f"{HERE}.ByApiKey"


def message(user: str, resolver: str | None) -> Message:
    headers = {} if resolver is None else {RESOLVER_HEADER: resolver}
    job = Job(Inbox("orders", user), b"", headers, sequence=1, id="1")
    return Message(job, MemoryBroker())


@pytest.fixture
def ann() -> Any:
    """A user, and others whose names are ann's key, and a robot's name."""
    users = get_user_model().objects
    ann = users.create_user("ann")
    users.create_user(str(ann.pk))
    users.create_user("robot")
    return ann


@pytest.mark.parametrize(
    ("listed", "resolver"),
    [
        ([KEYS], KEYS),
        ([KEYS], None),
        ([SESSION, KEYS], KEYS),
        ([KEYS, TOKEN], TOKEN),
        ([KEYS, TOKEN], None),
        ([TOKEN, ROBOT, KEYS], TOKEN),
    ],
)
def test_user_is_found_by_the_key_that_named_them(
    settings: Any, ann: Any, listed: list[str], resolver: str | None
) -> None:
    """The user whose *name* is that key was returned."""
    settings.WSGATEWAY_IDENTITY = listed
    assert message(str(ann.pk), resolver).user.username == "ann"


@pytest.mark.parametrize(
    ("listed", "resolver"),
    [([SESSION], SESSION), ([KEYS, SESSION], SESSION), ([TOKEN], TOKEN), ([SESSION], None)],
)
def test_user_is_found_by_the_username_that_named_them(
    settings: Any, ann: Any, listed: list[str], resolver: str | None
) -> None:
    settings.WSGATEWAY_IDENTITY = listed
    assert message("ann", resolver).user.pk == ann.pk


@pytest.mark.parametrize(
    ("listed", "resolver", "user", "text"),
    [
        ([ROBOT, SESSION], ROBOT, "robot", "has no method get_user"),
        ([SESSION], KEYS, "ann", "not in WSGATEWAY_IDENTITY"),
        ([SESSION], "os.system", "ann", "not in WSGATEWAY_IDENTITY"),
        ([SESSION, KEYS], None, "ann", "2 resolvers of WSGATEWAY_IDENTITY find users"),
        ([NAMES_ONLY], NAMES_ONLY, "{pk}", "user_name gives another name; override both"),
        ([KEYS], KEYS, "ann", "ByPrimaryKey cannot have named 'ann'"),
        ([KEYS], KEYS, "0", "matching query does not exist"),
    ],
)
def test_nobody_is_found_where_it_cannot_be_said_who_it_is(
    settings: Any, ann: Any, listed: list[str], resolver: str | None, user: str, text: str
) -> None:
    settings.WSGATEWAY_IDENTITY = listed
    with pytest.raises(ObjectDoesNotExist, match=text):
        _ = message(user.format(pk=ann.pk), resolver).user.pk


@pytest.mark.django_db(transaction=True)
async def test_asynchronous_handlers_find_the_same_user(settings: Any) -> None:
    settings.WSGATEWAY_IDENTITY = [KEYS]
    users = get_user_model().objects
    ann = await users.acreate(username="ann")
    await users.acreate(username=str(ann.pk))
    assert (await message(str(ann.pk), KEYS).auser()).username == "ann"


async def test_identity_says_which_resolver_made_it(settings: Any) -> None:
    settings.WSGATEWAY_IDENTITY = [TOKEN, ROBOT]
    assert (await resolve_identity(scope())).resolver == ROBOT
