"""Every log call of the package: lazy arguments, one line, and documented fields in ``extra``."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import ROOT
from wsgateway.logs import FIELDS, log_with_stack

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
CONCERNS = re.compile(r"\b(?:sockets?|websockets?|services?|users?|messages?|channels?|groups?)\b")
"""Words of a line that concerns somebody in particular; such a line has fields."""
CONCERN_NOBODY = {
    "NATS at %s does not report traced messages, so group_add cannot wait until the cluster's "
    "other servers know a group. Allow publishing to %s.>",
    "NATS at %s takes messages of %s bytes with their headers, so clients may send %s bytes only, "
    "not WSGATEWAY_MAX_MESSAGE_SIZE (%s). Set max_payload to %s or more in the server's "
    "configuration, or lower the setting",
    "cannot check the logins of open sockets now: %s",
    "could not store that a user's tokens are void since the password has changed, so they stay "
    "valid until they expire: %s",
    "refused more clients for other reasons (%d in %g s)",
    "channel layer: %s. To fix this, %s",
    "metrics of other processes at %s are not shown: %s. Set TMPDIR to a folder where this user "
    "may write, the same for all of them",
    "refusing all websockets: %s",
    "uvicorn takes websocket frames of %s bytes, so wsgateway.v1 clients may send messages of "
    "%s bytes only, not of WSGATEWAY_MAX_MESSAGE_SIZE (%s). Start uvicorn with --ws-max-size %s, "
    "or lower the setting",
}
"""Lines that have such a word, but are about all of them."""


class Call(NamedTuple):
    """A log call: where it is, its text if that is constant, its arguments, its fields."""

    where: str
    text: ast.expr
    args: list[ast.expr]
    extra: ast.expr | None

    @property
    def template(self) -> str | None:
        value = self.text.value if isinstance(self.text, ast.Constant) else None
        return value if isinstance(value, str) else None


def text_at(node: ast.Call) -> int | None:
    """Return which argument of *node* is the text of a log line; None if it logs nothing."""
    if isinstance(node.func, ast.Name):
        if node.func.id == "log":  # a method of a logger, or another function
            return 0 if isinstance(node.args[0], ast.Constant) else None
        return {"log_with_stack": 3, "_log_traceback": 3}.get(node.func.id)
    if not isinstance(node.func, ast.Attribute) or "logg" not in ast.unparse(node.func.value):
        return None
    if node.func.attr in LEVELS:
        return 0
    return 1 if node.func.attr == "log" else None


def constants(tree: ast.AST) -> list[ast.Assign]:
    """Return where names get constants, in the order of the lines."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    return sorted(found, key=lambda node: node.lineno)


def calls_in(source: str, where: str) -> Iterator[Call]:
    """Yield the log calls in *source*; a text with a name is the one that it got last."""
    tree = ast.parse(source)
    named = constants(tree)
    for node in ast.walk(tree):
        at = text_at(node) if isinstance(node, ast.Call) else None
        if at is None:
            continue
        assert isinstance(node, ast.Call)
        text = node.args[at]
        before = [
            each.value
            for each in named
            if each.lineno < node.lineno and ast.unparse(text) == ast.unparse(each.targets[0])
        ]
        extra = [each.value for each in node.keywords if each.arg == "extra"]
        if ast.unparse(node.func) == "_log_traceback":
            extra = [node.args[2]]
        yield Call(
            f"{where}:{node.lineno}",
            before[-1] if before else text,
            node.args[at + 1 :],
            extra[0] if extra else None,
        )


def calls() -> list[Call]:
    found: list[Call] = []
    for path in sorted((ROOT / "wsgateway").rglob("*.py")):
        if path.name != "logs.py":
            found += calls_in(path.read_text(), str(path.relative_to(ROOT)))
    return found


def wrong_fields(extra: ast.expr | None) -> list[str]:
    """Return the names in *extra* that are not documented, and what nobody can check."""
    if extra is None:
        return []
    if isinstance(extra, ast.Dict):
        wrong = []
        for key, value in zip(extra.keys, extra.values, strict=True):
            if key is None:
                wrong += wrong_fields(value)
            elif not isinstance(key, ast.Constant) or key.value not in FIELDS:
                wrong.append(ast.unparse(key))
        return wrong
    if isinstance(extra, ast.Call):
        extra = extra.func
    name = ast.unparse(extra).rpartition(".")[2]
    return [] if name.endswith("log_fields") else [ast.unparse(extra)]


