"""The shape of a model, from a Hugging Face folder's `config.json`.

Both spellings are read: `rope_parameters` and `dtype` of newer folders, `rope_theta`, `rope_scaling` and
`torch_dtype` of older ones. What the decoder cannot compute exactly is refused here, with the field's name;
nothing is guessed. Torch is not imported: the server process reads folders too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych_engine.model.errors import ModelFolderError

MAX_JSON_BYTES = 8 * 1024 * 1024
"""Bound of a folder's small JSON files; real ones take kilobytes."""
CODE_FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files that may ask for code of the folder to be run, by a member `auto_map`."""
DTYPES = ("float32", "bfloat16", "float64")
"""Element types that the engine computes in."""

_FAMILIES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions: `kind` is `default`, `linear` (positions divided by `factor`) or `llama3`.

    The last three members belong to `llama3`: wavelengths over `original_context / low_freq_factor` are slowed
    by `factor`, those under `original_context / high_freq_factor` are kept, the rest is blended.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder's shape.

    Attributes:
        family: `qwen3`, `qwen2` or `llama`.
        vocab_size: Number of token ids.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated MLP.
        num_layers, num_heads, num_kv_heads, head_dim: Of the attention.
        norm_eps: Added to the mean square in RMS norms.
        rope: Rotary positions.
        max_context: Positions that the model was made for.
        tied: The output layer is the embedding.
        qkv_bias, out_bias, mlp_bias: Which linears have a bias.
        qk_norm: Queries and keys are normed by head.
        dtype: Element type that the folder names; empty if it names none.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    max_context: int
    tied: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: str = ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        ModelFolderError: Missing, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFolderError(f"{path.name} is larger than {MAX_JSON_BYTES} bytes.")
        parsed = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelFolderError(f"The model folder has no {path.name}.") from None
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, ModelFolderError):
            raise
        raise ModelFolderError(f"{path.name} cannot be read as JSON.") from None
    if not isinstance(parsed, dict):
        raise ModelFolderError(f"{path.name} is no JSON object.")
    return parsed


def read_config(model_dir: Path) -> ModelConfig:
    """Read and check a folder's configuration.

    Raises:
        ModelFolderError: The folder asks for code of its own, or for something the engine does not compute.
    """
    refuse_code(model_dir)
    return parse_config(read_json(model_dir / "config.json"))


def refuse_code(model_dir: Path) -> None:
    """Raise `ModelFolderError` if a file of the folder asks for code of the folder to be run."""
    for name in CODE_FILES:
        path = model_dir / name
        if path.exists() and "auto_map" in read_json(path):
            raise ModelFolderError(f"{name} has an auto_map: the model asks for code of its own, which is never run.")


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """A `config.json` as a `ModelConfig`; raises `ModelFolderError` as `read_config` does."""
    family = _family(raw)
    _refuse_unserved(raw)
    heads = _positive(raw, "num_attention_heads")
    hidden = _positive(raw, "hidden_size")
    attention_bias = bool(raw.get("attention_bias", False))
    config = ModelConfig(
        family=family,
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size"),
        num_layers=_positive(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_positive(raw, "num_key_value_heads", heads),
        head_dim=_positive(raw, "head_dim", 128 if family == "qwen3" else hidden // heads),
        norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope=_rope(raw),
        max_context=_positive(raw, "max_position_embeddings"),
        tied=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or attention_bias,
        out_bias=family != "qwen2" and attention_bias,
        mlp_bias=family == "llama" and bool(raw.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "").removeprefix("torch."),
    )
    if config.num_heads % config.num_kv_heads:
        raise ModelFolderError("config.json: num_attention_heads is no multiple of num_key_value_heads.")
    if config.head_dim % 2:
        raise ModelFolderError("config.json: head_dim is odd.")
    return config


def choose_dtype(asked: str, config: ModelConfig) -> str:
    """The element type to compute in: what is asked, else the folder's; float16 and unnamed become float32.

    Raises:
        ModelFolderError: Not one of `DTYPES`.
    """
    if asked != "auto":
        if asked not in DTYPES:
            raise ModelFolderError(f"dtype must be auto, {', '.join(DTYPES)}; it is {asked!r}.")
        return asked
    return config.dtype if config.dtype in DTYPES else "float32"


def _family(raw: Mapping[str, Any]) -> str:
    architectures = raw.get("architectures") or []
    for family, architecture in _FAMILIES.items():
        if architecture in architectures or (not architectures and raw.get("model_type") == family):
            return family
    named = architectures[0] if architectures else raw.get("model_type")
    served = ", ".join(_FAMILIES.values())
    raise ModelFolderError(f"config.json: architectures names {named!r}; served are {served}.")


def _refuse_unserved(raw: Mapping[str, Any]) -> None:
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelFolderError(f"config.json: hidden_act {raw['hidden_act']!r} is not served, only silu.")
    if raw.get("quantization_config"):
        raise ModelFolderError("config.json: quantization_config is not served; take the unquantised weights.")
    layer_types = raw.get("layer_types") or ()
    if any(kind != "full_attention" for kind in layer_types):
        raise ModelFolderError("config.json: layer_types asks for more than full attention, which is not served.")
    layers = raw.get("num_hidden_layers")
    window_starts = raw.get("max_window_layers", layers)
    windowed = raw.get("use_sliding_window") and raw.get("sliding_window") and not layer_types
    if windowed and isinstance(layers, int) and isinstance(window_starts, int) and window_starts < layers:
        raise ModelFolderError("config.json: use_sliding_window is set; sliding windows are not served.")


def _rope(raw: Mapping[str, Any]) -> Rope:
    new = raw.get("rope_parameters")
    field = "rope_parameters" if new else "rope_scaling"
    scaling = new or raw.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or any(isinstance(value, dict) for value in scaling.values()):
        raise ModelFolderError(f"config.json: {field} by kind of layer is not served.")
    theta = _number(scaling, "rope_theta", _number(raw, "rope_theta", 10_000.0))
    partial = scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1.0):
        raise ModelFolderError("config.json: partial_rotary_factor other than 1 is not served.")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, kind="linear", factor=_number(scaling, "factor"))
    if kind == "llama3":
        return Rope(
            theta=theta,
            kind="llama3",
            factor=_number(scaling, "factor"),
            low_freq_factor=_number(scaling, "low_freq_factor"),
            high_freq_factor=_number(scaling, "high_freq_factor"),
            original_context=_positive(scaling, "original_max_position_embeddings"),
        )
    raise ModelFolderError(f"config.json: {field} of type {kind!r} is not served, only default, linear and llama3.")


def _positive(raw: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = raw.get(field)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelFolderError(f"config.json: {field} must be a positive whole number; it is {value!r}.")
    return value


def _number(raw: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = raw.get(field)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ModelFolderError(f"config.json: {field} must be a positive number; it is {value!r}.")
    return float(value)
