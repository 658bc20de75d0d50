"""Webhooks' parts: signatures, addresses, what an answer means, and one request."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from tests.authority import Authority
from tests.receiver import SECRET, Receiver, Request, answer, receiving
from wsgateway.broker.embedded import free_port
from wsgateway.webhooks.addresses import Addresses, AddressRefused, is_allowed, is_public
from wsgateway.webhooks.config import Endpoint, webhook_flaws, webhook_of
from wsgateway.webhooks.sender import CHUNKS, PostFailed, Sender
from wsgateway.webhooks.signing import key_of, signed_headers
from wsgateway.webhooks.verdicts import Answer, Gone, Refusal, Reply, TryAgain, Verdict, judge

OTHER = "whsec_" + "A" * 40
NOW = 1_790_000_000.0
LOOPBACK = [ip_network("127.0.0.0/8")]


# -- signatures ----------------------------------------------------------------------------


def test_signature_is_that_of_the_specification() -> None:
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [key_of(SECRET)]
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_receivers_verify_with_the_old_and_the_new_secret(secret: str) -> None:
    headers = signed_headers("a", int(time.time()), b"{}", [key_of(SECRET), key_of(OTHER)])
    assert Webhook(secret).verify(b"{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(b"{ }", headers)


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        ("hunter2", "does not begin with 'whsec_'"),
        ("whsec_hunter2!", "is not base64 after 'whsec_'"),
        ("whsec_aHVudGVyMg==", "holds 7 bytes, but must hold 24 to 64"),
    ],
)
def test_secret_that_is_none_is_refused_and_never_shown(secret: str, text: str) -> None:
    flaws = webhook_flaws({"orders": {"url": "https://a.example", "secret": [OTHER, secret]}})
    assert f"'orders': 'secret' number 2 {text}" in flaws
    assert "hunter2" not in flaws
    assert "aHVu" not in flaws


# -- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "must be a dict with 'url' and 'secret'"),
        ({"url": "https://a.example"}, "lacks 'secret'"),
        ({"url": "ftp://a.example"}, "'url': write a URL such as"),
        ({"url": "https:///x"}, "write a URL"),
        ({"url": "https://a.example:x/"}, "write a URL"),
        ({"url": "https://[::1/"}, "write a URL"),
        ({"url": 5}, "write a URL"),
        ({"url": "https://a.example/ä"}, "write a URL"),
        ({"url": "https://ann:hunter2@a.example"}, "holds a user name or password"),
        ({"url": "https://a.example#x"}, "holds a fragment"),
        ({"url": "https://999.1.1.1"}, "'url' has the host '999.1.1.1', which is neither a name"),
        ({"url": "https://127.1"}, "neither a name"),
        ({"url": "https://a.0x7f"}, "neither a name"),
        ({"url": "https://010.0.0.1"}, "neither a name"),
        ({"url": "https://a..b"}, "neither a name"),
        ({"url": "https://-a.example"}, "neither a name"),
        ({"url": f"https://{'a' * 64}.example"}, "neither a name"),
        ({"url": f"https://{'a.' * 130}example"}, "neither a name"),
        ({"url": "https://a,b"}, "neither a name"),
        ({"url": "https://a%2fb"}, "neither a name"),
        ({"url": "https://a\\b"}, "neither a name"),
        ({"url": "https://[fe80::1%25lo]"}, "neither a name"),
        ({"url": "https://[v1.x]"}, "'url'"),
        ({"secret": []}, "'secret' must be a secret such as"),
        ({"secret": 5}, "must be a secret"),
        ({"timeout": 0}, "'timeout' is 0, but must be 0.1 to 600"),
        ({"timeout": "5"}, "'timeout' is '5'"),
        ({"timeout": float("nan")}, "'timeout' is nan"),
        ({"concurrency": True}, "'concurrency' is True, but must be 1 to 10000"),
        ({"allow_private": "10.0.0.0/8"}, "must be a list of networks"),
        ({"allow_private": ["10.0.0.1/8"]}, "'10.0.0.1/8' has bits beyond its prefix"),
        ({"retry": 5}, "'retry' must be a dict"),
        ({"retry": {"atempts": 5}}, "'atempts' is unknown: did you mean 'attempts'?"),
        ({"retry": {"jitter": 2}}, "'jitter' is 2, but must be 0 to 1"),
        ({"ca": 5}, "'ca' must be the path"),
        ({"urls": 5}, "'urls' is unknown: did you mean 'url'?"),
        ({"verify": False}, "it may be one of url, secret, timeout, allow_private, ca"),
    ],
)
def test_wrong_option_is_named_with_what_to_write(options: Any, text: str) -> None:
    if isinstance(options, dict) and text != "lacks 'secret'":
        options = {"url": "https://a.example", "secret": SECRET, **options}
    flaws = webhook_flaws({"orders": options})
    assert flaws.startswith("'orders': ")
    assert text in flaws
    assert "hunter2" not in flaws


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example.",
        "https://a_b.example:8443/x",
        "https://xn--n3h.example",
        "http://localhost:8080/",
        "http://127.0.0.1",
        "http://[::1]:8080/",
        "https://[2606:4700::1111]",
        "https://7.example",
    ],
)
def test_host_that_may_exist_passes(url: str) -> None:
    assert webhook_flaws({"orders": {"url": url, "secret": SECRET}}) == ""


@given(st.text("ab.-_019xX[]:%\\,/?&é", min_size=1, max_size=12))
def test_url_that_passes_can_be_posted_to(rest: str) -> None:
    url = f"https://{rest}"
    if webhook_flaws({"orders": {"url": url, "secret": SECRET}}) == "":
        parsed = httpx.URL(url)
        assert parsed.raw_host.decode("idna")
        assert parsed.copy_with(host="2606:4700::1111").netloc.startswith(b"[2606")


def test_options_that_are_right() -> None:
    options = {
        "url": "https://a.example/x?y=1",
        "secret": [SECRET, OTHER],
        "timeout": 3,
        "concurrency": 4,
        "allow_private": ["10.0.0.0/8"],
        "retry": {"attempts": 3, "initial": 0.5},
        "ca": "/x",
    }
    assert webhook_flaws({"orders": options}) == ""
    webhook = webhook_of(options)
    assert (webhook.endpoint.origin, webhook.endpoint.timeout) == ("https://a.example", 3)
    assert (webhook.concurrency, webhook.retry) == (4, {"attempts": 3, "initial": 0.5})
    assert repr(key_of(SECRET)) not in repr(webhook)
    assert webhook_flaws({"": {}}) == "'' is not the name of a service"


# -- what an answer means ------------------------------------------------------------------


def verdict(status: int, body: bytes = b"", problem: str = "", **headers: str) -> Verdict:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge(Answer(status, fields, body, problem), NOW)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"a": 1.10}\n', Reply('{"a": 1.10}')),
        (202, b"null", Reply("null")),
        (200, b"\xef\xbb\xbf[]", Reply("[]")),
        (204, b"", Reply(None)),
        (200, b" \n", Reply(None)),
        (400, b"", Refusal("rejected", "the service refused the message (400)")),
        (409, b"<html>", Refusal("rejected", "the service refused the message (409)")),
        (422, b'{"code": "x", "detail": "d", "title": "t"}', Refusal("x", "d")),
        (422, b'{"title": "t", "code": 5}', Refusal("rejected", "t")),
        (400, b"[1]", Refusal("rejected", "the service refused the message (400)")),
        (410, b"", Gone()),
    ],
)
def test_answer_that_ends_it(status: int, body: bytes, expected: Verdict) -> None:
    assert verdict(status, body) == expected


@pytest.mark.parametrize("status", [100, 199, 301, 302, 307, 401, 403, 404, 405, 413, 418, 429])
@pytest.mark.parametrize("body", [b"", b'{"code": "x", "detail": "d"}'])
def test_other_answers_are_tried_again(status: int, body: bytes) -> None:
    assert isinstance(verdict(status, body), TryAgain)
    assert isinstance(verdict(status + 100 if status > 418 else 500, body), TryAgain)


@pytest.mark.parametrize("body", [b"OK", b"{", b"NaN", b"\xff", b'{"a":1,"a":2}', b"[" * 100_000])
def test_success_with_a_body_that_is_not_json_is_tried_again(body: bytes) -> None:
    assert verdict(200, body) == TryAgain(
        "it answered 200, but the body is not JSON; to send no reply, answer 204"
    )


@pytest.mark.parametrize(
    ("value", "after"),
    [
        ("7", 7.0),
        ("0", None),
        ("-1", None),
        ("soon", None),
        ("²", None),
        ("9" * 400, 999999999999.0),
        ("Mon, 21 Sep 2026 14:13:30 GMT", 10.0),
        ("Mon, 21 Sep 2026 16:13:30 +0200", 10.0),
        ("Mon, 21 Sep 2026 14:13:10 GMT", None),
        ("Mon, 21 Sep 99999 14:13:10 GMT", None),
    ],
)
def test_retry_after_is_honoured(value: str, after: float | None) -> None:
    found = verdict(503, retry_after=value)
    assert isinstance(found, TryAgain)
    assert found.after == after


@pytest.mark.parametrize("zone", [" -0000", ""])
def test_retry_after_without_a_zone_is_not_in_that_of_django(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django sets the process's zone; in most of America, the message waited for an hour."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/Chicago")
        time.tzset()
        found = verdict(503, retry_after=f"Mon, 21 Sep 2026 14:13:30{zone}")
    time.tzset()
    assert isinstance(found, TryAgain)
    assert found.after == 10.0


@given(st.integers(100, 599), st.binary(max_size=60), st.text(max_size=20))
def test_no_answer_breaks_it(status: int, body: bytes, after: str) -> None:
    found = verdict(status, body, retry_after=after)
    if isinstance(found, Reply) and found.text is not None:
        json.loads(found.text)


# -- addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
        "64:ff9b:1::a00:1",
        "fec0::1",
        "::10.0.0.1",
        "::ffff:0:127.0.0.1",
        "5f00::1",
        "3fff::1",
    ],
)
def test_private_address_is_refused(address: str) -> None:
    assert not is_public(address)
    assert not is_allowed(address, [])


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_address_is_allowed(address: str) -> None:
    assert is_allowed(address, [])


def test_private_address_in_a_network_that_is_named_is_allowed() -> None:
    networks = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    allowed = {each: is_allowed(each, networks) for each in ("10.9.9.9", "fd00::2", "192.168.0.1")}
    assert allowed == {"10.9.9.9": True, "fd00::2": True, "192.168.0.1": False}
    assert is_allowed("::ffff:10.0.0.1", networks)


def resolving(host: str, *found: list[str], networks: Any = LOOPBACK) -> Addresses:
    """Return addresses of a host for which DNS has *found*, one after the other."""
    answers = iter(found)

    def lookup(*args: Any, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 80)) for each in next(answers)]

    return Addresses(host, 80, networks, lookup)


# -- one request ---------------------------------------------------------------------------


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


def endpoint(url: str, **options: Any) -> Endpoint:
    given = {"url": url, "secret": SECRET, "timeout": 5, "allow_private": ["127.0.0.0/8"]}
    return webhook_of({**given, **options}).endpoint


async def post(where: Endpoint, addresses: Addresses | None = None, size: int = 1000) -> Answer:
    sender = Sender(where, size, addresses)
    try:
        return await sender.post("msg_1", b'{"a": 1}')
    finally:
        await sender.close()


async def test_request_is_signed_and_complete(receiver: Receiver) -> None:
    receiver.answers = lambda request: answer(200, {"ok": True}, X_Y="z")
    found = await post(endpoint(receiver.url + "?q=1"))
    assert (found.status, found.body, found.headers["x-y"]) == (200, b'{"ok": true}', "z")
    (request,) = receiver.requests
    assert request.fields == {"a": 1}
    assert request.path == "/hook?q=1"
    assert request.headers["webhook-id"] == "msg_1"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("wsgateway/")
    assert request.headers["host"] == receiver.url.split("/")[2]


async def test_connections_are_used_again(receiver: Receiver) -> None:
    receiver.answers = lambda request: answer(200, {})
    sender = Sender(endpoint(receiver.url), 1000)
    for _ in range(3):
        await sender.post("msg_1", b"{}")
    await sender.close()
    assert len({request.peer for request in receiver.requests}) == 1


async def test_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.answers = lambda request: answer(302, Location="/elsewhere")
    assert (await post(endpoint(receiver.url))).status == 302
    assert [request.path for request in receiver.requests] == ["/hook"]


async def test_proxies_of_the_environment_are_not_asked(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would choose the address."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert (await post(endpoint(receiver.url))).status == 204


async def test_cookies_are_not_kept(receiver: Receiver) -> None:
    receiver.answers = lambda request: answer(204, Set_Cookie="a=b")
    sender = Sender(endpoint(receiver.url), 1000)
    for _ in range(2):
        await sender.post("msg_1", b"{}")
    await sender.close()
    assert not any("cookie" in request.headers for request in receiver.requests)


async def drip(*pieces: bytes, pause: float = 0.02) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(pause)


async def forever(piece: bytes, pause: float = 0.01) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield piece
        await asyncio.sleep(pause)


async def test_answer_byte_by_byte_is_read(receiver: Receiver) -> None:
    receiver.answers = lambda request: drip(
        *(bytes([each]) for each in answer(200, {"ok": 1})), pause=0.0
    )
    assert (await post(endpoint(receiver.url))).body == b'{"ok": 1}'


async def test_answer_in_chunks_of_one_byte_lets_others_have_a_turn(receiver: Receiver) -> None:
    """All that the kernel had was read in one go: half a second, in which nothing else ran."""
    turns, chunks = 0, 10_000
    body = [b"1\r\n \r\n" * 1000] * (chunks // 1000)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    receiver.answers = lambda request: drip(head, *body, b"0\r\n\r\n", pause=0.0)

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += bool(receiver.requests)

    task = asyncio.create_task(others())
    found = await post(endpoint(receiver.url), size=chunks)
    task.cancel()
    assert judge(found, NOW) == Reply(None)
    assert len(found.body) == chunks
    assert turns >= chunks // CHUNKS


async def test_answer_that_never_ends_ends_at_the_deadline(receiver: Receiver) -> None:
    """Each byte is in time; the whole is not."""
    receiver.answers = lambda request: forever(b"1\r\n \r\n")
    begin = asyncio.get_running_loop().time()
    with pytest.raises(PostFailed, match=r"http://127\.0\.0\.1:\d+ took longer than 0\.2 s"):
        await post(endpoint(receiver.url, timeout=0.2))
    assert asyncio.get_running_loop().time() - begin < 2


async def test_no_answer_at_all_ends_at_the_deadline(receiver: Receiver) -> None:
    receiver.answers = lambda request: asyncio.Event().wait()
    with pytest.raises(PostFailed, match="took longer"):
        await post(endpoint(receiver.url, timeout=0.2))


async def test_large_answer_is_not_read(receiver: Receiver) -> None:
    receiver.answers = lambda request: forever(b"3e8\r\n%b\r\n" % (b"x" * 1000), pause=0)
    found = await post(endpoint(receiver.url), size=5000)
    assert (found.status, found.body) == (200, b"")
    assert judge(found, NOW) == TryAgain("it answered 200, but the body has more than 5000 bytes")


async def test_compressed_answer_is_not_unpacked(receiver: Receiver) -> None:
    receiver.answers = lambda request: answer(200, b"x", Content_Encoding="gzip")
    found = await post(endpoint(receiver.url))
    assert "is compressed" in found.problem
    assert receiver.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "bytes_",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000,
        b"\x00" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
async def test_garbage_is_a_failure(receiver: Receiver, bytes_: bytes) -> None:
    receiver.answers = lambda request: drip(bytes_, pause=0)
    with pytest.raises(PostFailed, match=r"http://127\.0\.0\.1:\d+: "):
        await post(endpoint(receiver.url))


async def test_backend_that_does_not_run_is_named_as_the_reason() -> None:
    """httpx says "All connection attempts failed", which tells nobody where to look."""
    with pytest.raises(PostFailed, match=r"http://127\.0\.0\.1:\d+: connection refused; is it"):
        await post(endpoint(f"http://127.0.0.1:{free_port()}/"))


async def test_private_address_is_not_asked(receiver: Receiver) -> None:
    with pytest.raises(AddressRefused, match=r"127\.0\.0\.1, which is not public; if"):
        await post(endpoint(receiver.url, allow_private=[]))
    assert receiver.requests == []


async def test_name_that_dns_points_at_a_private_address_is_not_asked(receiver: Receiver) -> None:
    """A name of the attacker's, with the address of a server behind the firewall."""
    where = endpoint(receiver.url.replace("127.0.0.1", "hooks.example"), allow_private=[])
    names = resolving("hooks.example", ["127.0.0.1"], networks=[])
    with pytest.raises(AddressRefused, match=r"hooks\.example has the address 127\.0\.0\.1"):
        await post(where, names)
    assert receiver.requests == []


