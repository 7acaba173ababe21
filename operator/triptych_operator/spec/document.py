"""YAML text as plain values that remember where they stand and how they were written.

PyYAML's node graph keeps the marks that its loader drops. Values are built here from the graph, so a field that
YAML reads as another type than its writer meant (`Off`, `1.0`, `2024-01-01`) can be told in the writer's own words.
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

from triptych_operator.spec.faults import Fault, Path, dotted

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 32
_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))
_STR, _TIMESTAMP = "tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp"


@dataclass
class Document:
    """Values of one YAML document.

    Attributes:
        value: Mappings, lists and scalars.
        marks: Line and column, from 1, of the key (or item) at each path.
        written: A scalar's own text at each path, without quotes.
        faults: What is wrong with the YAML itself.
    """

    value: Any = None
    marks: dict[Path, tuple[int, int]] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: Path) -> tuple[int, int]:
        """Line and column of a path, or of its nearest ancestor that is in the file."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, (1, 1))

    def fault(self, path: Path, message: str) -> Fault:
        """A fault at a path."""
        line, column = self.place(path)
        return Fault(line, column, dotted(path), message)


def read(text: str) -> Document:
    """Read one YAML document; faults of the YAML itself stand in `faults`."""
    document = Document()
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        document.faults.append(_broken(error))
        return document
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        document.faults.append(Fault(1, 1, "", f"this is not YAML: {type(error).__name__}; write one LLMService."))
        return document
    nodes = [node for node in nodes if node is not None and node.tag != _NULL]
    if not nodes:
        document.faults.append(Fault(1, 1, "", "the file is empty; write one LLMService (see examples/laptop.yaml)."))
        return document
    if len(nodes) > 1:
        mark = nodes[1].start_mark
        document.faults.append(
            Fault(mark.line + 1, mark.column + 1, "", "a second document begins here; write one LLMService a file.")
        )
    _Builder(document).build(nodes[0])
    return document


def _broken(error: yaml.MarkedYAMLError) -> Fault:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    problem = error.problem or "it cannot be read"
    if "'\\t'" in problem:
        problem = "a tab stands here; indent with spaces"
    return Fault(line, column, "", f"this is not YAML: {problem}.")


class _Builder:
    """Values from nodes, with bounds that hold against nested aliases."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._nodes = 0

    def build(self, root: yaml.Node) -> None:
        try:
            self._document.value = self._value(root, ())
        except _TooLarge:
            self._document.faults.append(
                Fault(1, 1, "", f"the file is nested deeper than {MAX_DEPTH} or holds more than {MAX_NODES} values.")
            )

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _TooLarge
        self._document.marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                self._document.faults.append(Fault(*mark, dotted(path), "write plain keys; merges are not read."))
                continue
            key = str(key_node.value)
            if key in built:
                self._document.faults.append(
                    Fault(*mark, dotted((*path, key)), "this key stands twice; keep one of them.")
                )
                continue
            self._document.marks[(*path, key)] = mark
            built[key] = self._value(value_node, (*path, key))
        return built

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        text = str(node.value)
        self._document.written[path] = text
        try:
            return _scalar_value(node.tag, text)
        except ValueError:
            self._document.faults.append(
                self._document.fault(path, f"`{text[:40]}` is of a type that is not read; put it in quotes.")
            )
            return text


class _TooLarge(Exception):
    pass


def _scalar_value(tag: str, text: str) -> Any:
    loader = yaml.SafeLoader("")
    try:
        node = yaml.ScalarNode(tag=tag, value=text)
        if tag in (_STR, _TIMESTAMP):
            return text
        if tag in (_NULL, _BOOL, _INT, _FLOAT):
            return loader.construct_object(node)
    finally:
        loader.dispose()
    raise ValueError(tag)
