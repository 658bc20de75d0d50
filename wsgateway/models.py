"""The table of API keys. Everything else is in the broker: its models have no tables.

Those without a table are there so that the admin knows what it shows.
"""

from __future__ import annotations

from django.db import models

from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Inbox, decode_token, encode_token
from wsgateway.readable import visible

__all__ = [
    "ApiKey",
    "DeadLetterEntry",
    "GatewayEntry",
    "InboxEntry",
    "Overview",
    "ServiceEntry",
    "StreamEntry",
]


class ApiKey(models.Model):
    """A key of the server API. Its secret is stored as a hash, see `wsgateway.api.keys`."""

    name = models.CharField(max_length=100, help_text="Who uses it.")
    prefix = models.CharField(
        max_length=16, unique=True, help_text="The part of the key that is not secret."
    )
    digest = models.CharField(max_length=64, editable=False)
    services = models.JSONField(default=list, help_text='Where it may act; "*": everywhere.')
    actions = models.JSONField(default=list, help_text="What it may do.")
    rate = models.FloatField(
        help_text="Requests and messages per second, on average; 0: any number."
    )
    created_at = models.DateTimeField("created", auto_now_add=True)
    last_used_at = models.DateTimeField(
        "last used", null=True, blank=True, help_text="To the minute."
    )
    revoked_at = models.DateTimeField("revoked", null=True, blank=True)

    class Meta:
        ordering = ("name", "id")
        default_permissions = ("view",)
        permissions = (("revoke_apikey", "Can revoke an API key"),)
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"

    def may(self, action: str, service: str | None = None) -> bool:
        """Say whether it may do *action*, and in *service* if that is given."""
        everywhere = "*" in self.services
        return action in self.actions and (
            service is None or everywhere or service in self.services
        )


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
