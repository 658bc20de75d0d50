"""Keys of the server API: made and revoked by the command, and seen in the admin."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from wsgateway.api import keys
from wsgateway.management.exits import Exit
from wsgateway.models import ApiKey

pytestmark = pytest.mark.django_db
LIST = "/admin/wsgateway/apikey/"


def key(*arguments: str) -> Any:
    """Return what the command prints as JSON."""
    out = io.StringIO()
    call_command("gateway", "key", *arguments, "--json", stdout=out, stderr=io.StringIO())
    return json.loads(out.getvalue())


def create(name: str = "erp", *options: str) -> Any:
    return key("create", name, "--service", "orders", "--action", "publish", *options)


def failed(*arguments: str) -> CommandError:
    with pytest.raises(CommandError) as error:
        key(*arguments)
    return error.value


@async_to_sync
async def works(secret: str) -> bool:
    return await keys.find(secret) is not None


def test_key_is_printed_once_listed_and_revoked() -> None:
    made = create("erp", "--service", "room", "--action", "history", "--rate", "7.5")
    assert works(made["key"])
    assert (made["services"], made["actions"]) == (["orders", "room"], ["history", "publish"])
    [listed] = key("list")
    assert listed == {name: value for name, value in made.items() if name != "key"}
    assert (listed["rate"], listed["last_used"], listed["revoked"]) == (7.5, None, None)

    assert key("revoke", "erp", "--no-input") == {"revoked": [made["prefix"]]}
    assert not works(made["key"])
    assert key("list")[0]["revoked"]


def test_output_for_people_is_the_key_and_a_warning_beside_it() -> None:
    """A script takes standard output for the key."""
    out, notes = io.StringIO(), io.StringIO()
    arguments = ["erp", "--service", "*", "--action", "publish"]
    call_command("gateway", "key", "create", *arguments, stdout=out, stderr=notes)
    assert works(out.getvalue().removesuffix("\n"))
    assert "nobody can show it again" in notes.getvalue()
    table = io.StringIO()
    call_command("gateway", "key", "list", stdout=table)
    [row] = table.getvalue().splitlines()[1:]
    assert row.split()[0] == "erp"
    assert out.getvalue().strip() not in row


def test_key_for_a_misspelt_service_is_made_with_a_warning(settings: Any) -> None:
    """Nothing told of it until the backend's first request got 404."""
    settings.WSGATEWAY_SERVICES = ["orders"]
    notes = io.StringIO()
    names = ["--service", "ordrs", "--service", "orders", "--service", "*"]
    arguments = ["create", "erp", *names, "--action", "publish"]
    call_command("gateway", "key", *arguments, stdout=io.StringIO(), stderr=notes)
    assert "'ordrs' does not exist in this project. Did you mean 'orders'?" in notes.getvalue()
    assert notes.getvalue().count("does not exist") == 1
    assert "ordrs" in ApiKey.objects.get().services


def test_name_is_free_again_once_its_key_is_revoked() -> None:
    first = create()
    assert "there is a key named 'erp'" in str(failed("create", "erp", *first_options()))
    key("revoke", first["prefix"], "--no-input")
    second = create()
    assert works(second["key"])
    assert not works(first["key"])


def first_options() -> list[str]:
    return ["--service", "orders", "--action", "publish"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("create", "erp", "--service", "orders"), Exit.FAILED),
        (("create", "erp", "--action", "publish"), Exit.FAILED),
        (("create", "erp", "--service", "orders", "--action", "everything"), Exit.FAILED),
        (("create", "erp", "--service", "", "--action", "publish"), Exit.USAGE),
        (("create", " ", "--service", "orders", "--action", "publish"), Exit.USAGE),
        (("create", "e", "--service", "o", "--action", "publish", "--rate", "-1"), Exit.FAILED),
        (("create", "e", "--service", "o", "--action", "publish", "--rate", "nan"), Exit.FAILED),
        (("revoke", "nobody"), Exit.UNKNOWN),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], code: Exit) -> None:
    """What argparse itself refuses, `call_command` raises without a code of ours."""
    assert failed(*arguments).returncode == code
    assert not ApiKey.objects.exists()


def test_admin_shows_keys_and_revokes_them(client: Client) -> None:
    made = [create(name) for name in ("erp", "crm")]
    staff = User.objects.create_user("staff", is_staff=True)
    client.force_login(staff)
    allow(staff, "view_apikey")
    page = client.get(LIST).content.decode()
    assert "erp" in page
    assert made[0]["prefix"] in page
    assert 'value="revoke"' not in page
    assert client.get(f"{LIST}add/").status_code == 403
    row = ApiKey.objects.get(name="erp")
    used = timezone.now().replace(year=2001)
    ApiKey.objects.filter(name="erp").update(last_used_at=used)
    assert "2001" in client.get(LIST).content.decode()
    detail = client.get(f"{LIST}{row.pk}/change/").content.decode()
    assert row.digest not in detail
    assert 'name="_save"' not in detail

    chosen = {"action": "revoke", "_selected_action": str(row.pk)}
    client.post(LIST, chosen)  # without the permission, nothing happens
    assert works(made[0]["key"])
    allow(staff, "revoke_apikey")
    assert "This cannot be undone" in client.post(LIST, chosen).content.decode()
    assert works(made[0]["key"])
    client.post(LIST, {**chosen, "confirmed": ""})
    assert not works(made[0]["key"])
    assert works(made[1]["key"])
    assert LogEntry.objects.get().object_repr == str(row)


def allow(user: User, name: str) -> None:
    user.user_permissions.add(Permission.objects.get(codename=name))
