"""wsgateway.v1 on the wire: what is parsed, what is refused, what is written."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.support import ROOT
from wsgateway.exceptions import NameRefused
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import (
    Accepted,
    Ack,
    ClientMessage,
    ErrorCode,
    Ping,
    Pong,
    ProtocolError,
    Reason,
    Refused,
    Resume,
    ServerMessage,
    Unknown,
    Welcome,
    gateway,
)

SCHEMA = json.loads((ROOT / "wsgateway/static/wsgateway/protocol.schema.json").read_text())

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
IDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64)
OFFSETS = st.integers(0, protocol.MAX_OFFSET)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
WELCOME: dict[str, Any] = {
    "connection": "c",
    "service": "s",
    "user": "ü",
    "device": "d",
    "epoch": "2026-01-01T00:00:00Z",
    "offset": 7,
    "recovered": True,
    "ping": 25.0,
    "window": 256,
    "max_message_size": 1_000_000,
}


def validator(direction: str) -> Draft202012Validator:
    return Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{direction}"})


CLIENT, SERVER = validator("client"), validator("server")


def refusal(text: str | bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_client(text)
    return caught.value


@pytest.mark.parametrize(
    "module", ["wsgateway.protocol.v1", "wsgateway.client.session", "wsgateway.protocol.backoff"]
)
def test_importing_the_pure_modules_pulls_in_no_io(module: str) -> None:
    heavy = {"django", "asyncio", "channels", "nats", "websockets"}
    script = f"import sys, {module}; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("", "")


# -- negotiation and resuming ------------------------------------------------------------


def test_choose_subprotocol_takes_ours_among_others() -> None:
    assert protocol.choose_subprotocol(["wsgateway.v9", "wsgateway.v1"]) == "wsgateway.v1"
    assert protocol.choose_subprotocol(["graphql-ws"]) is None
    assert protocol.choose_subprotocol([]) is None


def test_choose_subprotocol_prefers_the_best_that_both_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway, "SUBPROTOCOLS", ("wsgateway.v2", "wsgateway.v1"))
    assert protocol.choose_subprotocol(["wsgateway.v1", "wsgateway.v2"]) == "wsgateway.v2"
    assert protocol.choose_subprotocol(["wsgateway.v1"]) == "wsgateway.v1"


@pytest.mark.parametrize(
    ("query", "resume"),
    [
        (b"", Resume()),
        (b"token=x&device=", Resume()),
        (b"device=phone%202", Resume("phone 2")),
        (b"device=a&epoch=2026%2B1&offset=7", Resume("a", "2026+1", 7)),
        (b"epoch=e&offset=0", Resume(None, "e", 0)),
        (b"epoch=e&offset=0&inbox=m", Resume(None, "e", 0, "m")),
        (b"inbox=m", Resume()),
        (b"epoch=e&offset=0&inbox=", Resume(None, "e", 0)),
    ],
)
def test_parse_resume(query: bytes, resume: Resume) -> None:
    assert protocol.parse_resume(query) == resume


@given(*[st.text(min_size=1, max_size=9)] * 4)
@example("a.b", "c", "a", "b.c")
@example("orders", "ann", "orders", "ann")
def test_a_position_is_of_one_inbox(
    service: str, user: str, other_service: str, other_user: str
) -> None:
    inbox, other = Inbox(service, user), Inbox(other_service, other_user)
    try:
        claim = Resume(None, "2026-11-23T21:00:00Z", 7, protocol.mark_of(inbox))
        assert claim.is_of(inbox)
        assert claim.is_of(other) is (inbox == other)
    except NameRefused:
        return


@pytest.mark.parametrize("claim", [Resume(), Resume(None, "e", 7), Resume("phone", inbox="m")])
def test_a_position_without_an_inbox_is_of_any(claim: Resume) -> None:
    """A client of an earlier version does not send it, and nor does one of an earlier gateway."""
    assert claim.is_of(Inbox("orders", "ann"))


@pytest.mark.parametrize("lives", range(3))
def test_an_epoch_is_the_stream_s(lives: int) -> None:
    """An earlier gateway compares it, so as long as it need not be another, it is the same."""
    name = protocol.name_epoch("2026-11-23T21:00:00Z", lives)
    assert (name == "2026-11-23T21:00:00Z") is (lives == 0)
    assert Resume(None, name, 7).stream_epoch == "2026-11-23T21:00:00Z"


@pytest.mark.parametrize(
    "query",
    [
        b"offset=7",
        b"epoch=e",
        b"epoch=&offset=7",
        b"epoch=e&offset=",
        b"epoch=e&offset=-1",
        b"epoch=e&offset=1.5",
        b"epoch=e&offset=%D9%A3",  # a digit, but not an ASCII one
        b"epoch=e&offset=9007199254740992",
        b"epoch=e&offset=" + b"1" * 5000,
        b"epoch=e&offset=7&offset=7",
        b"epoch=e&offset=7&inbox=a&inbox=a",
        b"device=%ff",
        b"\xff",
        b"a&" * 100,
        b"epoch=" + b"e" * 129 + b"&offset=1",
    ],
)
def test_parse_resume_refuses(query: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_resume(query)
    assert caught.value.fatal


@given(st.binary(max_size=200))
def test_parse_resume_raises_nothing_else(query: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        protocol.parse_resume(query)


# -- from the client ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "frame"),
    [
        ({"data": "héllo"}, Frame("héllo".encode(), True)),
        ({"data": ""}, Frame(b"", True)),
        ({"data": None}, Frame(b"null", True)),
        ({"data": {"a": [1, 2.5, "ü"]}}, Frame('{"a":[1,2.5,"ü"]}'.encode(), True)),
        ({"data": 2**70}, Frame(b"1180591620717411303424", True)),
        ({"bytes": "AP8="}, Frame(b"\x00\xff", False)),
        ({"bytes": ""}, Frame(b"", False)),
        ({"data": "x", "unknown": 1}, Frame(b"x", True)),
    ],
)
def test_client_message(fields: dict[str, Any], frame: Frame) -> None:
    text = json.dumps({"type": "message", "id": "c1", **fields})
    assert protocol.parse_client(text) == ClientMessage("c1", frame)


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("fields", "trace"),
    [
        ({"traceparent": PARENT}, {"traceparent": PARENT}),
        (
            {"traceparent": PARENT, "tracestate": "a=b,c=d"},
            {"traceparent": PARENT, "tracestate": "a=b,c=d"},
        ),
        ({"traceparent": PARENT, "tracestate": "a\nNats-Rollup: all"}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": "x" * 513}, {"traceparent": PARENT}),
        ({"traceparent": PARENT, "tracestate": ""}, {"traceparent": PARENT}),
        ({"tracestate": "a=b"}, None),
        ({"traceparent": PARENT + "\r\nNats-Rollup: all"}, None),
        ({"traceparent": PARENT.upper()}, None),
        ({"traceparent": "ff" + PARENT[2:]}, None),
        ({"traceparent": PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32)}, None),
        ({"traceparent": PARENT.replace("b7ad6b7169203331", "0" * 16)}, None),
        ({"traceparent": ""}, None),
    ],
)
def test_trace_context_becomes_headers_or_is_ignored(
    fields: dict[str, Any], trace: dict[str, str] | None
) -> None:
    text = json.dumps({"type": "message", "id": "c1", "data": "x", **fields})
    assert protocol.parse_client(text) == ClientMessage("c1", Frame(b"x", True), False, trace)


def test_client_ack_ping_pong() -> None:
    assert protocol.parse_client('{"type":"ack","offset":7}') == Ack(7)
    for epoch in ("e1", "2026~3", 'a"\\b ü', ""):
        for separators in ((",", ":"), (", ", ": ")):
            fields = {"type": "ack", "offset": 7, "epoch": epoch}
            text = json.dumps(fields, separators=separators)
            assert protocol.parse_client(text) == Ack(7, epoch)
    assert protocol.parse_client('{"type":"ack","offset":7,"epoch":null}') == Ack(7)
    assert protocol.parse_client('{"type":"ping"}') == Ping()
    assert protocol.parse_client('{"type":"pong","x":1}') == Pong()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        '"message"',
        "{}",
        '{"type":7}',
        '{"type":"ack"}',
        '{"type":"ack","offset":-1}',
        '{"type":"ack","offset":true}',
        '{"type":"ack","offset":1.0}',
        '{"type":"ack","offset":"1"}',
        '{"type":"ack","offset":9007199254740992}',
        '{"type":"ack","offset":1,"offset":2}',
        '{"type":"ack","offset":1,"epoch":2}',
        '{"type":"ack","offset":' + "1" * 5000 + "}",
        '{"type":"message","id":"a","data":"x","traceparent":1}',
        '{"type":"message","id":"a","data":"x","traceparent":null}',
        '{"type":"message","id":"a","data":"x","tracestate":1}',
        '{"type":"message","data":"x"}',
        '{"type":"message","id":"","data":"x"}',
        '{"type":"message","id":"a b","data":"x"}',
        '{"type":"message","id":"a\\r\\nb","data":"x"}',
        '{"type":"message","id":"\\u00fc","data":"x"}',
        '{"type":"message","id":7,"data":"x"}',
        '{"type":"message","id":"' + "a" * 65 + '","data":"x"}',
        '{"type":"message","id":"a"}',
        '{"type":"message","id":"a","data":"x","bytes":""}',
        '{"type":"message","id":"a","data":"\\ud800"}',
        '{"type":"message","id":"a","data":{"x":"\\ud800"}}',
        '{"type":"message","id":"a","data":NaN}',
        '{"type":"message","id":"a","data":-Infinity}',
        '{"type":"message","id":"a","data":1e999}',
        '{"type":"message","id":"a","data":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"type":"message","id":"a","bytes":"*"}',
        '{"type":"message","id":"a","bytes":"AP8"}',
        '{"type":"message","id":"a","bytes":"AP8=\\n"}',
        '{"type":"message","id":"a","bytes":"\\u00fc"}',
        '{"type":"message","id":"a","bytes":[0]}',
    ],
    ids=lambda text: text[:50],
)
def test_malformed_frames_are_answered_and_the_socket_stays(text: str) -> None:
    error = refusal(text)
    assert error.code is ErrorCode.BAD_REQUEST
    assert not error.fatal
    assert SERVER.is_valid(json.loads(protocol.encode_error(error.id, error.code, str(error))))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_refusal_says_what_json_does_not_have(value: str) -> None:
    """It said "not a JSON object, or too deep"."""
    text = str(refusal('{"type":"message","id":"a","data":{"x":' + value + "}}"))
    assert text == "the frame is refused: NaN and Infinity are not JSON"
    text = str(refusal('{"type":"ack","offset":1,"offset":2}'))
    assert text == "the frame is refused: a name is given twice"


def test_refusal_names_the_message_it_refuses() -> None:
    assert refusal('{"type":"message","id":"c1","bytes":"*"}').id == "c1"
    error = refusal('{"type":"weather","id":"c2"}')
    assert (error.id, error.code, str(error)) == (
        "c2",
        ErrorCode.UNKNOWN_TYPE,
        "unknown type 'weather'",
    )


def test_refusal_never_repeats_the_payload() -> None:
    error = refusal('{"type":"message","id":"c1","data":"hunter2","bytes":"hunter2"}')
    assert "hunter2" not in f"{error} {error.args}"


def test_binary_frame_is_fatal() -> None:
    error = refusal(b'{"type":"ping"}')
    assert error.fatal
    assert str(error) == "binary frames are not part of wsgateway.v1; send bytes as base64"


@given(st.text() | JSON.map(json.dumps))
def test_parsers_raise_nothing_else(text: str) -> None:
    for parse in (protocol.parse_client, protocol.parse_server):
        try:
            parse(text)
        except ProtocolError as exc:
            protocol.encode_error(exc.id, exc.code, str(exc)).encode()


FIELDS = ("id", "data", "bytes", "offset", "time", "code", *WELCOME)


@given(
    st.sampled_from(["message", "ack", "error", "welcome", "x"]),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5),
)
def test_parsers_raise_nothing_else_for_known_types(kind: str, fields: dict[str, Any]) -> None:
    text = json.dumps({"type": kind, **fields})
    for parse in (protocol.parse_client, protocol.parse_server):
        try:
            parse(text)
        except ProtocolError as exc:
            protocol.encode_error(exc.id, exc.code, str(exc)).encode()


# -- both ways ---------------------------------------------------------------------------


@given(IDS, TEXT.map(Frame.of) | st.binary().map(Frame.of))
def test_client_message_round_trip(id: str, frame: Frame) -> None:
    text = protocol.encode_client_message(id, frame)
    assert protocol.parse_client(text) == ClientMessage(id, frame)
    CLIENT.validate(json.loads(text))


def test_client_message_with_a_trace_context_round_trip() -> None:
    trace = {"traceparent": PARENT, "tracestate": 'a="b"'}
    for request in (False, True):
        text = protocol.encode_client_message("a", Frame(b"x", True), request=request, trace=trace)
        assert protocol.parse_client(text) == ClientMessage("a", Frame(b"x", True), request, trace)
        CLIENT.validate(json.loads(text))


@given(OFFSETS, TEXT, TEXT.map(Frame.of) | st.binary().map(Frame.of))
def test_server_message_round_trip(offset: int, time: str, frame: Frame) -> None:
    text = protocol.encode_message(offset, time, frame.payload, frame.text)
    assert protocol.parse_server(text) == ServerMessage(offset, time or None, frame)
    SERVER.validate(json.loads(text))


@given(OFFSETS, TEXT.filter(lambda text: len(text) <= protocol.MAX_EPOCH))
def test_client_ack_round_trip(offset: int, epoch: str) -> None:
    text = protocol.encode_client_ack(offset, epoch)
    assert protocol.parse_client(text) == Ack(offset, epoch)
    CLIENT.validate(json.loads(text))


@given(IDS)
def test_server_ack_round_trip(id: str) -> None:
    text = protocol.encode_ack(id)
    assert protocol.parse_server(text) == Accepted(id)
    SERVER.validate(json.loads(text))


@pytest.mark.parametrize("code", ErrorCode)
def test_error_round_trip(code: ErrorCode) -> None:
    for id in (None, "c1"):
        text = protocol.encode_error(id, code, 'a "b" ü')
        assert protocol.parse_server(text) == Refused(id, code, 'a "b" ü', code.temporary)
        SERVER.validate(json.loads(text))
    text = protocol.encode_error("c1", code, "m", not code.temporary)
    assert protocol.parse_server(text) == Refused("c1", code, "m", not code.temporary)


@pytest.mark.parametrize("reason", [None, *Reason])
def test_welcome_round_trip(reason: Reason | None) -> None:
    fields = {**WELCOME, "recovered": reason is None, "reason": reason}
    text = protocol.encode_welcome(**fields)
    assert protocol.parse_server(text) == Welcome(**fields)
    assert ("reason" in json.loads(text)) == (reason is not None)
    SERVER.validate(json.loads(text))


def test_ping_and_pong_both_ways() -> None:
    for text, parsed in ((protocol.encode_ping(), Ping()), (protocol.encode_pong(), Pong())):
        assert protocol.parse_client(text) == protocol.parse_server(text) == parsed
        CLIENT.validate(json.loads(text))
        SERVER.validate(json.loads(text))


@pytest.mark.parametrize("name", WELCOME)
def test_welcome_without_a_field_is_refused(name: str) -> None:
    fields = {"type": "welcome", **WELCOME}
    del fields[name]
    with pytest.raises(ProtocolError, match=name):
        protocol.parse_server(json.dumps(fields))
    assert not SERVER.is_valid(fields)


def test_client_ignores_types_of_later_versions() -> None:
    assert protocol.parse_server('{"type":"weather"}') == Unknown("weather")


def test_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


# -- closing -----------------------------------------------------------------------------


@given(st.floats(0, protocol.MAX_AFTER))
def test_closing(after: float) -> None:
    parsed = protocol.parse_server(protocol.encode_closing(after))
    assert isinstance(parsed, protocol.Closing)
    assert parsed.reconnect_after == pytest.approx(after, abs=0.001)
    SERVER.validate(json.loads(protocol.encode_closing(after)))


@pytest.mark.parametrize("after", [None, True, "1", -1, 3601])
def test_closing_with_an_impossible_delay(after: object) -> None:
    with pytest.raises(ProtocolError, match="reconnect_after"):
        protocol.parse_server(json.dumps({"type": "closing", "reconnect_after": after}))


@given(token=IDS | st.just("x" * protocol.MAX_TOKEN))
def test_refresh_round_trip(token: str) -> None:
    text = protocol.encode_refresh(token)
    assert protocol.parse_client(text) == protocol.Refresh(token)
    assert CLIENT.is_valid(json.loads(text))


@pytest.mark.parametrize(
    "token",
    [None, "", 7, True, ["t"], "a b", "ü", "\ud83d", "x" * (protocol.MAX_TOKEN + 1)],
)
def test_token_that_cannot_be_one_is_unauthorized(token: object) -> None:
    frame = {"type": "refresh", "token": token}
    assert refusal(json.dumps(frame)).code is ErrorCode.UNAUTHORIZED
    assert not CLIENT.is_valid(frame)


@pytest.mark.parametrize(("seconds", "told"), [(None, None), (0, 0.0), (-1, 0.0), (1.23456, 1.235)])
def test_refreshed_round_trip(seconds: float | None, told: float | None) -> None:
    text = protocol.encode_refreshed(seconds)
    assert protocol.parse_server(text) == protocol.Refreshed(told)
    assert SERVER.is_valid(json.loads(text))


@pytest.mark.parametrize("end", ['"1"', "true", "-1", "1e999", "1" + "0" * 400, "{}"])
def test_end_that_is_no_number_of_seconds_is_refused(end: str) -> None:
    with pytest.raises(ProtocolError, match="expires_in must be a number of seconds"):
        protocol.parse_server(f'{{"type":"refreshed","expires_in":{end}}}')


def test_token_is_in_no_repr() -> None:
    """What an endpoint holds may end up in a traceback with local variables, or in a log."""
    assert "secret" not in repr(protocol.Refresh("secret"))
