"""The site with a page whose view the test holds, for `test_requests_at_the_end.py`."""

from __future__ import annotations

import os
import time
from importlib import import_module
from pathlib import Path

from django.http import HttpRequest, HttpResponse
from django.urls import path

from project.asgi import application

__all__ = ["application"]


def held(request: HttpRequest) -> HttpResponse:
    """Answer once the file exists that lets it go."""
    folder = Path(os.environ["HELD"])
    (folder / "begun").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return HttpResponse("kept")


import_module("project.urls").urlpatterns.append(path("held/", held))
