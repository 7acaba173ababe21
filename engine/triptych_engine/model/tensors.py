"""Where a folder's tensors lie, and whether they are those of the configuration. Imports no torch.

Only the headers of the safetensors files are read here. A header is a length (8 bytes, little-endian) and that
many bytes of JSON: name → element type, shape and byte range after the header.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych_engine.model.config import ModelConfig, read_json
from triptych_engine.model.errors import ModelFolderError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100 * 1024 * 1024
"""Bound of a header; the same as that of the format's own reader."""
MAX_FAULTS = 12
"""Faults told in one message."""

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor: its file, its element type in the file, its shape, and its byte range in the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start_byte: int
    end_byte: int


def find_tensors(model_dir: Path) -> dict[str, TensorPlace]:
    """Every tensor of the folder by name, from one file or from the shards that the index names.

    Raises:
        ModelFolderError: No weights, a file outside the folder, or a damaged one.
    """
    if not (model_dir / INDEX).exists():
        if not (model_dir / SINGLE).exists():
            raise ModelFolderError(f"The model folder has neither {SINGLE} nor {INDEX}.")
        return dict(_read_header(model_dir / SINGLE))
    weight_map = read_json(model_dir / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelFolderError(f"{INDEX}: weight_map must map tensors to file names.")
    places: dict[str, TensorPlace] = {}
    for file_name in sorted(set(weight_map.values())):
        # A file name is no path: an index must not lead out of its folder.
        if Path(file_name).name != file_name or not file_name.endswith(".safetensors"):
            raise ModelFolderError(f"{INDEX}: {file_name!r} is no safetensors file of this folder.")
        places.update(_read_header(model_dir / file_name))
    lacking = sorted(name for name in weight_map if name not in places)
    if lacking:
        raise ModelFolderError(f"{INDEX} names tensors that no shard holds: {', '.join(lacking[:MAX_FAULTS])}.")
    return places


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a model of this configuration has, as Hugging Face names them."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(config).items()})
    return shapes


def check_tensors(config: ModelConfig, places: Mapping[str, TensorPlace]) -> None:
    """Raise one `ModelFolderError` that names every missing, unexpected, misshapen or non-float tensor."""
    expected = expected_shapes(config)
    faults = [f"{name} is missing" for name in expected if name not in places]
    for name, place in sorted(places.items()):
        if name not in expected:
            if not _ignorable(config, name):
                faults.append(f"{name} is unexpected")
        elif place.shape != expected[name]:
            faults.append(f"{name} has shape {list(place.shape)}, not {list(expected[name])}")
        elif place.dtype not in _FLOATS:
            faults.append(f"{name} has element type {place.dtype}")
    if faults:
        more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
        raise ModelFolderError(f"The weights do not fit config.json: {'; '.join(faults[:MAX_FAULTS])}{more}.")


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, wide = config.hidden_size, config.intermediate_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (query, hidden, config.qkv_bias),
        "self_attn.k_proj": (key, hidden, config.qkv_bias),
        "self_attn.v_proj": (key, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, query, config.out_bias),
        "mlp.gate_proj": (wide, hidden, config.mlp_bias),
        "mlp.up_proj": (wide, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, wide, config.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for name, (rows, columns, biased) in linears.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if biased:
            shapes[f"{name}.bias"] = (rows,)
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = (config.head_dim,)
        shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    return shapes


def _ignorable(config: ModelConfig, name: str) -> bool:
    """A copy of the tied embedding, or the rotary frequencies that old folders stored."""
    return (config.tied and name == "lm_head.weight") or name.endswith("rotary_emb.inv_freq")


def _read_header(path: Path) -> Iterator[tuple[str, TensorPlace]]:
    damaged = ModelFolderError(f"{path.name} is no sound safetensors file.")
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size_bytes - 8):
                raise damaged
            header = json.loads(file.read(header_bytes))
    except FileNotFoundError:
        raise ModelFolderError(f"The model folder has no {path.name}.") from None
    except (OSError, ValueError, RecursionError):
        raise damaged from None
    if not isinstance(header, dict):
        raise damaged
    first = 8 + header_bytes
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, _place(path, entry, first, size_bytes, damaged)


def _place(path: Path, entry: Any, first: int, size_bytes: int, damaged: ModelFolderError) -> TensorPlace:
    try:
        start, end = (first + int(offset) for offset in entry["data_offsets"])
        place = TensorPlace(path, str(entry["dtype"]), tuple(int(size) for size in entry["shape"]), start, end)
    except (KeyError, TypeError, ValueError):
        raise damaged from None
    if not first <= place.start_byte <= place.end_byte <= size_bytes:
        raise damaged
    return place
