from django import forms
from django.contrib.auth import get_user_model

from .models import Message


class MessageForm(forms.ModelForm):
    recipient = forms.ModelChoiceField(
        get_user_model().objects.filter(is_active=True),
        to_field_name="username",
        label="To",
        empty_label=None,
    )

    class Meta:
        model = Message
        fields = ["recipient", "text"]
