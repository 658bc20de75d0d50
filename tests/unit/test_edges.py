"""Who came online, and who went offline."""

from __future__ import annotations

import random

from wsgateway.protocol.edges import RETRY, Edges
from wsgateway.protocol.subjects import Inbox

ANN, BOB = Inbox("orders", "ann"), Inbox("orders", "bob")


def test_only_the_first_socket_is_an_edge() -> None:
    edges = Edges(10.0)
    assert edges.came(ANN)
    assert not edges.came(ANN)


def test_the_last_socket_is_an_edge_after_the_grace_period() -> None:
    edges = Edges(10.0)
    edges.came(ANN)
    edges.left(ANN, 100.0)
    assert edges.due(109.9) == []
    assert edges.due(110.0) == [ANN]
    assert edges.found(ANN, False, 110.0)
    assert edges.due(1000.0) == []
    assert edges.came(ANN)


def test_who_comes_back_in_time_has_no_edge() -> None:
    edges = Edges(10.0)
    edges.came(ANN)
    edges.left(ANN, 100.0)
    assert not edges.came(ANN)
    assert edges.due(1000.0) == []


def test_another_socket_elsewhere_keeps_a_user_online() -> None:
    edges = Edges(10.0)
    edges.came(ANN)
    edges.left(ANN, 100.0)
    assert not edges.found(ANN, True, 110.0)
    assert edges.online == {ANN}
    assert edges.due(1000.0) == []


def test_who_comes_while_it_is_found_out_is_not_offline() -> None:
    edges = Edges(10.0)
    edges.came(ANN)
    edges.left(ANN, 100.0)
    assert edges.due(110.0) == [ANN]
    assert not edges.came(ANN)  # the question is under way
    assert not edges.found(ANN, False, 110.1)
    assert edges.online == {ANN}


def test_who_comes_and_leaves_while_it_is_found_out_has_a_grace_period_again() -> None:
    """The answer from before counted: the user went offline at once, or stayed online for good."""
    for online in (False, True, None):
        edges = Edges(10.0)
        edges.came(ANN)
        edges.left(ANN, 100.0)
        assert edges.due(110.0) == [ANN]
        assert not edges.came(ANN)  # the question is under way
        edges.left(ANN, 110.05)
        assert not edges.found(ANN, online, 110.1)
        assert edges.due(120.0) == []
        assert edges.due(120.05) == [ANN]
        assert edges.found(ANN, False, 120.05)


def test_the_grace_period_begins_when_the_client_was_told_to_come_back() -> None:
    edges = Edges(10.0)
    edges.came(ANN)
    edges.left(ANN, 100.0, back_in=20.0)
    edges.left(ANN, 101.0)  # another of the user's sockets
    assert edges.due(129.9) == []
    assert edges.due(130.0) == [ANN]


def test_what_nobody_knows_is_asked_again() -> None:
    edges = Edges(0.0)
    edges.came(ANN)
    edges.left(ANN, 100.0)
    assert not edges.found(ANN, None, 100.0)
    assert edges.due(100.0) == []
    assert edges.due(100.0 + RETRY) == [ANN]
    assert edges.found(ANN, False, 101.0)


def test_who_is_not_online_cannot_leave() -> None:
    edges = Edges(0.0)
    edges.left(ANN, 100.0)
    assert edges.due(1000.0) == []
    assert not edges.found(ANN, False, 1000.0)


def test_a_list_of_all_names_those_who_were_missed_on_either_side() -> None:
    edges = Edges(10.0)
    edges.came(ANN)
    assert edges.listed({BOB}, 100.0) == [BOB]
    assert edges.due(110.0) == [ANN]
    edges.listed(set(), 105.0)
    assert edges.due(110.0) == [ANN], "a second list does not extend the grace period"


def test_edges_alternate_whatever_happens() -> None:
    """First and last socket alternate for each user, and end where the truth is."""
    numbers, edges, now = random.Random(7), Edges(3.0), 0.0
    told: dict[Inbox, bool] = {}
    truth: dict[Inbox, int] = {}
    for _ in range(20_000):
        now += numbers.random()
        inbox = Inbox("s", str(numbers.randrange(5)))
        if numbers.random() < 0.5:
            truth[inbox] = truth.get(inbox, 0) + 1
            if numbers.random() < 0.9 and edges.came(inbox):  # or the event is lost
                assert not told.get(inbox)
                told[inbox] = True
        elif truth.get(inbox):
            truth[inbox] -= 1
            if numbers.random() < 0.9:
                edges.left(inbox, now)
        for due in edges.due(now):
            if edges.found(due, bool(truth.get(due)) if numbers.random() < 0.8 else None, now):
                assert told[due]
                told[due] = False
        if numbers.random() < 0.05:
            for missed in edges.listed({i for i, count in truth.items() if count}, now):
                assert edges.came(missed)
                assert not told.get(missed)
                told[missed] = True
    for missed in edges.listed({i for i, count in truth.items() if count}, now):
        edges.came(missed)
        told[missed] = True
    now += 10.0
    for due in edges.due(now):
        if edges.found(due, bool(truth.get(due)), now):
            told[due] = False
    assert {i for i, online in told.items() if online} == {i for i, count in truth.items() if count}
