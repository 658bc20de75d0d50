"""Who reads a topic, as those who watch it are told."""

from __future__ import annotations

from wsgateway.protocol.readership import LISTED_AGAIN, MOST_LISTED, Present, Readership
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.protocol.v1.presence import encode_readers_changed

ANN, BOB = Inbox("chat", "ann"), Inbox("chat", "bob")


def test_who_is_missing_has_left_after_the_grace_period() -> None:
    readership = Readership(10.0)
    assert readership.found([ANN, BOB], 2, True, 0.0).users == frozenset({ANN, BOB})
    assert readership.found([BOB], 1, True, 5.0).users == frozenset({ANN, BOB})
    assert readership.due == 15.0
    assert readership.found([BOB], 1, True, 14.9).users == frozenset({ANN, BOB})
    assert readership.found([BOB], 1, True, 15.0).users == frozenset({BOB})
    assert readership.due is None


def test_who_returns_in_time_has_never_left() -> None:
    readership = Readership(10.0)
    first = readership.found([ANN], 1, True, 0.0)
    readership.left(ANN, 1.0)
    assert readership.found([], 0, True, 2.0) is first
    assert readership.found([ANN], 1, True, 10.0) is first
    assert readership.due is None


def test_client_that_was_told_to_return_later_has_until_then() -> None:
    readership = Readership(10.0)
    readership.found([ANN], 1, True, 0.0)
    readership.left(ANN, 1.0, 30.0)
    assert readership.found([], 0, True, 40.0).users == frozenset({ANN})
    assert readership.found([], 0, True, 41.0).users == frozenset()


def test_nobody_has_left_while_a_gateway_is_silent() -> None:
    readership = Readership(0.0)
    readership.found([ANN], 1, True, 0.0)
    present = readership.found([], 0, False, 5.0)
    assert (present.users, present.complete) == (frozenset({ANN}), False)
    unknown = readership.unknown()
    assert (unknown.users, unknown.complete) == (frozenset({ANN}), False)
    assert readership.found([], 0, True, 6.0 + 1.0).users == frozenset()


def test_too_many_are_counted_until_clearly_fewer_remain() -> None:
    readership = Readership(10.0)
    readership.found([ANN], 1, True, 0.0)
    assert readership.limit == MOST_LISTED
    present = readership.found(None, 900, True, 1.0)
    assert (present.users, present.sockets, readership.due) == (None, 900, None)
    readership.left(ANN, 2.0)
    assert readership.limit == LISTED_AGAIN
    assert readership.found([BOB], 1, True, 3.0).users == frozenset({BOB})
    assert readership.limit == MOST_LISTED


def test_number_of_sockets_is_no_news_where_users_are_named() -> None:
    readership = Readership(10.0)
    first = readership.found([ANN], 1, True, 0.0)
    assert readership.found([ANN], 2, True, 1.0) is first


def test_a_change_is_encoded_once_for_all_who_were_told_the_same() -> None:
    topic = Topic("room", "42")
    before = Present(frozenset([ANN]), 1, True)
    now = Present(frozenset([ANN, BOB]), 2, True)
    frame = encode_readers_changed(topic, before, now)
    assert encode_readers_changed(topic, before, now) is frame
    slow = Present(frozenset(), 0, True)
    assert '"joined":[{"service":"chat","user":"ann"}' in encode_readers_changed(topic, slow, now)
