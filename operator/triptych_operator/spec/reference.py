"""The field table of docs/llmservice.md, made from the schema so that the two cannot differ."""

from collections.abc import Iterator
from typing import Any

from triptych_operator.spec.schema import load_schema
from triptych_operator.spec.support import ACTED_ON


def field_table() -> str:
    """Every field of `spec` as a Markdown table, in the order of the schema."""
    rows = ["| field | type | default | local platform | meaning |", "|---|---|---|---|---|"]
    rows += (_row(path, node) for path, node in _fields(load_schema()["properties"]["spec"], ""))
    return "\n".join(rows)


def _fields(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield path, inner
        if inner.get("type") == "array":
            yield from _fields(inner["items"], f"{path}[].")
        else:
            yield from _fields(inner, f"{path}.")


def _row(path: str, node: dict[str, Any]) -> str:
    default = f"`{node['default']}`" if node.get("default", {}) not in ({}, "") else ""
    return f"| `{path}` | {_kind(node)} | {default} | {_local(path, node)} | {node.get('description', '')} |"


def _kind(node: dict[str, Any]) -> str:
    if "enum" in node:
        return " · ".join(f"`{value}`" for value in node["enum"])
    if node["type"] == "integer":
        return f"{node['minimum']} to {node['maximum']}"
    return {"string": "text", "boolean": "true or false", "array": "list", "object": "fields"}[str(node["type"])]


def _local(path: str, node: dict[str, Any]) -> str:
    """Whether the local platform acts on the field; a mapping says it for its own fields."""
    base = path.split("[]", maxsplit=1)[0]
    if base in ACTED_ON:
        return "yes"
    if node.get("properties") and any(known.startswith(f"{base}.") for known in ACTED_ON):
        return ""
    return "see below" if base in _PARTLY else "no"


_PARTLY = frozenset(
    {
        *("model.tokenSecretRef", "router.apiKeys", "router.tls", "router.ingress", "router.ingress.kind"),
        *("router.ingress.tlsSecretRef", "router.service.type", "engine.runtimeClassName", "router.runtimeClassName"),
        *("router.policy", "planner.mode"),
    }
)
