"""The admin: how long its pages take with 1,000 users, half of them connected over two gateways."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.load import LoadSocket, connect_many
from tests.support import Gateway, site_env
from wsgateway.broker.embedded import EmbeddedServer

PAGES = {
    "users, 100 a page": "/admin/auth/user/",
    "users, online now": "/admin/auth/user/?online=yes",
    "overview": "/admin/wsgateway/overview/",
    "gateways": "/admin/wsgateway/gatewayentry/",
    "services": "/admin/wsgateway/serviceentry/",
    "streams": "/admin/wsgateway/streamentry/",
}


def prepare(users: int) -> Any:
    """Set up this process as the site's; return a browser of somebody who may see everything."""
    import django

    django.setup()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from django.test import Client

    call_command("migrate", verbosity=0)
    model: Any = get_user_model()
    model.objects.bulk_create(model(username=f"user{number:04}") for number in range(users - 1))
    browser = Client(SERVER_NAME="localhost")
    browser.force_login(model.objects.create_superuser("root"))
    return browser


@contextmanager
def running(folder: Path, options: argparse.Namespace) -> Iterator[list[Gateway]]:
    """Run the gateways, and give this process their settings."""
    with EmbeddedServer(folder / "nats", sync_interval="2m") as nats:
        env = {
            "NATS_BROKER_URL": nats.url,
            "WSGATEWAY_SERVICES": "demo,orders",
            "DATABASE_URL": f"sqlite:///{folder}/db.sqlite3",
        }
        gateways = [Gateway(folder, env, options.server) for _ in range(2)]
        try:
            for gateway in gateways:
                gateway.start()
            site = {"DJANGO_SETTINGS_MODULE": "project.settings", "DEBUG": "1", "SECRET_KEY": "x"}
            os.environ.clear()
            os.environ.update(site_env(**env, **site))
            yield gateways
        finally:
            for gateway in gateways:
                gateway.stop()


async def connect(gateways: list[Gateway], users: int) -> list[LoadSocket]:
    """Open a socket for every second user."""
    found: list[LoadSocket] = []
    for place, gateway in enumerate(gateways):
        names = [f"user{number:04}" for number in range(users - 1) if number % 4 == place]
        sockets, _ = await connect_many(gateway.port, names, lambda *_: None, service="demo")
        found += sockets
    return found


def look(browser: Any, url: str, looks: int) -> list[float]:
    """Return the milliseconds of each look at a page, except the first, which imports."""
    durations = []
    for _ in range(looks + 1):
        begin = time.perf_counter()
        response = browser.get(url)
        durations.append((time.perf_counter() - begin) * 1000)
        if response.status_code != 200:
            raise SystemExit(f"{url} answers {response.status_code}")
    return sorted(durations[1:])


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks admin", description=__doc__)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--looks", type=int, default=20, help="at each page")
    parser.add_argument("--server", default="daphne", help="daphne or uvicorn")
    options = parser.parse_args(argv)

    async def measure(gateways: list[Gateway], browser: Any) -> None:
        sockets = await connect(gateways, options.users)
        for page, url in PAGES.items():
            durations = await asyncio.to_thread(look, browser, url, options.looks)
            row = {
                "page": page,
                "sockets": len(sockets),
                "median ms": round(statistics.median(durations), 1),
                "slowest ms": round(durations[-1], 1),
            }
            print(json.dumps(row), flush=True)
        for socket in sockets:
            socket.close()

    with tempfile.TemporaryDirectory() as name, running(Path(name), options) as gateways:
        asyncio.run(measure(gateways, prepare(options.users)))
    return 0
