"""The jobs as Celery tasks: acknowledged after they ran, as a service's messages are."""

from __future__ import annotations

import os
import time

from celery import Celery

from benchmarks.services_app import PAUSE, tick

app = Celery("benchmark", broker=os.environ.get("BENCH_REDIS"))
app.conf.update(task_acks_late=True, task_ignore_result=True, worker_prefetch_multiplier=8)


@app.task
def noop(user: str, text: str) -> None:
    """Do nothing."""
    tick()


@app.task
def slow(user: str, text: str) -> None:
    """Wait."""
    time.sleep(PAUSE)
    tick()
