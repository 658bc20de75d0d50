"""The API as a whole: its operations, how it reads bodies, and how it answers errors."""

from __future__ import annotations

from inspect import signature
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.utils.datastructures import MultiValueDict
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError
from ninja.openapi.schema import OpenAPISchema
from ninja.parser import Parser

from wsgateway.api import control, publishing, reading
from wsgateway.api.admission import ACTION, ApiKeyAuth
from wsgateway.api.problems import CONTENT_TYPE as PROBLEM
from wsgateway.api.problems import Problem, in_body, invalid, respond
from wsgateway.exceptions import WsGatewayError
from wsgateway.protocol import strict_json

__all__ = ["api", "not_found"]

DESCRIPTION = """\
Publish to users and topics, read what is stored, and ask who is online, from a backend in any \
language. Every request needs a key in the header `Authorization`. Errors are problem documents \
(RFC 9457)."""


ROUTERS = tuple(each.router for each in (publishing, reading, control))
PARAMETERS = {
    operation.view_func.__name__: signature(operation.view_func).parameters.keys() - {"request"}
    for router in ROUTERS
    for view in router.path_operations.values()
    for operation in view.operations
}
"""What each operation takes, by the name of its URL."""


class StrictParser(Parser):
    """Reads JSON that every parser reads alike, and ignores nothing in a query."""

    def parse_querydict(
        self, data: MultiValueDict[Any, Any], list_fields: list[str], request: HttpRequest
    ) -> dict[str, Any]:
        """Return the parameters of a query.

        Raises:
            Problem: The operation has no such parameter, or it is given twice.
        """
        assert request.resolver_match is not None
        known = PARAMETERS[str(request.resolver_match.url_name)]
        values = [
            {"parameter": name, "detail": "unknown parameter"}
            for name in sorted(data.keys() - known)
        ]
        values += [
            {"parameter": name, "detail": "given twice"}
            for name, found in data.lists()
            if name in known and len(found) > 1
        ]
        if values:
            raise invalid(values)
        return super().parse_querydict(data, list_fields, request)

    def parse_body(self, request: HttpRequest) -> Any:
        """Return what the body means.

        Raises:
            Problem: It is not JSON.
        """
        try:
            return strict_json.loads(request.body)
        except RecursionError:
            raise Problem("unreadable", "the body is nested too deeply") from None
        except ValueError as exc:  # its text may quote the body
            where = f" at line {exc.lineno}" if hasattr(exc, "lineno") else ""
            text = f"the body is not JSON in UTF-8{where}"
            if isinstance(exc, strict_json.NotStrict):
                text = f"the body is not JSON: {exc}"
            raise Problem("unreadable", text) from None


class Api(NinjaAPI):
    """Answers errors as problem documents."""

    def __init__(self) -> None:
        super().__init__(
            title="wsgateway server API",
            version="1",
            description=DESCRIPTION,
            urls_namespace="wsgateway-api",
            docs_url=None,
            parser=StrictParser(),
        )
        for kind in (Problem, WsGatewayError, Exception):
            self.add_exception_handler(kind, _respond)
        self.add_exception_handler(ValidationError, _invalid)
        self.add_exception_handler(HttpError, _failed)

    def get_openapi_schema(self, **options: Any) -> OpenAPISchema:
        """Return the document: with the action that each operation needs, and with problems."""
        document = super().get_openapi_schema(**options)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["security"] = [{ApiKeyAuth.__name__: [operation.pop(ACTION)]}]
                for status, response in operation["responses"].items():
                    if status >= 400:
                        content = response["content"]
                        response["content"] = {PROBLEM: content[self.renderer.media_type]}
        return document


def _respond(request: HttpRequest, error: Any) -> HttpResponse:
    return respond(request, error)


def _invalid(request: HttpRequest, error: Any) -> HttpResponse:
    return respond(request, invalid([_value(each["loc"], each["msg"]) for each in error.errors]))


def _value(place: tuple[str | int, ...], text: str) -> dict[str, str]:
    """Return what is wrong with a value.

    Args:
        place: Where it is: the part of the request, the view's argument, and the way from there.
        text: What is wrong with it.
    """
    if place[0] == "body":
        return in_body(place[2:], text)
    return {"parameter": str(place[-1]), "detail": text}


def _failed(request: HttpRequest, error: Any) -> HttpResponse:
    """Answer what ninja itself refuses: only a body that `StrictParser` cannot read."""
    cause = error.__cause__
    return respond(request, cause if isinstance(cause, Problem) else error)


@login_not_required
@csrf_exempt
def not_found(request: HttpRequest, **names: str) -> HttpResponse:
    """Answer a request for something that is not there."""
    text = f"there is no operation at {request.path}; the API's v1/openapi.json lists them all"
    return respond(request, Problem("not-found", text))


api = Api()
for each in ROUTERS:
    api.add_router("", each)
