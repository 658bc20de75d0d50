"""No tables: what is kept is in the broker. Models, so that the admin knows what it shows."""

from __future__ import annotations

from django.db import models

from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Inbox, decode_token, encode_token
from wsgateway.readable import visible

__all__ = [
    "DeadLetterEntry",
    "GatewayEntry",
    "InboxEntry",
    "Overview",
    "ServiceEntry",
    "StreamEntry",
]


class Overview(models.Model):
    """Stands for the overview in the admin's list of models, and for its permission."""

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "overview"
        verbose_name_plural = "overview"

    def __str__(self) -> str:
        return "overview"


class ServiceEntry(models.Model):
    """Stands for the services in the admin."""

    name = models.CharField(max_length=255, primary_key=True)

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "service"
        verbose_name_plural = "services"

    def __str__(self) -> str:
        return self.name


class GatewayEntry(models.Model):
    """Stands for the gateways in the admin."""

    id = models.CharField(max_length=60, primary_key=True)

    class Meta:
        managed = False
        default_permissions = ("view",)
        permissions = (("drain_gateway", "Can drain a gateway"),)
        verbose_name = "gateway"
        verbose_name_plural = "gateways"

    def __str__(self) -> str:
        return self.id


class StreamEntry(models.Model):
    """Stands for the streams in the admin."""

    name = models.CharField(max_length=255, primary_key=True)

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "stream"
        verbose_name_plural = "streams"

    def __str__(self) -> str:
        return self.name


class InboxEntry(models.Model):
    """Stands for users' inboxes in the admin, and for what staff may do to users' sockets.

    The key is the inbox's address as it is in subjects: ``orders.ann``.
    """

    address = models.CharField(max_length=2000, primary_key=True)

    class Meta:
        managed = False
        default_permissions = ()
        permissions = (
            ("view_inbox", "Can see who is online, and read users' messages"),
            ("send_message", "Can send messages to users"),
            ("delete_message", "Can delete users' messages"),
            ("disconnect_socket", "Can disconnect users"),
        )
        verbose_name = "inbox"
        verbose_name_plural = "inboxes"

    def __str__(self) -> str:
        inbox = self.inbox
        return visible(self.address if inbox is None else f"{inbox.user} at {inbox.service}")

    @classmethod
    def of(cls, inbox: Inbox) -> InboxEntry:
        """Return what stands for *inbox*."""
        return cls(f"{encode_token(inbox.service)}.{encode_token(inbox.user)}")

    @property
    def inbox(self) -> Inbox | None:
        """The inbox that the address names; None if it names none."""
        service, _, user = self.address.partition(".")
        try:
            return Inbox(decode_token(service), decode_token(user))
        except NameRefused:
            return None


class DeadLetterEntry(models.Model):
    """Stands for the dead letters in the admin's list of models, and for its permissions."""

    class Meta:
        managed = False
        default_permissions = ("view", "change", "delete")
        verbose_name = "dead letter"
        verbose_name_plural = "dead letters"

    def __str__(self) -> str:
        return f"dead letter {self.pk}"
