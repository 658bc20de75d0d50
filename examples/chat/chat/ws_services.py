from wsgateway import Reject, send, service, topic

from .forms import MessageForm
from .models import Message


@service("chat")
def handle(message):
    """Store what a user wrote, and send it to both sides."""
    data = message.json()
    form = MessageForm(data if isinstance(data, dict) else {})
    if not form.is_valid():
        raise Reject(form.errors.as_text(), code="invalid")
    stored, _ = Message.objects.get_or_create(
        key=message.id, defaults={**form.cleaned_data, "sender": message.user}
    )
    for user in {stored.sender, stored.recipient}:
        send("chat", user.username, json=stored.as_dict(), msg_id=f"message-{stored.pk}")


@topic("room", direct=True)
def allow(identity, name):
    """Let every user read and write in the lobby. There is no other room."""
    return "write" if name == "lobby" else None
