"""Names to subjects and back: two names never share one, and no name can widen one."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import (
    GROUP_SERVICE,
    Inbox,
    Subjects,
    Topic,
    decode_token,
    encode_token,
    parse_sender,
    sender_token,
)

TRICKY = [
    "ann@example.org",
    "a b",
    "*",
    ">",
    "ws.>",
    "a..b",
    ".a",
    "a.",
    ".",
    "k.z",
    "k-z",
    "k_z",
    "=",
    "=2E",
    "=41",
    "A",
    "jörg",
    "日本",
    "\u0663",
    "chat\n",
    "\r\nPUB x 1",
    "\t",
    "\0",
    "\0group",
    " ",
    "$JS.API.>",
    "_INBOX",
    "😀",
]
TOKEN = re.compile(r"[A-Za-z0-9_=-]+\Z")
names = st.one_of(
    st.sampled_from(TRICKY),
    st.text(min_size=1, max_size=60),
    st.text(alphabet="=.*> aA0k2E_-é", min_size=1, max_size=6),
).filter(lambda name: name.encode("utf-8", "replace").decode() == name)
KINDS = ("recv", "send", "live", "conn", "dead", "move")


@given(names)
def test_token_both_ways(name: str) -> None:
    token = encode_token(name)
    assert TOKEN.match(token)
    assert decode_token(token) == name


@given(names, names)
def test_two_names_never_share_a_token(one: str, other: str) -> None:
    assume(one != other)
    assert encode_token(one) != encode_token(other)


def test_tricky_names_are_all_different() -> None:
    assert len({encode_token(name) for name in TRICKY}) == len(TRICKY)


@given(st.text(alphabet="=.*>aA0k2EFf_- é\n", max_size=8))
def test_only_one_token_stands_for_a_name(token: str) -> None:
    """So a subject that somebody wrote by hand cannot reach a user by a second way."""
    try:
        name = decode_token(token)
    except NameRefused:
        return
    assert encode_token(name) == token


@pytest.mark.parametrize("token", ["", "=", "=4", "=4g", "=2e", "=41", "=FF", "a.b", "*", "é"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(NameRefused, match="subject token"):
        decode_token(token)


@pytest.mark.parametrize("name", ["", None, 7, b"ann", "\ud800", "x" * 256, "é" * 128])
def test_names_that_cannot_be(name: object) -> None:
    with pytest.raises(NameRefused):
        encode_token(name)


def test_longest_name_fits() -> None:
    assert decode_token(encode_token("*" * 255)) == "*" * 255


@given(names, names, st.sampled_from(KINDS), st.sampled_from(["ws", "acme.ws", "a.b-c.d_e"]))
def test_inbox_both_ways(service: str, user: str, kind: str, prefix: str) -> None:
    subjects, inbox = Subjects(prefix), Inbox(service, user)
    subject = getattr(subjects, kind)(inbox)
    assert subject.startswith(f"{prefix}.{kind}.")
    assert subject.count(".") == prefix.count(".") + 3
    assert not set("*> \r\n\t") & set(subject)
    assert subjects.parse(subject) == (kind, inbox)


@given(names, names, names, names)
def test_two_inboxes_never_share_a_subject_or_a_cursor(a: str, b: str, c: str, d: str) -> None:
    assume((a, b) != (c, d))
    subjects = Subjects()
    assert subjects.recv(Inbox(a, b)) != subjects.recv(Inbox(c, d))
    assert subjects.cursor_key(Inbox(a, b), "x") != subjects.cursor_key(Inbox(c, d), "x")
    assert subjects.cursor_key(Inbox("s", a), b) != subjects.cursor_key(Inbox("s", c), d)


@given(names, names, names)
def test_sender_to_another_service_both_ways(service: str, own: str, user: str) -> None:
    subjects, inbox = Subjects("acme.ws"), Inbox(own, user)
    for kind in (subjects.send, subjects.dead, subjects.move):
        subject = kind(inbox, service)
        assert subject.count(".") == 4
        assert not set("*> \r\n\t") & set(subject)
        assert subjects.parse_sent(subject) == (service, inbox)
    assert parse_sender(sender_token(inbox, service), service) == inbox


@given(names, names, names, names, names)
def test_two_senders_never_share_a_subject(service: str, a: str, b: str, c: str, d: str) -> None:
    """Joined by a dot, the user "x" of "a.b" and the user "b.x" of "a" were the same."""
    assume((a, b) != (c, d))
    subjects = Subjects()
    assert subjects.send(Inbox(a, b), service) != subjects.send(Inbox(c, d), service)


def test_names_of_senders() -> None:
    subjects, ann = Subjects(), Inbox("k.z", "ann@x")
    assert subjects.send(ann, "room") == "ws.send.room.k=2Ez==ann=40x"
    assert subjects.send(ann, "k.z") == subjects.send(ann) == "ws.send.k=2Ez.ann=40x"
    longest = Inbox("*" * 255, "*" * 255)
    assert len(subjects.send(longest, "é" * 127)) < 2400  # NATS takes 4,096 a line


@pytest.mark.parametrize(
    "subject",
    [
        "ws.send.room.==ann",
        "ws.send.room.orders==",
        "ws.send.room.==",
        "ws.send.room.orders===61",
        "ws.send.room.a==b==c",
        "ws.send.room.room==ann",
        "ws.send.*.orders==ann",
        "ws.send.orders==ann",
        "other.send.room.orders==ann",
        "ws.send.room.x.orders==ann",
        "ws.send.room.ann=",
        "ws.send.=.orders==ann",
    ],
)
def test_what_no_sender_has_is_refused(subject: str) -> None:
    with pytest.raises(NameRefused):
        Subjects().parse_sent(subject)


@given(st.text(alphabet="ws.send=ro*> 41", max_size=30))
def test_parse_sent_returns_or_refuses(subject: str) -> None:
    subjects = Subjects()
    try:
        service, inbox = subjects.parse_sent(f"ws.send.{subject}")
    except NameRefused:
        return
    assert subjects.send(inbox, service) == f"ws.send.{subject}"


@given(names, names)
def test_group_never_is_a_users(group: str, user: str) -> None:
    subjects = Subjects()
    durable = Inbox(GROUP_SERVICE, group)
    kind, parsed = subjects.parse(subjects.recv(durable))
    assert (kind, parsed.user) == ("recv", group)
    assert parsed.service is GROUP_SERVICE
    # A client that names itself like that gets an address of its own.
    assert subjects.recv(Inbox("\0" + "group", user)) != subjects.recv(Inbox(GROUP_SERVICE, user))
    assert subjects.group(group).count(".") == 2


@pytest.mark.parametrize(
    "subject",
    [
        "ws.recv.orders",
        "ws.recv.orders.ann.x",
        "other.recv.orders.ann",
        "wsx.recv.orders.ann",
        "ws.recv..ann",
        "ws.recv.*.ann",
        "ws.recv.orders.>",
        "ws.recv.orders.=41",
        "",
    ],
)
def test_other_subjects_are_refused(subject: str) -> None:
    with pytest.raises(NameRefused):
        Subjects().parse(subject)


@given(st.text(alphabet="ws.recvand=*> 41", max_size=30))
def test_parse_returns_or_refuses(subject: str) -> None:
    try:
        kind, inbox = Subjects().parse(subject)
    except NameRefused:
        return
    assert getattr(Subjects(), kind)(inbox) == subject


@pytest.mark.parametrize("prefix", ["", "a b", "ws.", ".ws", "ws.*", ">", "ws\n", "é", "a=b"])
def test_prefixes_that_cannot_be(prefix: str) -> None:
    with pytest.raises(NameRefused, match="prefix"):
        Subjects(prefix)


def test_names_below_a_prefix() -> None:
    subjects, ann = Subjects("acme.ws-1"), Inbox("k.z", "ann@x")
    assert subjects.recv(ann) == "acme.ws-1.recv.k=2Ez.ann=40x"
    assert subjects.cursor_key(ann, "default") == "k=2Ez.ann=40x.default"
    assert subjects.stream("recv") == "ACME_WS_1_RECV"
    assert subjects.all_of("send") == "acme.ws-1.send.*.*"
    assert subjects.all_of("send", "k.z") == "acme.ws-1.send.k=2Ez.*"
    assert subjects.group("a..b") == "acme.ws-1.recv.a=2E=2Eb"
    assert subjects.channel("x") == "acme.ws-1.chan.x"
    assert subjects.process("p!") == "acme.ws-1.proc.p=21"


short_names = names.filter(lambda name: len(name.encode()) <= 60)


@given(short_names, short_names)
def test_two_services_never_share_a_stream_even_where_case_does_not_count(
    one: str, other: str
) -> None:
    subjects = Subjects("acme.ws-1")
    assume(one != other)
    assert subjects.queue(one).lower() != subjects.queue(other).lower()


@given(short_names)
def test_service_is_read_back_from_its_stream(service: str) -> None:
    subjects = Subjects("acme.ws-1")
    queue = subjects.queue(service)
    assert queue.startswith("ACME_WS_1_SEND_")
    assert TOKEN.match(queue)
    assert subjects.service_of(queue) == service
    subjects.require_service(service)


@given(names, names, names, names)
def test_two_topics_never_share_a_subject(a: str, b: str, c: str, d: str) -> None:
    assume((a, b) != (c, d))
    subjects = Subjects()
    for kind in (subjects.topic, subjects.topic_live, subjects.cast):
        assert kind(Topic(a, b)) != kind(Topic(c, d))
    assert subjects.topic_live(Topic(a, b)) != subjects.live(Inbox(c, d))


@given(names, names)
def test_topic_is_not_the_inbox_of_the_same_names(service: str, name: str) -> None:
    topic, inbox = Topic(service, name), Inbox(service, name)
    assert len({topic: 1, inbox: 2}) == 2


@given(names.filter(lambda name: "." not in name), names)
def test_topic_both_ways(service: str, name: str) -> None:
    assert Topic.parse(str(Topic(service, name))) == Topic(service, name)


@pytest.mark.parametrize("text", ["", "room", ".42", "room.", ".", None, 42, "room.\udc80"])
def test_what_names_no_topic_is_refused(text: object) -> None:
    with pytest.raises(NameRefused):
        Topic.parse(text)  # type: ignore[arg-type]


@given(short_names)
def test_service_of_topics_is_read_back_from_its_stream(service: str) -> None:
    subjects = Subjects("acme.ws-1")
    stream = subjects.topic_stream(service)
    assert subjects.service_of_topics(stream) == service
    assert subjects.service_of(stream) is None
    assert subjects.service_of_topics(subjects.queue(service)) is None


@given(st.text(max_size=20))
def test_other_names_are_no_service(name: str) -> None:
    subjects = Subjects()
    service = subjects.service_of(name)
    assert service is None or subjects.queue(service) == name
    service = subjects.service_of(f"WS_SEND_{name}")
    assert service is None or subjects.queue(service) == f"WS_SEND_{name}"


@pytest.mark.parametrize("service", ["x" * 248, "A" * 83, "ä" * 42])
def test_service_that_no_stream_or_consumer_can_have_is_refused(service: str) -> None:
    """Such names were accepted, and their messages never served."""
    with pytest.raises(NameRefused, match="NATS, which allows 255; use a shorter one"):
        Subjects().require_service(service)
