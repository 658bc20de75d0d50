"""No tables: what is kept is in the broker. Models, so that the admin knows what it shows."""

from __future__ import annotations

from django.db import models

__all__ = ["DeadLetterEntry", "GatewayEntry", "Overview", "ServiceEntry", "StreamEntry"]


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


class DeadLetterEntry(models.Model):
    """Stands for the dead letters in the admin's list of models, and for its permissions."""

    class Meta:
        managed = False
        default_permissions = ("view", "change", "delete")
        verbose_name = "dead letter"
        verbose_name_plural = "dead letters"

    def __str__(self) -> str:
        return f"dead letter {self.pk}"
