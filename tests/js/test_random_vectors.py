"""Random scenarios: what the Python client does in each of their steps, wsgateway.js does too."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.unit.test_client_vectors import FILE, Runner

SCENARIOS = 150
STEPS = 60
SHORT = [0.125, 0.25, 0.5]  # binary fractions: both clocks stay exact
LONG = [*SHORT, 1, 5]
HANDSHAKE = 4.0  # seconds; the session does not know of connect_timeout, the JavaScript client does
LOST = [1006, 1006, 1006, 1006, 1000, 1001, 4001, 4012, 4016, 4501, 4505]
FRAMES = [*["message"] * 8, *["ack"] * 4, "error", "error", "closing", "ping", "pong", "welcome"]
FRAMES += ["watching", "watching", "presence", "presence", "unwatched", "watch_error"]
USERS = ["ann", "bob"]
SERVICES = ["orders", "chat"]
READERS = ["ann", "bob", "carl"]
FRAMES += [*["topic_message"] * 6, *["subscribed"] * 6, "changed", "unsubscribed", "topic_error"]
TOPICS = ["room.1", "room.2", "cursor.1"]
FRAMES += [*["readers"] * 3, *["readers_changed"] * 3, "topic_unwatched"]


class Scenario:
    """Makes steps that fit the state that the Python client is in, and notes what it does."""

    def __init__(self, numbers: random.Random) -> None:
        self.numbers = numbers
        self.options = self.some_options()
        self.runner = Runner(self.options)
        self.steps: list[dict[str, Any]] = []
        self.kinds: dict[str, str] = {}  # id -> send or request
        self.written: set[str] = set()  # to topics
        self.repeated: set[str] = set()  # a call's end by hand means another thing for these
        self.count = 0
        self.connecting = 0.0  # seconds

    def some_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            name: self.numbers.randint(1, 3)
            for name in ("send_window", "queue_limit", "ack_every")
            if self.numbers.random() < 0.4
        }
        if self.numbers.random() < 0.3:
            options["tokens"] = [f"t{number}" for number in range(STEPS)]
        if self.numbers.random() < 0.3:
            options["position"] = {"epoch": "e1", "offset": self.numbers.randrange(9)}
        return options

    def run(self) -> list[dict[str, Any]]:
        for _ in range(self.numbers.randint(1, STEPS)):
            if self.runner.state == "closed":
                break
            step = getattr(self, self.some_kind())()
            if step:
                out = self.runner.step(step)
                self.steps.append({"in": step, "out": json.loads(json.dumps(out))})
        return self.steps

    def some_kind(self) -> str:
        kinds = ["call", "call", "processed", "wait", "wait", "give_up", "watch", "unwatch"]
        kinds += ["topic", "topic", "write", "leave", "watch_readers", "unwatch_readers"]
        if self.numbers.random() < 0.02:
            kinds = ["close", "sleep"]
        elif self.runner.state == "idle":
            kinds += ["connect"] * 4
        elif self.runner.state == "connecting":
            kinds += [*["welcome"] * 12, "lost", "frame"]
        elif self.runner.state == "open":
            kinds += [*["frame"] * 12, "lost"]
        return self.numbers.choice(kinds)

    def some_id(self) -> str:
        return self.numbers.choice([*self.kinds, "nobody's"])

    # -- steps; none if it does not fit ----------------------------------------------------

    def connect(self) -> dict[str, Any]:
        return {"connect": True}

    def close(self) -> dict[str, Any]:
        return {"close": True}

    def lost(self) -> dict[str, Any]:
        return {"lost": self.numbers.choice(LOST)}

    def wait(self) -> dict[str, Any] | None:
        if self.runner.state != "connecting":
            self.connecting = LONG[-1]  # a wait may end in an attempt that has lasted as long
            return {"wait": self.numbers.choice(LONG)}
        seconds = self.numbers.choice(SHORT)
        self.connecting += seconds
        return {"wait": seconds} if self.connecting < LONG[-1] + HANDSHAKE else None

    def sleep(self) -> dict[str, Any] | None:
        if self.runner.state == "connecting":
            return None
        if self.runner.session.write_at < math.inf:
            return None  # two timers that are late may come in either order
        self.connecting = 0.0
        return {"sleep": self.numbers.choice([*LONG, 60, 3600])}

    def call(self) -> dict[str, Any]:
        known = [id for id in self.kinds if id not in self.written]
        if known and self.numbers.random() < 0.1:
            id = self.numbers.choice(known)
            self.repeated.add(id)
        else:
            id = f"i{len(self.kinds)}"
            self.kinds[id] = self.numbers.choice(["send", "request"])
        return {self.kinds[id]: {"id": id, "data": "x" * self.numbers.randint(1, 6)}}

    def some_topic(self) -> str:
        return self.numbers.choice(TOPICS)

    def topic(self) -> dict[str, Any] | None:
        options: dict[str, Any] = {"topic": self.some_topic()}
        if options["topic"] in self.runner.session.subscriptions:
            return None
        if self.numbers.random() < 0.5:
            options["since"] = self.numbers.choice(["all", 50])
        if self.numbers.random() < 0.3:
            options["position"] = {"epoch": "r1", "offset": self.numbers.randrange(9)}
        return {"topic": options}

    def leave(self) -> dict[str, Any] | None:
        topic = self.some_topic()
        return {"leave": topic} if topic in self.runner.topics else None

    def write(self) -> dict[str, Any] | None:
        topic, id = self.some_topic(), f"i{len(self.kinds)}"
        if topic not in self.runner.session.subscriptions:
            return None
        self.kinds[id] = self.numbers.choice(["send", "request"])
        self.written.add(id)
        return {self.kinds[id]: {"id": id, "topic": topic, "data": "x" * 3}}

    def give_up(self) -> dict[str, Any] | None:
        ids = [id for id in self.kinds if id not in self.repeated]
        return {"give_up": self.numbers.choice(ids)} if ids else None

    def someone(self) -> dict[str, str]:
        user = {"user": self.numbers.choice(USERS)}
        return user if self.numbers.random() < 0.6 else user | {"service": self.some_service()}

    def some_service(self) -> str:
        return self.numbers.choice(SERVICES)

    def watch(self) -> dict[str, Any]:
        return {"watch": self.someone()}

    def unwatch(self) -> dict[str, Any]:
        return {"unwatch": self.someone()}

    def watch_readers(self) -> dict[str, Any] | None:
        topic = self.some_topic()
        return {"watch": {"topic": topic}} if topic in self.runner.topics else None

    def unwatch_readers(self) -> dict[str, Any] | None:
        topic = self.some_topic()
        return {"unwatch": {"topic": topic}} if topic in self.runner.topics else None

    def processed(self) -> dict[str, Any] | None:
        given = [*self.runner.given]
        return {"processed": self.numbers.choice(given)} if given else None

    def frame(self) -> dict[str, Any]:
        return getattr(self, self.numbers.choice(FRAMES))()  # type: ignore[no-any-return]

    # -- frames about topics ---------------------------------------------------------------

    def topic_message(self) -> dict[str, Any]:
        frame = self.message()["frame"]
        topic = {"topic": self.some_topic()}
        if topic["topic"] == "cursor.1":
            del frame["offset"]
        return {"frame": {"type": frame["type"], **topic, **frame}}

    def some_question(self, topic: str) -> str:
        known = self.runner.topics.get(topic)
        is_likely = known is not None and self.numbers.random() < 0.9
        return known.id if known is not None and is_likely else "topic-1"

    def subscribed(self) -> dict[str, Any]:
        frame = self.changed()["frame"]
        return {"frame": {**frame, "id": self.some_question(frame["topic"])}}

    def changed(self) -> dict[str, Any]:
        choice, topic = self.numbers.choice, self.some_topic()
        frame = {"type": "subscribed", "topic": topic, "access": choice(["read", "write"])}
        if topic == "cursor.1":
            return {"frame": {**frame, "durable": False}}
        known = self.runner.told_of_topics.get(topic) or {"offset": 0}
        reason = choice([None, None, "trimmed", "ahead", "epoch", "new"])
        offset = choice([known["offset"], self.numbers.randrange(12)])
        about = {"epoch": choice(["r1", "r1", "r1/1", "r2"]), "offset": offset}
        return {"frame": {**frame, **about, "recovered": reason is None, "reason": reason}}

    def unsubscribed(self) -> dict[str, Any]:
        topic, temporary = self.some_topic(), self.numbers.random() < 0.5
        frame = {"type": "unsubscribed", "topic": topic, "reason": "r", "temporary": temporary}
        frame["code"] = "unavailable" if temporary else "forbidden"
        if self.numbers.random() < 0.5:
            frame["id"] = self.some_question(topic)
        return {"frame": frame}

    def topic_error(self) -> dict[str, Any]:
        frame = self.error()["frame"]
        return {"frame": {**frame, "id": self.some_question(self.some_topic())}}

    # -- frames from the gateway -----------------------------------------------------------

    def presence(self) -> dict[str, Any]:
        online = self.numbers.choice([True, False, None])
        someone = {"service": self.some_service(), "user": self.numbers.choice(USERS)}
        return {"frame": {"type": "presence", **someone, "online": online}}

    def some_watch(self) -> str:
        return f"watch-{self.numbers.randint(1, len(self.runner.watches) + 1)}"

    def watching(self) -> dict[str, Any]:
        frame = self.presence()["frame"]
        return {"frame": {**frame, "type": "watching", "id": self.some_watch()}}

    def unwatched(self) -> dict[str, Any]:
        someone = {"service": self.some_service(), "user": self.numbers.choice(USERS)}
        return {"frame": {"type": "unwatched", **someone, "code": "forbidden", "reason": "r"}}

    def some_readers(self) -> list[dict[str, str]]:
        names = self.numbers.sample(READERS, self.numbers.randint(0, len(READERS)))
        return [{"service": "orders", "user": name} for name in names]

    def readers(self) -> dict[str, Any]:
        frame: dict[str, Any] = {"type": "presence", "topic": self.some_topic()}
        if self.numbers.random() < 0.7:
            frame |= {"type": "watching", "id": self.some_watch()}
        frame["complete"] = self.numbers.random() < 0.8
        if self.numbers.random() < 0.8:
            return {"frame": {**frame, "users": self.some_readers()}}
        return {"frame": {**frame, "users": None, "sockets": self.numbers.randint(500, 502)}}

    def readers_changed(self) -> dict[str, Any]:
        joined, complete = self.some_readers(), self.numbers.random() < 0.8
        left = [user for user in self.some_readers() if user not in joined]
        about = {"topic": self.some_topic(), "complete": complete}
        return {"frame": {"type": "presence", **about, "joined": joined, "left": left}}

    def topic_unwatched(self) -> dict[str, Any]:
        ended = {"topic": self.some_topic(), "code": "forbidden", "reason": "r"}
        return {"frame": {"type": "unwatched", **ended}}

    def watch_error(self) -> dict[str, Any]:
        frame = self.error()["frame"]
        code = self.numbers.choice(["forbidden", frame["code"]])
        return {"frame": {**frame, "id": self.some_watch(), "code": code}}

    def welcome(self) -> dict[str, Any]:
        choice = self.numbers.choice
        position = self.runner.position or {"offset": 0}
        frame = {
            "type": "welcome",
            "epoch": choice(["e1", "e1", "e1", "e2"]),
            "offset": choice([position["offset"], self.numbers.randrange(12)]),
            "recovered": choice([True, False]),
            "reason": choice([None, "trimmed", "ahead", "epoch", "new"]),
            "window": choice([1, 2, 3, 8, 256]),
            "max_message_size": choice([4, 1000]),
        }
        return {"frame": frame}

    def message(self) -> dict[str, Any]:
        self.count += 1
        frame = {"type": "message", "offset": self.numbers.randint(1, 13), "data": f"m{self.count}"}
        if self.numbers.random() < 0.7:
            frame["time"] = self.numbers.choice([None, "t1", "t2"])
        if self.numbers.random() < 0.3:
            frame["reply_to"] = self.some_id()
            if self.numbers.random() < 0.3:
                frame["error"] = "sold_out"
        return {"frame": frame}

    def ack(self) -> dict[str, Any]:
        return {"frame": {"type": "ack", "id": self.some_id()}}

    def error(self) -> dict[str, Any]:
        id = self.numbers.choice([self.some_id(), None])
        temporary = self.numbers.choice([True, False])
        return {
            "frame": {
                "type": "error",
                "id": id,
                "code": "queue_full",
                "message": "m",
                "temporary": temporary,
            }
        }

    def closing(self) -> dict[str, Any]:
        after = self.numbers.choice([0, 1, 2.5])
        return {"frame": {"type": "closing", "reconnect_after": after}}

    def ping(self) -> dict[str, Any]:
        return {"frame": {"type": "ping"}}

    def pong(self) -> dict[str, Any]:
        return {"frame": {"type": "pong"}}


def test_both_clients_do_the_same_in_random_scenarios(tmp_path: Path) -> None:
    seed = int(os.environ.get("WSGATEWAY_TEST_SEED") or random.randrange(10**6))
    print("seed", seed)
    vectors = []
    for number in range(SCENARIOS):
        scenario = Scenario(random.Random(f"{seed} {number}"))
        steps = scenario.run()
        vectors.append({"name": f"{number}", "options": scenario.options, "steps": steps})
    others: dict[str, list[str]] = {name: [] for name in FILE if name.endswith("_vectors")}
    nothing: dict[str, list[str]] = {name: [] for name in FILE["not_the_protocol"]}
    path = tmp_path / "vectors.json"
    file = {**FILE, **others, "vectors": vectors, "not_the_protocol": nothing}
    path.write_text(json.dumps(file))
    node = shutil.which("node")
    assert node, "these tests need Node.js"
    done = subprocess.run(
        [node, "--test-reporter=tap", ROOT / "tests/js/vectors.test.mjs"],
        capture_output=True,
        text=True,
        env={**os.environ, "WSGATEWAY_VECTORS": str(path)},
        timeout=50,
    )
    if done.returncode:
        failed = done.stdout.partition("\nnot ok")[2]
        pytest.fail(f"seed {seed}: {failed[:3000]}{done.stderr[-1000:]}")
    assert f"# pass {SCENARIOS + 1}" in done.stdout
