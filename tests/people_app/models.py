"""People are users with a UUID and an e-mail address; they may be locked instead of inactive."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.hashers import make_password
from django.db import models


class PersonManager(BaseUserManager["Person"]):
    def create_user(self, email: str, password: str) -> Person:
        person = self.model(email=email, password=make_password(password))
        person.save(using=self._db)
        return person


class Person(AbstractBaseUser):
    """``is_active`` is computed."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(unique=True)
    locked = models.BooleanField(default=False)

    objects = PersonManager()
    USERNAME_FIELD = "email"

    @property
    def is_active(self) -> bool:  # type: ignore[override]
        return not self.locked


class Employee(Person):
    """A table beside the people's: Django signals it by its own name."""

    office = models.CharField(max_length=20)


class PeopleRouter:
    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "people_replica" if model._meta.app_label == "people_app" else None

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "people" if model._meta.app_label == "people_app" else None

    def allow_relation(self, *objects: Any, **hints: Any) -> bool:
        return True
