"""The OpenAPI document against what the server API does."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from django.core.wsgi import get_wsgi_application
from django.test import Client
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from tests.docs.server_api import PREFIX, document
from tests.integration.backends import Caller, api_memory, caller
from tests.support import ROOT

__all__ = ["api_memory", "caller"]  # fixtures

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.api_site.urls")]

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
DOCUMENT = document()
OPERATIONS = [
    (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
]
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SCHEMA.app = get_wsgi_application()
generated = hypothesis.settings(
    max_examples=6,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MODES = list(schemathesis.GenerationMode)
SERVICES = {True: "room", False: "orders"}
"""By whether a topic is named; one in a thousand random services would exist."""


def aim(fields: Any) -> None:
    """Let a generated request name services that exist."""
    if isinstance(fields, dict):
        if "service" in fields:
            fields["service"] = SERVICES["topic" in fields]
        for each in fields.get("messages") or ():
            aim(each)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_operation_answers_anything_as_its_document_says(
    caller: Caller, settings: Any, method: str, path: str
) -> None:
    """Generated requests, sensible ones and nonsense, with a key that may do everything."""
    settings.ALLOWED_HOSTS = ["localhost"]
    operation = SCHEMA[path][method]
    succeeded = 0

    @generated
    @given(mode=st.sampled_from(MODES), data=st.data())
    def call(mode: Any, data: Any) -> None:
        nonlocal succeeded
        case = data.draw(operation.as_strategy(generation_mode=mode))
        is_sensible = mode is schemathesis.GenerationMode.POSITIVE
        if is_sensible:
            aim(case.body)
            aim(case.query)
        # In a batch, each message has its own answer; nothing reads the query of other operations
        is_strict = path not in (f"{PREFIX}publish-many", f"{PREFIX}stats")
        rejected = [checks.negative_data_rejection] if is_strict else []
        response = case.call_and_validate(headers=caller.headers, checks=[*CHECKS, *rejected])
        succeeded += is_sensible and response.status_code < 300

    call()
    assert succeeded


def test_served_document_is_the_one_in_the_repository(api_memory: None) -> None:
    response = Client().get("/api/gateway/v1/openapi.json")
    assert response.json() == json.loads((ROOT / "docs/reference/openapi.json").read_text())
