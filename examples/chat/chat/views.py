from django.contrib.auth.decorators import login_required
from django.db.models import Q
from django.shortcuts import render

from .forms import MessageForm
from .models import Message


@login_required
def index(request):
    form = MessageForm()
    recipients = form.fields["recipient"].queryset
    form.fields["recipient"].queryset = recipients.exclude(pk=request.user.pk)
    mine = Message.objects.filter(Q(sender=request.user) | Q(recipient=request.user))
    newest = mine.select_related("sender", "recipient").order_by("-pk")[:100]
    history = [message.as_dict() for message in reversed(newest)]
    return render(request, "chat/index.html", {"form": form, "history": history})
