"""Appends each signal as a line of JSON to the file that ``SIGNALS_LOG`` names."""

from __future__ import annotations

import json
import os
from typing import Any

from django.apps import AppConfig

from wsgateway import signals


def note(name: str, **fields: Any) -> None:
    with open(os.environ["SIGNALS_LOG"], "a") as log:
        log.write(json.dumps({"signal": name, "pid": os.getpid(), **fields}, default=str) + "\n")


class NotesConfig(AppConfig):
    """Connects a receiver to each signal."""

    name = "tests.presence_app"

    def ready(self) -> None:
        for name in signals.__all__:
            signal = getattr(signals, name)

            def receive(name: str = name, **kwargs: Any) -> None:
                del kwargs["signal"], kwargs["sender"]
                note(name, **kwargs)

            signal.connect(receive, weak=False)
