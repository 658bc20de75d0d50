"""Which series and labels a query names: PromQL, as far as our dashboard and alert rules use it.

A query that is not PromQL raises `ValueError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""\s*(?:
      (?P<duration>(?:\d+(?:ms|[smhdwy]))+)
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<name>[A-Za-z_][\w:]*)
    | (?P<operator>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){}\[\],:])
    )""",
    re.VERBOSE,
)
FUNCTIONS = {
    *("abs", "absent", "clamp_min", "ceil", "delta", "deriv", "histogram_quantile", "increase"),
    *("irate", "max_over_time", "min_over_time", "rate", "round", "scalar", "time", "vector"),
}
AGGREGATES = {"avg", "count", "max", "min", "sum", "topk", "bottomk", "quantile"}
BINARY = [
    ["or"],
    ["and", "unless"],
    ["==", "!=", "<=", ">=", "<", ">"],
    ["+", "-"],
    ["*", "/", "%"],
    ["^"],
]
"""Operators by rising precedence."""


@dataclass
class Selector:
    """One series that a query names."""

    metric: str
    matchers: list[tuple[str, str, str]] = field(default_factory=list)
    """Label, operator, value."""


@dataclass
class Query:
    """What a query names.

    Attributes:
        selectors: The series.
        groups: For each ``by``, ``without``, ``on`` …: its labels, and the series it is about.
    """

    selectors: list[Selector] = field(default_factory=list)
    groups: list[tuple[list[str], list[Selector]]] = field(default_factory=list)


def parse(text: str) -> Query:
    """Return what *text* names."""
    parser = _Parser(text)
    parser.expression()
    if parser.peek():
        raise ValueError(f"{parser.peek()!r} is left over in {text!r}")
    return parser.query


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.query = Query()
        self.tokens: list[tuple[str, str]] = []
        position, text = 0, text.rstrip()
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None:
                raise ValueError(f"no PromQL at {text[position:]!r}")
            self.tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
            position = match.end()
        self.at = 0

    def peek(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.tokens[at][1] if at < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if not token or (wanted and token not in wanted):
            raise ValueError(f"{wanted} expected, not {token!r}, in {self.text!r}")
        self.at += 1
        return token

    def take_kind(self, kind: str) -> str:
        if self.kind() != kind:
            raise ValueError(f"a {kind} expected, not {self.peek()!r}, in {self.text!r}")
        return self.take()

    def expression(self, level: int = 0) -> None:
        if level == len(BINARY):
            self.unary()
            return
        first = len(self.query.selectors)
        self.expression(level + 1)
        while self.peek() in BINARY[level]:
            self.take()
            begin = len(self.query.groups)
            while self.peek() in ("on", "ignoring", "group_left", "group_right", "bool"):
                if self.take() != "bool":
                    self.query.groups.append((self.labels(), []))
            self.expression(level + 1)
            for _, about in self.query.groups[begin : begin + 1]:  # on, ignoring: of both sides
                about += self.query.selectors[first:]

    def unary(self) -> None:
        if self.peek() in ("-", "+"):
            self.take()
        self.primary()
        if self.peek() == "[":
            self.take("[")
            self.take_kind("duration")
            if self.peek() == ":":
                self.take(":")
                if self.kind() == "duration":
                    self.take()
            self.take("]")
        if self.peek() == "offset":
            self.take()
            self.take_kind("duration")

    def primary(self) -> None:
        if self.kind() in ("number", "string"):
            self.take()
        elif self.peek() == "(":
            self.parenthesized(self.expression)
        elif self.peek() in AGGREGATES:
            self.aggregate()
        elif self.kind() == "name" and self.peek(1) == "(":
            if self.take() not in FUNCTIONS:
                raise ValueError(f"unknown function in {self.text!r}")
            self.parenthesized(self.expression)
        else:
            self.selector()

    def parenthesized(self, item: Callable[[], None]) -> None:
        self.take("(")
        while self.peek() != ")":
            item()
            if self.peek() != ")":
                self.take(",")
        self.take(")")

    def aggregate(self) -> None:
        self.take()
        first, labels = len(self.query.selectors), None
        if self.peek() in ("by", "without"):
            self.take()
            labels = self.labels()
        self.parenthesized(self.expression)
        if labels is None and self.peek() in ("by", "without"):
            self.take()
            labels = self.labels()
        if labels is not None:
            self.query.groups.append((labels, self.query.selectors[first:]))

    def labels(self) -> list[str]:
        found: list[str] = []
        self.parenthesized(lambda: found.append(self.take_kind("name")))
        return found

    def selector(self) -> None:
        selector = Selector(self.take_kind("name"))
        self.query.selectors.append(selector)
        if self.peek() != "{":
            return
        self.take("{")
        while self.peek() != "}":
            label = self.take_kind("name")
            operator = self.take("=", "!=", "=~", "!~")
            selector.matchers.append((label, operator, self.take_kind("string")[1:-1]))
            if self.peek() != "}":
                self.take(",")
        self.take("}")
