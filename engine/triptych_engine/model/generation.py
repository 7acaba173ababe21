"""What a folder says about generating: its end-of-sequence tokens and its sampling defaults. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych_contract.sampling import LIMITS
from triptych_engine.model.config import read_json
from triptych_engine.model.errors import ModelFolderError


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Used where a request leaves a parameter out; None means that the folder says nothing.

    Attributes:
        eos_token_ids: Tokens that end an output.
        temperature, top_p, top_k, min_p: As in `SamplingParams`; `do_sample: false` is read as temperature 0.
    """

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


def read_generation(model_dir: Path) -> GenerationDefaults:
    """Read `generation_config.json`; end-of-sequence tokens fall back to those of `config.json`.

    Raises:
        ModelFolderError: A member is out of bounds.
    """
    path = model_dir / "generation_config.json"
    raw = read_json(path) if path.exists() else {}
    eos = raw.get("eos_token_id")
    if eos is None:
        eos = read_json(model_dir / "config.json").get("eos_token_id")
    top_k = _bounded(raw, "top_k")
    temperature = 0.0 if raw.get("do_sample") is False else _bounded(raw, "temperature")
    return GenerationDefaults(
        eos_token_ids=_token_ids(eos),
        temperature=temperature,
        top_p=_bounded(raw, "top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=_bounded(raw, "min_p"),
    )


def _token_ids(value: Any) -> tuple[int, ...]:
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in listed):
        raise ModelFolderError("generation_config.json: eos_token_id must be a token id or a list of them.")
    return tuple(listed)


def _bounded(raw: Mapping[str, Any], field: str) -> float | None:
    value = raw.get(field)
    if value is None:
        return None
    low, high = LIMITS[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ModelFolderError(f"generation_config.json: {field} must be between {low:g} and {high:g}.")
    return float(value)