def field_functions(source: str) -> Iterator[ast.Dict]:
    """Yield the dicts that functions and attributes named ``…log_fields`` are made of."""
    for node in ast.walk(ast.parse(source)):
        targets: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef) and node.name.endswith("log_fields"):
            yield from (each for each in ast.walk(node) if isinstance(each, ast.Dict))
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        value = getattr(node, "value", None)
        if value is not None and any(ast.unparse(t).endswith("log_fields") for t in targets):
            yield from (each for each in ast.walk(value) if isinstance(each, ast.Dict))


CALLS = calls()


def test_the_package_logs() -> None:
    assert len(CALLS) > 80


def test_texts_are_constant_and_their_arguments_lazy() -> None:
    """A text that is put together before the call costs time although nobody reads it."""
    assert [call.where for call in CALLS if call.template is None] == []
    for call in CALLS:
        if call.template is not None:
            wanted = len(re.findall(r"%[^a-zA-Z%]*[a-zA-Z]", call.template.replace("%%", "")))
            given = call.args[0] if call.args else None
            assert isinstance(given, ast.Starred) or len(call.args) == wanted, call.where


def test_texts_are_one_line() -> None:
    assert [call.where for call in CALLS if "\n" in (call.template or "")] == []


def test_texts_are_sentences_not_clauses_joined_by_semicolons() -> None:
    assert [call.where for call in CALLS if ";" in (call.template or "")] == []


def test_texts_of_exceptions_are_one_line() -> None:
    """A database's error has several lines; each would look like another event."""
    raw = {"exc", "error", "problem"}
    wrong = [
        call.where
        for call in CALLS
        for arg in call.args
        if isinstance(arg, ast.Name) and arg.id in raw
    ]
    assert not wrong, "pass reason_of(exc), or one_line(exc) for what a handler raised"


def test_every_field_is_documented() -> None:
    wrong = [(call.where, wrong_fields(call.extra)) for call in CALLS if wrong_fields(call.extra)]
    assert not wrong, "document the field in wsgateway/logs.py, or name what holds it …log_fields"
    for path in (ROOT / "wsgateway").rglob("*.py"):
        for found in field_functions(path.read_text()):
            assert wrong_fields(found) == [], path


def test_lines_that_concern_somebody_have_fields() -> None:
    wrong = [
        (call.where, call.template)
        for call in CALLS
        if call.template is not None
        and call.extra is None
        and CONCERNS.search(call.template)
        and call.template not in CONCERN_NOBODY
    ]
    assert not wrong


def test_every_exception_of_these_rules_is_needed() -> None:
    assert {call.template for call in CALLS if call.extra is None} >= CONCERN_NOBODY


def test_no_field_collides_with_an_attribute_of_log_records() -> None:
    """`logging` refuses such a name when the line is logged, at the worst moment."""
    record = logging.LogRecord("", 0, "", 0, "", (), None)
    assert not FIELDS.keys() & (vars(record).keys() | {"message", "asctime", "taskName"})


def test_the_table_lists_every_field() -> None:
    page = (ROOT / "docs/how-to/logging.md").read_text().partition("## Fields")[2]
    table = re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.M)
    assert table == list(FIELDS.items())


@pytest.mark.parametrize(
    ("source", "is_wrong"),
    [
        ('logger.info("x", extra={"service": 1})', False),
        ('logger.info("x", extra={**job_log_fields(job), "code": 1})', False),
        ('logger.info("x", extra=self.transport.log_fields)', False),
        ('logger.info("x", extra={"name": 1})', True),
        ('logger.info("x", extra={**other})', True),
        ('logger.log(level, "x", extra=other)', True),
    ],
)
def test_an_undocumented_field_is_found(source: str, is_wrong: bool) -> None:
    [call] = calls_in(source, "x")
    assert bool(wrong_fields(call.extra)) is is_wrong


def test_stack_follows_its_line(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("wsgateway.test")
    stack = '  File "x.py", line 1, in f\n    g()\n'
    log_with_stack(logger, logging.WARNING, stack, "it %s", "hangs", extra={"service": "orders"})
    log_with_stack(logger, logging.DEBUG, stack, "nobody reads this", extra={})
    [record] = caplog.records
    assert (record.getMessage(), record.filename) == ("it hangs", Path(__file__).name)
    assert record.funcName == "test_stack_follows_its_line"
    assert record.service == "orders"  # type: ignore[attr-defined]
    assert record.stack_info is not None
    assert record.stack_info.endswith("    g()")
