"""The outbox's table."""

from __future__ import annotations

import uuid

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import models

__all__ = ["OutboxMessage"]

if not apps.is_installed("wsgateway.outbox"):  # Django's own error speaks of an app_label
    raise ImproperlyConfigured(
        "the outbox has no table: add 'wsgateway.outbox' to INSTALLED_APPS, and run "
        '"manage.py migrate"'
    )


class OutboxMessage(models.Model):
    """A message that waits to be relayed; it is deleted once JetStream has it."""

    key = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    service = models.CharField(max_length=255)
    user = models.CharField(max_length=255)
    is_topic = models.BooleanField(
        null=True,
        editable=False,
        help_text="Whether the name is a topic's; unknown: the service says.",
    )
    payload = models.BinaryField()
    kind = models.CharField(max_length=10)
    ttl = models.FloatField(null=True, blank=True)
    headers = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    failed_at = models.DateTimeField(null=True, blank=True)
    error = models.TextField(blank=True)

    class Meta:
        ordering = ("id",)
        indexes = (models.Index(fields=["service", "user", "id"], name="wsgateway_outbox_user"),)
        verbose_name = "outbox message"

    def __str__(self) -> str:
        return f"{self.id} for {self.service}.{self.user}"

    @property
    def msg_id(self) -> str:
        """The ``Nats-Msg-Id`` that makes relaying idempotent."""
        return f"outbox.{self.key.hex}"
