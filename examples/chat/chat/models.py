from django.conf import settings
from django.db import models


class Message(models.Model):
    sender = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    recipient = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    text = models.CharField(max_length=1000)
    sent_at = models.DateTimeField(auto_now_add=True)
    key = models.CharField(max_length=100, unique=True)

    def __str__(self):
        return self.text

    def as_dict(self):
        """Return what pages get."""
        return {
            "id": self.pk,
            "from": self.sender.username,
            "to": self.recipient.username,
            "text": self.text,
            "time": self.sent_at.isoformat(),
        }
