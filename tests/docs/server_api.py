"""Write ``docs/reference/openapi.json``, and the page that says the same for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from wsgateway.api.problems import KINDS
from wsgateway.api.site import api

PREFIX = "/api/gateway/v1/"
BEGIN = "## Operations\n"
Fields = dict[str, Any]


def document() -> Fields:
    """Return the OpenAPI document as JSON has it."""
    found: Fields = json.loads(json.dumps(api.get_openapi_schema(path_prefix=PREFIX)))
    return found


def openapi_file() -> str:
    """Return the file's text."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def page(text: str) -> str:
    """Return the page's text; what is above the operations is written by hand."""
    intro = text.partition(BEGIN)[0]
    whole = document()
    schemas = whole["components"]["schemas"]
    parts = [f"{intro}{BEGIN}"]
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(method.upper(), path, operation))
    parts.append("## Objects\n")
    parts += [_object(name, schemas[name]) for name in sorted(schemas)]
    parts.append(_problems())
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Fields) -> str:
    [[action]] = [each.values() for each in operation["security"]]
    lines = [
        f"### {operation['summary']}\n",
        f"`{method} {path}`, action `{action[0]}`\n",
        *_paragraphs(operation["description"]),
    ]
    if operation["parameters"]:
        lines += ["| parameter | in | type | meaning |", "|---|---|---|---|"]
        lines += [
            f"| {_name(each['name'], each['required'])} | {each['in']} "
            f"| {_type(_given(each['schema']))} | {each['description']} |"
            for each in operation["parameters"]
        ]
        lines.append("")
    if "requestBody" in operation:
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        lines.append(f"Body: {_type(body)}.\n")
    status, answer = next(iter(operation["responses"].items()))
    content = answer.get("content")
    what = f", {_type(content['application/json']['schema'])}" if content else " without a body"
    lines.append(f"Answer: {status}{what}.\n")
    return "\n".join(lines)


def _object(name: str, schema: Fields) -> str:
    required = schema.get("required", [])
    lines = [f"### {name}\n", f"{schema['description']}\n", "| member | type | meaning |"]
    lines.append("|---|---|---|")
    for member, each in schema["properties"].items():
        meaning = each.get("description", "")
        lines.append(f"| {_name(member, member in required)} | {_type(each)} | {meaning} |")
    return "\n".join([*lines, ""])


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield f"{' '.join(paragraph.split())}\n"


def _name(name: str, is_required: bool) -> str:
    return f"`{name}`" if is_required else f"`{name}`, optional"


def _given(schema: Fields) -> Fields:
    """Return what a parameter is if it is given."""
    choices: list[Fields] = schema.get("anyOf", [schema])
    [found] = [each for each in choices if each.get("type") != "null"]
    return found


def _type(schema: Fields) -> str:
    """Return what a value is, in words."""
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "allOf" in schema and "properties" not in schema:
        return _type(schema["allOf"][0])
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    kind = schema.get("type", "any JSON")
    if kind == "array":
        return f"array of {_type(schema['items'])}"
    if kind == "object" and "additionalProperties" in schema:
        return f"object of {_type(schema['additionalProperties'])}"
    return ", ".join([kind, *_limits(schema)])


def _limits(schema: Fields) -> Iterator[str]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if most == 2**63 - 1:
        most = None
    if most is not None:
        yield f"{least} to {most}"
    elif least is not None:
        yield f"{least} or more"
    if "maxLength" in schema:
        yield f"up to {schema['maxLength']} characters"
    if "format" in schema:
        yield schema["format"]


def _problems() -> str:
    lines = [
        "## Problems\n",
        "The `type` of a problem is `urn:problem-type:wsgateway:` and one of these words:\n",
        "| type | status | what it means | `Retry-After` |",
        "|---|---|---|---|",
    ]
    for name, kind in KINDS.items():
        after = "yes" if kind.retry_after else "no"
        lines.append(f"| `{name}` | {kind.status} | {kind.title} | {after} |")
    return "\n".join([*lines, ""])
