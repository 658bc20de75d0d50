"""Each step of docs/how-to/from-channels-redis.md, on the chat of the Channels tutorial."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client
from websockets.typing import Origin

from tests.docs.channels_chat import TUTORIAL
from tests.pages import DocumentPage
from tests.support import ROOT, Process, listening, running, site_env, wait_for
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.client import connect

pytestmark = pytest.mark.timeout(120)  # four releases of a site
PAGE = DocumentPage("how-to/from-channels-redis.md")

APPS = """
INSTALLED_APPS = ["daphne", *INSTALLED_APPS, "chat"]
ASGI_APPLICATION = "mysite.asgi.application"
"""
MIGRATE = """
from django.core.management import call_command
call_command("check", fail_level="WARNING")
call_command("migrate", verbosity=0)
"""
LOG_IN = """
from django.contrib.auth.models import User
from django.test import Client
client = Client()
client.force_login(User.objects.create(username="ann"))
print("session:", client.cookies["sessionid"].value)
"""


class Chat:
    """The tutorial's project, with a settings module for each release of the page.

    Args:
        folder: Where it is made.
        nats: The NATS server's URL.
        redis: The Redis server's port.
    """

    def __init__(self, folder: Path, nats: str, redis: int) -> None:
        self.folder = folder
        self._redis = redis
        self._end = f'NATS_BROKER_URL = "{nats}"\nWSGATEWAY_PREFIX = "m{secrets.token_hex(5)}"\n'
        startproject = [sys.executable, "-m", "django", "startproject", "mysite", "."]
        subprocess.run(startproject, cwd=folder, check=True)
        (folder / "chat").mkdir()
        (folder / "chat/__init__.py").touch()
        for name, text in TUTORIAL.items():
            (folder / name).write_text(text)
        with (folder / "mysite/settings.py").open("a") as settings:
            settings.write(APPS)
        PAGE.write_files(folder, "mysite/layers.py")
        ours = PAGE.code("INSTALLED_APPS += ")
        self.release("before", PAGE.code('"default": {\n        "BACKEND": "channels_redis.core.'))
        self.release("first", ours, PAGE.code("layers.ReceiveFromRedis"))
        self.release("second", ours, PAGE.code("layers.ReceiveFromNats"))
        self.release("third", ours)
        inbox = [ours, PAGE.code("WSGATEWAY_SERVICES"), "SILENCED_SYSTEM_CHECKS = []\n"]
        inbox.append('ASGI_APPLICATION = "mysite.inbox_asgi.application"\n')
        self.release("inbox", *inbox)
        (folder / "mysite/inbox_asgi.py").write_text(PAGE.files()["mysite/asgi.py"])

    def release(self, name: str, *blocks: str) -> None:
        """Write a settings module: the tutorial's with these blocks."""
        text = "".join(["from mysite.settings import *\n\n", *blocks])
        if name != "before":
            text += self._end
        path = self.folder / f"mysite/{name}.py"
        path.write_text(text.replace("6379", str(self._redis)))

    def manage(self, release: str, *arguments: str) -> str:
        """Return what a command of the project prints."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments, f"--settings=mysite.{release}"],
            cwd=self.folder,
            env=site_env(PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=60,
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        return output

    def serve(self, release: str, port: int) -> Process:
        """Return a process that serves a release."""
        env = site_env(PYTHONPATH=str(ROOT), DJANGO_SETTINGS_MODULE=f"mysite.{release}")
        module = "mysite.inbox_asgi" if release == "inbox" else "mysite.asgi"
        command = [sys.executable, "-m", "daphne", "-p", str(port), f"{module}:application"]
        return Process(command, self.folder / f"{release}.log", env, self.folder)


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    pytest.importorskip("channels_redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    command = [program, "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        wait_for(lambda: listening(port), 20, "redis-server listens")
        yield port
        server.kill()


@pytest.fixture(scope="module")
def chat(
    tmp_path_factory: pytest.TempPathFactory, nats_server: EmbeddedServer, redis_port: int
) -> Chat:
    return Chat(tmp_path_factory.mktemp("chat"), nats_server.url, redis_port)


@pytest.fixture(scope="module")
def ports(chat: Chat) -> Iterator[dict[str, int]]:
    """Every release of the page, side by side; where each listens."""
    found = {name: free_port() for name in ("before", "first", "second", "third", "inbox")}
    with ExitStack() as stack:
        for name, port in found.items():
            stack.enter_context(running(chat.serve(name, port))).spawn()
        for name, port in found.items():
            wait_for(lambda port=port: listening(port), 40, f"{name} listens")
        yield found


@asynccontextmanager
async def room(port: int) -> AsyncIterator[Any]:
    """Open a socket of the lobby, as a page of the site does."""
    url, origin = f"ws://127.0.0.1:{port}/ws/chat/lobby/", Origin(f"http://127.0.0.1:{port}")
    async with websockets.asyncio.client.connect(url, origin=origin, proxy=None) as socket:
        yield socket


async def require_chat(*ports: int) -> None:
    """Let a socket of each process say something; require that all hear it once."""
    async with room(ports[0]) as a, room(ports[-1]) as b:
        for number, speaker in enumerate((a, b, a, b)):
            await speaker.send(json.dumps({"message": str(number)}))
            for socket in (a, b):
                heard = json.loads(await asyncio.wait_for(socket.recv(), 10))
                assert heard == {"message": str(number)}


async def test_chat_runs_on_redis_and_then_on_nats(ports: dict[str, int]) -> None:
    await require_chat(ports["before"])
    await require_chat(ports["third"])


@pytest.mark.parametrize(
    ("old", "new"), [("before", "first"), ("first", "second"), ("second", "third")]
)
async def test_nobody_misses_a_message_while_two_releases_run(
    ports: dict[str, int], old: str, new: str
) -> None:
    await require_chat(ports[old], ports[new])


async def test_accepting_a_gap_means_that_the_two_layers_do_not_hear_each_other(
    ports: dict[str, int],
) -> None:
    async with room(ports["before"]) as old, room(ports["third"]) as new:
        await old.send(json.dumps({"message": "from the old one"}))
        await new.send(json.dumps({"message": "from the new one"}))
        assert "old" in await asyncio.wait_for(old.recv(), 10)
        assert "new" in await asyncio.wait_for(new.recv(), 10)


async def test_synchronous_code_sends(chat: Chat, ports: dict[str, int]) -> None:
    """As Celery does: in a child that has been forked after the parent has used the layer."""
    calls = "announce('lobby', 'one')\nannounce_to_all(['lobby'], 'two')\n"
    functions = PAGE.code("def announce(") + PAGE.code("def announce_to_all(")
    fork = "import os\nchild = os.fork()\n"
    wait = "if child: assert os.waitpid(child, 0)[1] == 0\n"
    async with room(ports["third"]) as socket:
        script = f"{functions}\n{calls}{fork}{calls}{wait}"
        await asyncio.to_thread(chat.manage, "third", "shell", "-c", script)
        heard = [json.loads(await asyncio.wait_for(socket.recv(), 10)) for _ in range(4)]
    assert sorted(each["message"] for each in heard) == ["one", "one", "two", "two"]


def test_their_tests_pass_with_the_layer_in_memory(chat: Chat) -> None:
    (chat.folder / "chat/tests.py").write_text(PAGE.code("class ChatTests"))
    output = chat.manage("third", "test")
    assert "Ran 1 test" in output
    assert "System check identified no issues" in output


async def test_inbox_keeps_a_message_for_a_user_who_is_away(
    chat: Chat, ports: dict[str, int]
) -> None:
    mention = PAGE.code("def mention") + "\nmention('ann', 'bob mentioned you')\n"
    script = MIGRATE + LOG_IN + mention
    output = await asyncio.to_thread(chat.manage, "inbox", "shell", "-c", script)
    cookie = {"Cookie": f"sessionid={re.findall(r'session: (.+)', output)[0]}"}
    url = f"ws://127.0.0.1:{ports['inbox']}/inbox/mentions/"
    origin = f"http://127.0.0.1:{ports['inbox']}"
    ann = connect(url, device="web", additional_headers=cookie, origin=origin, proxy=None)
    async with asyncio.timeout(20), ann:
        assert (await ann.recv()).data == "bob mentioned you"
    await require_chat(ports["inbox"])
