"""What the gateways are told, and which logins hold, step by step."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth import login
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
from django.db import transaction
from django.http import HttpRequest

from tests.people_app.models import Employee, Person
from wsgateway import receivers
from wsgateway.gateway.revocation import user_digest
from wsgateway.identity import Identity
from wsgateway.logins import account_of, logged_in_user, reasons_to_close


def main() -> None:
    """Print one line of JSON for each step."""
    for alias in ("default", "people", "people_replica"):
        call_command("migrate", run_syncdb=True, database=alias, verbosity=0)
    told: list[str] = []
    announcer: Any = receivers.announcer
    announcer.say = told.append
    ann = Person.objects.db_manager("people").create_user("ann@example.com", "ann")
    bob = Employee(email="bob@example.com", office="9")
    bob.set_password("bob")
    bob.save()
    digests = {user_digest(str(ann.pk)): "ann", user_digest(str(bob.pk)): "bob"}
    for person in Person.objects.using("people"):
        person.save(using="people_replica")
    told.clear()
    identities = {ann.email: log_in(ann), bob.email: log_in(Person.objects.get(pk=bob.pk))}

    def report(step: str) -> None:
        lines = [line.split() for line in told]
        heard = sorted({f"{notice} {digests[digest]}" for notice, digest in lines})
        told.clear()
        codes = [code and int(code) for code in reasons_to_close(list(identities.values()))]
        print(json.dumps([step, heard, codes]))

    report("logged in")
    ann.email = "anna@example.com"
    ann.save()
    report("ann is called anna")
    bob.office = "10"
    bob.save()
    report("bob has moved")
    with transaction.atomic(using="people"):
        ann.locked = True
        ann.save()
        before = list(told)
    assert before == []
    report("ann is locked")
    bob.delete()
    report("bob is deleted")


def log_in(person: Person) -> Identity:
    request = HttpRequest()
    request.session = SessionStore()
    user: Any = person  # the stubs take Django's own class only
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    request.session.save()
    user = logged_in_user(request.session)
    assert user == person
    key = request.session.session_key
    return Identity("orders", user.email, session_key=key, **account_of(user, request.session))
