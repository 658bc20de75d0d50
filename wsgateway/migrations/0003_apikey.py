"""The table of the server API's keys."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("wsgateway", "0002_inboxentry")]

    operations = [
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(help_text="Who uses it.", max_length=100)),
                (
                    "prefix",
                    models.CharField(
                        help_text="The part of the key that is not secret.",
                        max_length=16,
                        unique=True,
                    ),
                ),
                ("digest", models.CharField(editable=False, max_length=64)),
                (
                    "services",
                    models.JSONField(default=list, help_text='Where it may act; "*": everywhere.'),
                ),
                ("actions", models.JSONField(default=list, help_text="What it may do.")),
                (
                    "rate",
                    models.FloatField(
                        help_text="Requests and messages per second, on average; 0: any number."
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="created")),
                (
                    "last_used_at",
                    models.DateTimeField(
                        blank=True, help_text="To the minute.", null=True, verbose_name="last used"
                    ),
                ),
                (
                    "revoked_at",
                    models.DateTimeField(blank=True, null=True, verbose_name="revoked"),
                ),
            ],
            options={
                "verbose_name": "API key",
                "ordering": ("name", "id"),
                "permissions": (("revoke_apikey", "Can revoke an API key"),),
                "default_permissions": ("view",),
            },
        ),
    ]