async def test_connection_goes_to_the_address_that_was_checked(receiver: Receiver) -> None:
    """With a second lookup, DNS could answer otherwise; the host is one that DNS does not know."""
    where = endpoint(receiver.url.replace("127.0.0.1", "hooks.invalid"))
    names = resolving("hooks.invalid", ["10.0.0.1", "127.0.0.1"], ["10.0.0.1"])
    sender = Sender(where, 1000, names)
    for _ in range(2):
        assert (await sender.post("msg_1", b"{}")).status == 204
    await sender.close()
    assert receiver.requests[0].headers["host"].startswith("hooks.invalid:")


async def test_next_address_is_tried_and_all_are_looked_up_again(receiver: Receiver) -> None:
    where = endpoint(receiver.url.replace("127.0.0.1", "hooks.invalid"))
    found = [["127.0.0.2"], ["127.0.0.2", "127.0.0.1"]]
    names = resolving("hooks.invalid", *found)
    sender = Sender(where, 1000, names)
    with pytest.raises(PostFailed):
        await sender.post("msg_1", b"{}")
    assert (await sender.post("msg_1", b"{}")).status == 204
    await sender.close()


@contextmanager
def dropping(address: str, port: int) -> Iterator[None]:
    """Listen at *address*, but drop the packets of those who connect."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((address, port))
        listening.listen(0)
        for _ in range(3):  # the kernel has no room for more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield


async def test_address_that_drops_packets_leaves_time_for_the_next(receiver: Receiver) -> None:
    """It took all the time there was, at each try, so nothing was ever posted."""
    where = endpoint(receiver.url.replace("127.0.0.1", "hooks.invalid"), timeout=2)
    names = resolving("hooks.invalid", ["127.0.0.2", "127.0.0.1"])
    sender = Sender(where, 1000, names)
    loop = asyncio.get_running_loop()
    took = []
    with dropping("127.0.0.2", receiver.port):
        for _ in range(2):
            begin = loop.time()
            assert (await sender.post("msg_1", b"{}")).status == 204
            took.append(loop.time() - begin)
            await asyncio.sleep(0)
    await sender.close()
    assert took[0] > 0.45
    assert took[1] < 0.45  # the one that worked is tried first


async def test_address_that_does_not_answer_is_tried_last_from_then_on(receiver: Receiver) -> None:
    """The connection is made, and no answer comes: the next post went there, too."""
    where = endpoint(receiver.url.replace("127.0.0.1", "hooks.invalid"), timeout=0.3)
    sender = Sender(where, 1000, resolving("hooks.invalid", ["127.0.0.2", "127.0.0.1"]))
    async with receiving(address="127.0.0.2", port=receiver.port) as silent:
        silent.answers = lambda request: asyncio.Event().wait()
        with pytest.raises(PostFailed, match=r"took longer than 0\.3 s"):
            await sender.post("msg_1", b"{}")
        assert (await sender.post("msg_1", b"{}")).status == 204
    await sender.close()


async def test_slow_name_servers_answer_counts_after_the_deadline_too(receiver: Receiver) -> None:
    """If the first name server is down, the second answers after 5 seconds. With a time-out below
    that, each post asked again, and none ever had an address."""
    asked, answered = 0, threading.Event()

    def lookup(*args: Any, **options: Any) -> list[Any]:
        nonlocal asked
        asked += 1
        answered.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]

    where = endpoint(receiver.url.replace("127.0.0.1", "hooks.invalid"), timeout=0.3)
    sender = Sender(where, 1000, Addresses("hooks.invalid", 80, LOOPBACK, lookup))
    with pytest.raises(PostFailed, match="took longer"):
        await sender.post("msg_1", b"{}")
    answered.set()
    found = await asyncio.gather(*(sender.post("msg_1", b"{}") for _ in range(3)))
    assert [each.status for each in found] == [204] * 3
    assert asked == 1
    await sender.close()


async def test_name_that_cannot_be_looked_up_is_a_failure(receiver: Receiver) -> None:
    def lookup(*args: Any, **options: Any) -> list[Any]:
        raise socket.gaierror("no such name")

    where = endpoint("https://hooks.invalid")
    with pytest.raises(PostFailed, match=r"https://hooks\.invalid: no such name"):
        await post(where, Addresses("hooks.invalid", 443, (), lookup))


@pytest.mark.parametrize("host", ["999.1.1.1", "a..b", f"{'a' * 64}.example", "[v1.x]"])
async def test_host_that_nothing_can_have_is_a_failure(host: str) -> None:
    """It was an error of another kind, which counted as a bug in wsgateway."""
    with pytest.raises(PostFailed, match=r"^https://"):
        await post(Endpoint(f"https://{host}", (key_of(SECRET),)))


async def test_name_that_httpx_cannot_decode_is_looked_up_as_it_is(receiver: Receiver) -> None:
    """It is a name in DNS; how httpx shows it to people does not matter."""
    where = endpoint(receiver.url.replace("127.0.0.1", "xn--n3h.example"))
    assert (await post(where, resolving("xn--n3h.example", ["127.0.0.1"]))).status == 204
    assert receiver.requests[0].headers["host"].startswith("xn--n3h.example:")


async def test_authority_without_a_certificate_is_a_failure_until_it_has_one(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server"))
    path = tmp_path / "ours.pem"
    path.write_text("")
    async with receiving(context) as receiver:
        sender = Sender(endpoint(receiver.url, ca=str(path)), 1000)
        with pytest.raises(PostFailed, match=r"https://127\.0\.0\.1:\d+: "):
            await sender.post("msg_1", b"{}")
        path.write_text(authority.path.read_text())
        assert (await sender.post("msg_1", b"{}")).status == 204
        await sender.close()


async def test_certificate_is_verified(tmp_path: Path) -> None:
    """For the host in the setting, although the connection goes to an address."""
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server"))
    async with receiving(context) as receiver:
        with pytest.raises(PostFailed, match="certificate verify failed"):
            await post(endpoint(receiver.url))
        ours = {"ca": str(authority.path)}
        assert (await post(endpoint(receiver.url, **ours))).status == 204
        other = endpoint(receiver.url.replace("127.0.0.1", "other.example"), **ours)
        names = resolving("other.example", ["127.0.0.1"])
        with pytest.raises(PostFailed, match="Hostname mismatch"):
            await post(other, names)
        assert len(receiver.requests) == 1


def test_requests_of_tests_are_what_they_seem() -> None:
    request = Request({}, b"{}", 1, "/")
    with pytest.raises(WebhookVerificationError):
        request.fields  # noqa: B018
