"""Command-line flags that several programs share, and their faults, which are told all together."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_CHARACTERS = 4096
LOG_LEVELS = ("debug", "info", "warning", "error")
Bounds = tuple[tuple[str, float, float], ...]
"""Name of a setting, its least and its greatest value."""


class SettingsError(ValueError):
    """Faulty settings; `faults` holds one sentence for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


def is_loopback(host: str) -> bool:
    """True for `localhost` and addresses of the loopback networks."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_discovery(text: str, faults: list[str]) -> Path:
    """The directory of `local:DIR`; a fault if it is not of that form."""
    backend, _, directory = text.partition(":")
    if backend != "local" or not directory:
        faults.append("--discovery must be local:DIR")
    return Path(directory or ".")


def read_token(path: Path | None, faults: list[str]) -> str:
    """The service token in a file, empty without one; a fault if the file holds none that is sound."""
    if path is None:
        return ""
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        faults.append("--token-file cannot be read as plain text")
        return ""
    if not MIN_TOKEN_CHARACTERS <= len(text) <= MAX_TOKEN_CHARACTERS or not text.isprintable() or " " in text:
        faults.append(f"--token-file must hold one printable word of at least {MIN_TOKEN_CHARACTERS} characters")
    return text


def out_of_bounds(settings: object, bounds: Bounds) -> list[str]:
    """One fault for each setting outside of its bounds."""
    return [
        f"--{name.replace('_', '-')} must be between {low:g} and {high:g}"
        for name, low, high in bounds
        if not low <= getattr(settings, name) <= high
    ]
