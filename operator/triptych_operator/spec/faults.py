"""Faults of a file: each says where it is, what is wrong and what to write instead."""

from dataclasses import dataclass

Path = tuple[str | int, ...]


def dotted(path: Path) -> str:
    """`("spec", "env", 0)` as `spec.env[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault; sorts by place.

    Attributes:
        line: First line is 1; 0 where the file has no such place.
        column: First column is 1.
        path: Dotted path of the field, empty for the file as a whole.
        message: What is wrong and what to write instead.
    """

    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}, column {self.column}: " if self.line else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class BadSpec(Exception):
    """A file that is not served; the message holds all of its faults, sorted by line."""

    def __init__(self, source: str, faults: tuple[Fault, ...]) -> None:
        self.source = source
        self.faults = tuple(sorted(set(faults)))
        count = len(self.faults)
        head = f"{source}: {count} fault{'' if count == 1 else 's'}"
        super().__init__("\n".join([head, *(f"  {fault}" for fault in self.faults)]))
