"""Resolvers as projects write them: what they override asks the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group

from wsgateway.identity import Identity, SessionIdentity


class ByGroup(SessionIdentity):
    """Names a user by their group, which stands for a profile: a row of another table."""

    def user_name(self, user: Any) -> str:
        return str(user.groups.get().name)

    def get_user(self, name: str) -> Any:
        return Group.objects.get(name=name).user_set.get()


class ByGroupAsync(SessionIdentity):
    """The same, without threads of its own."""

    async def user_name(self, user: Any) -> str:
        return str((await user.groups.aget()).name)

    async def get_user(self, name: str) -> Any:
        return await (await Group.objects.aget(name=name)).user_set.aget()


class Slow:
    """Waits for something that does not answer, before each handshake."""

    async def resolve(self, scope: Mapping[str, Any]) -> Identity | None:
        logging.getLogger("wsgateway").warning("the resolver waits")
        await asyncio.sleep(60)
        return None


class ByNumber(SessionIdentity):
    """Names a user by a number, which is a mistake."""

    def user_name(self, user: Any) -> Any:
        return user.pk


class ByNumberAsync(SessionIdentity):
    async def user_name(self, user: Any) -> Any:
        return user.pk


class WrongType:
    """Returns the user's name, which is a mistake."""

    def resolve(self, scope: Mapping[str, Any]) -> Any:
        return "ann"


class WrongObject:
    async def resolve(self, scope: Mapping[str, Any]) -> Any:
        return get_user_model()(username="ann")


class Broken:
    """Raises."""

    def resolve(self, scope: Mapping[str, Any]) -> Identity | None:
        raise RuntimeError("a mistake")


class ByKey:
    """Knows everybody who sends a key, which is their user name here; all of it synchronous."""

    def resolve(self, scope: Mapping[str, Any]) -> Identity | None:
        keys = [value.decode() for name, value in scope["headers"] if name == b"x-key"]
        if not keys:
            return None
        user = get_user_model().objects.get(username=keys[0])
        return Identity("orders", user.groups.get().name, user_id=str(user.pk))


class NeedsAKey(SessionIdentity):
    """Cannot be made: nobody passes the key."""

    def __init__(self, key: str) -> None:
        self.key = key


class HasNoFile(SessionIdentity):
    """Cannot be made, either."""

    def __init__(self) -> None:
        raise FileNotFoundError("no key file")
