"""No tables: what is kept is in JetStream. One model, so that the admin knows dead letters."""

from __future__ import annotations

from django.db import models

__all__ = ["DeadLetterEntry"]


class DeadLetterEntry(models.Model):
    """Stands for the dead letters in the admin's list of models, and for its permissions."""

    class Meta:
        managed = False
        default_permissions = ("view", "change", "delete")
        verbose_name = "dead letter"
        verbose_name_plural = "dead letters"

    def __str__(self) -> str:
        return f"dead letter {self.pk}"
