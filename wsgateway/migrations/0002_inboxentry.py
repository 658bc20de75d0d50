"""Permissions of what staff see of users' sockets and messages, and do to them."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("wsgateway", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="InboxEntry",
            fields=[
                (
                    "address",
                    models.CharField(max_length=2000, primary_key=True, serialize=False),
                ),
            ],
            options={
                "verbose_name": "inbox",
                "verbose_name_plural": "inboxes",
                "permissions": (
                    ("view_inbox", "Can see who is online, and read users' messages"),
                    ("send_message", "Can send messages to users"),
                    ("delete_message", "Can delete users' messages"),
                    ("disconnect_socket", "Can disconnect users"),
                ),
                "managed": False,
                "default_permissions": (),
            },
        ),
    ]
