from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("wsgateway_outbox", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="outboxmessage",
            name="is_topic",
            field=models.BooleanField(
                editable=False,
                help_text="Whether the name is a topic's; unknown: the service says.",
                null=True,
            ),
        ),
    ]
