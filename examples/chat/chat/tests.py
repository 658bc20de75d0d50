import pytest
from django.urls import reverse

from wsgateway.testing import assert_not_sent, assert_sent, deliver

from .models import Message

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("wsgateway_memory")]


@pytest.fixture
def ann(django_user_model):
    return django_user_model.objects.create_user("ann")


@pytest.fixture
def bob(django_user_model):
    return django_user_model.objects.create_user("bob")


def test_message_is_stored_and_sent_to_both_sides(ann, bob):
    delivered = deliver("chat", "ann", json={"recipient": "bob", "text": "hello"})
    assert delivered.outcome == "done"
    message = Message.objects.get()
    assert (message.sender, message.recipient, message.text) == (ann, bob, "hello")
    assert_sent("chat", "ann", json=message.as_dict(), count=1)
    assert_sent("chat", "bob", json=message.as_dict(), count=1)


@pytest.mark.parametrize(
    "data", [{"recipient": "nobody", "text": "hello"}, {"recipient": "bob", "text": " "}, []]
)
def test_what_the_form_refuses_is_rejected(ann, bob, data):
    assert deliver("chat", "ann", json=data).outcome == "rejected"
    assert not Message.objects.exists()
    assert_not_sent("chat", "bob")


def test_page_shows_the_history(client, ann, bob):
    deliver("chat", "bob", json={"recipient": "ann", "text": "are you there?"})
    client.force_login(ann)
    assert "are you there?" in client.get("/").content.decode()


def test_page_needs_a_login(client):
    assert client.get("/").url == reverse("login") + "?next=/"
