"""CR → typed spec, in one place. The schema judges first, then the rules, then what the platform serves.

All faults of a file come in one error, sorted by line: who mends a file wants the whole list.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import msgspec

from triptych_operator.spec.document import MAX_BYTES, Document, read
from triptych_operator.spec.faults import BadSpec, Fault, Path
from triptych_operator.spec.rules import RULES, Rule, lookup
from triptych_operator.spec.schema import schema_faults, with_defaults, without_nulls
from triptych_operator.spec.support import ignored_fields, refused
from triptych_operator.spec.types import LLMService, ServiceSpec


@dataclass(frozen=True, slots=True)
class Loaded:
    """A sound file: the service, and the object with defaults as `get -o yaml` would show it."""

    service: LLMService
    defaulted: Mapping[str, Any]


def load_file(path: FilePath) -> Loaded:
    """Read a file.

    Raises:
        BadSpec: It cannot be read, or has faults; the message names all of them.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
        raise BadSpec(str(path), (Fault(0, 0, "", f"{reason}; give the path of an LLMService file."),)) from None
    if len(data) > MAX_BYTES:
        raise BadSpec(str(path), (Fault(0, 0, "", f"the file is larger than {MAX_BYTES} bytes."),))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadSpec(str(path), (Fault(line, 1, "", "this is not UTF-8 text."),)) from None
    return load_text(text, source=str(path))


def load_text(text: str, *, source: str = "llmservice") -> Loaded:
    """Read the text of a file; `source` is its name in messages. Raises `BadSpec`."""
    document = read(text)
    if document.value is None:
        raise BadSpec(source, tuple(document.faults))
    if not isinstance(document.value, dict):
        fault = document.fault((), "write a mapping with apiVersion, kind, metadata and spec.")
        raise BadSpec(source, (*document.faults, fault))
    by_schema = schema_faults(document)
    broken = [path for path, _ in by_schema]
    defaulted = with_defaults(document.value)
    faults = [
        *document.faults,
        *(fault for _, fault in by_schema),
        *_rule_faults(document, defaulted, broken),
        *_refusals(document, broken),
    ]
    if faults:
        raise BadSpec(source, tuple(faults))
    return Loaded(_typed(document.value, defaulted), defaulted)


def _rule_faults(document: Document, defaulted: Mapping[str, Any], broken: Iterable[Path]) -> Iterator[Fault]:
    for rule in RULES:
        values = lookup(defaulted, rule.scope) if rule.scope else defaulted
        scope: Path = tuple(rule.scope.split(".")) if rule.scope else ()
        reads = [(*scope, *read.split(".")) for read in rule.reads]
        if not isinstance(values, Mapping) or any(_touches(path, read) for path in broken for read in reads):
            continue
        if not rule.holds(values):
            yield document.fault(_shown_at(document, rule, scope), rule.message)


def _shown_at(document: Document, rule: Rule, scope: Path) -> Path:
    """The first field that the rule reads and the file has; the rule's scope if it has none of them."""
    paths: list[Path] = [(*scope, *read.split(".")) for read in rule.reads]
    return next((path for path in paths if path in document.marks), scope)


def _touches(fault: Path, field: Path) -> bool:
    """True if the fault lies at, above or below the field."""
    shorter = min(len(fault), len(field))
    return fault[:shorter] == field[:shorter]


def _refusals(document: Document, broken: Iterable[Path]) -> Iterator[Fault]:
    spec = document.value.get("spec")
    if not isinstance(spec, dict):
        return
    for refusal in refused(spec):
        path: Path = ("spec", *refusal.path.split("."))
        if path not in broken:
            yield document.fault(path, f"not served by the local platform: {refusal.message}")


def _typed(written: Mapping[str, Any], defaulted: Mapping[str, Any]) -> LLMService:
    spec = msgspec.convert(defaulted["spec"], ServiceSpec)
    ignored = ignored_fields(without_nulls(written["spec"]))
    return LLMService(defaulted["metadata"]["name"], spec, ignored)
