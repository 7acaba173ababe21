"""The structural schema: loaded once, its defaults, and its faults in the words of a person.

A CRD cannot forbid unknown fields (it prunes them), so the same strictness that `kubectl` has is a walk here.
"""

import copy
import difflib
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from triptych_operator.spec.document import Document
from triptych_operator.spec.faults import Fault, Path

_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
    "object": "a mapping of fields",
    "array": "a list",
}


@lru_cache(maxsize=1)
def load_schema() -> dict[str, Any]:
    """The schema of LLMService as the CRD has it; treat it as read-only."""
    text = resources.files("triptych_operator").joinpath("resources/llmservice.schema.yaml").read_text("utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def with_defaults(value: Any, schema: dict[str, Any] | None = None) -> Any:
    """A copy of the value with the schema's defaults, as the API server fills them in: parents before children."""
    schema = load_schema() if schema is None else schema
    if isinstance(value, dict):
        filled = dict(value)
        for name, inner in schema.get("properties", {}).items():
            if filled.get(name) is None and "default" in inner:
                filled[name] = copy.deepcopy(inner["default"])
            if filled.get(name) is not None:
                filled[name] = with_defaults(filled[name], inner)
            else:
                filled.pop(name, None)
        return filled
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(item, schema["items"]) for item in value]
    return value


def schema_faults(document: Document) -> list[tuple[Path, Fault]]:
    """All faults that the schema finds in the file as it was written, each with the path that is at fault."""
    found = [(path, document.fault(path, message)) for path, message in _unknown(document.value, load_schema(), ())]
    errors = list(Draft202012Validator(load_schema()).iter_errors(without_nulls(document.value)))
    mistyped = {tuple(error.absolute_path) for error in errors if error.validator == "type"}
    for error in errors:
        path = tuple(error.absolute_path)
        if path in mistyped and error.validator != "type":
            continue
        fault = document.fault(path, _message(error, document, path))
        found.append(((*path, _missing(error)) if error.validator == "required" else path, fault))
    return found


def without_nulls(value: Any) -> Any:
    """A field written as null counts as absent, as the API server prunes it."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def _unknown(value: Any, schema: dict[str, Any], path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from _unknown(item, schema["items"], (*path, index))
    if not isinstance(value, dict) or "properties" not in schema:
        return
    known = schema["properties"]
    for name, inner in value.items():
        if name in known:
            yield from _unknown(inner, known[name], (*path, name))
        elif not schema.get(_PRESERVE):
            yield (*path, name), _unknown_message(name, list(known))


def _unknown_message(name: str, known: list[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    if near:
        return f"there is no such field; write {by_lower[near[0]]}."
    return f"there is no such field; known here: {', '.join(sorted(known))}."


def _message(error: ValidationError, document: Document, path: Path) -> str:
    teller = _TELLERS.get(str(error.validator))
    if teller is None:
        return f"{error.message}."
    return teller(error, document.written.get(path, ""))


def _type(error: ValidationError, written: str) -> str:
    wanted = str(error.validator_value)
    if wanted == "string" and not isinstance(error.instance, dict | list):
        kind = "true or false" if isinstance(error.instance, bool) else "a number"
        return f"`{written}` reads as {kind} in YAML; {_instead(error, written)}."
    if isinstance(error.instance, dict | list):
        got = _TYPES["object"] if isinstance(error.instance, dict) else _TYPES["array"]
        return f"write {_TYPES[wanted]}, not {got}."
    if isinstance(error.instance, str) and _reads_as(wanted, written):
        return f"this is text; remove the quotes around {written}."
    return f"write {_TYPES[wanted]}, not `{written}`."


def _reads_as(wanted: str, written: str) -> bool:
    """True if the text without its quotes would be of the wanted type."""
    try:
        value = yaml.safe_load(written)
    except yaml.YAMLError:
        return False
    return type(value) is {"integer": int, "boolean": bool}.get(wanted)


def _instead(error: ValidationError, written: str) -> str:
    schema = error.schema
    if isinstance(schema, dict) and "enum" in schema:
        return f"write {_any_of(schema['enum'])}"
    return f'put it in quotes: "{written}"'


def _any_of(values: list[Any]) -> str:
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _enum(error: ValidationError, written: str) -> str:
    return f"write {_any_of(_values(error))}, not `{written or error.instance}`."


def _required(error: ValidationError, written: str) -> str:
    return f"{_missing(error)} is missing; add it."


def _missing(error: ValidationError) -> str:
    """The field that a `required` error is about; the library raises one error for each."""
    names = [str(name) for name in _values(error)]
    return next((name for name in names if f"'{name}'" in error.message), names[0])


def _values(error: ValidationError) -> list[Any]:
    return list(error.validator_value) if isinstance(error.validator_value, list) else [error.validator_value]


def _pattern(error: ValidationError, written: str) -> str:
    if "demo|hf" in str(error.validator_value):
        return f"write demo://, hf://REPO or host://PATH, not `{written}`."
    if str(error.validator_value).startswith("^[a-z0-9]"):
        return f"write lower-case letters, digits and hyphens, not `{written}`."
    return f"`{written}` does not have the form {error.validator_value}."


_TELLERS: dict[str, Callable[[ValidationError, str], str]] = {
    "type": _type,
    "enum": _enum,
    "required": _required,
    "pattern": _pattern,
    "minimum": lambda error, written: f"write {error.validator_value} or more, not {written}.",
    "maximum": lambda error, written: f"write {error.validator_value} or less, not {written}.",
    "minLength": lambda error, written: "write at least one character.",
    "maxLength": lambda error, written: f"write at most {error.validator_value} characters.",
    "minItems": lambda error, written: "write at least one item.",
    "maxItems": lambda error, written: f"write at most {error.validator_value} items.",
    "maxProperties": lambda error, written: f"write at most {error.validator_value} entries.",
}
