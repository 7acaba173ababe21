"""From a folder of safetensors to a decoder on a device.

Tensors are read layer by layer, converted, fused (q, k, v; gate, up) and packed at once, so that no more than
one layer exists twice. Names, shapes and element types are checked before the first byte of weights is read.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from triptych_engine.executor.base import LoadProgress
from triptych_engine.model.config import ModelConfig
from triptych_engine.model.decoder import Decoder, DecoderWeights, LayerWeights
from triptych_engine.model.rope import rope_tables
from triptych_engine.model.tensors import TensorPlace, check_tensors
from triptych_engine.ops.base import LinearWeight, Ops


class _Reader:
    """Reads tensors by name, as the element type and on the device of the operations."""

    def __init__(self, places: Mapping[str, TensorPlace], ops: Ops) -> None:
        self._places = places
        self._ops = ops
        self._files: dict[Path, safe_open] = {}

    def tensor(self, name: str) -> torch.Tensor:
        path = self._places[name].path
        if path not in self._files:
            self._files[path] = safe_open(path, framework="pt")
        tensor: torch.Tensor = self._files[path].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor.to(device=self._ops.device, dtype=self._ops.dtype)

    def linear(self, *names: str) -> LinearWeight:
        """Several linears of the same input as one."""
        weights = [self.tensor(f"{name}.weight") for name in names]
        biased = f"{names[0]}.bias" in self._places
        bias = torch.cat([self.tensor(f"{name}.bias") for name in names]) if biased else None
        return self._ops.pack_linear(torch.cat(weights) if len(weights) > 1 else weights[0], bias)


def load_decoder(
    *, config: ModelConfig, places: Mapping[str, TensorPlace], ops: Ops, max_context: int, progress: LoadProgress
) -> Decoder:
    """Load the weights of a folder.

    Args:
        config: What the folder says of itself.
        places: `find_tensors` of the folder.
        ops: The operations to run on; decides device, element type and layout.
        max_context: Positions that the rope tables cover.
        progress: Told the percentage after each layer.

    Raises:
        ModelFolderError: The tensors are not those of the configuration.
    """
    check_tensors(config, places)
    reader = _Reader(places, ops)
    layers = []
    for index in range(config.num_layers):
        progress(100 * index // config.num_layers, f"layer {index + 1} of {config.num_layers}")
        layers.append(_read_layer(reader, config, index))
    embedding = reader.tensor("model.embed_tokens.weight").contiguous()
    # A tied model's packed output layer is a second copy; without packing it is the embedding itself.
    logits = ops.pack_linear(embedding, None) if config.tied else reader.linear("lm_head")
    weights = DecoderWeights(embedding, layers, reader.tensor("model.norm.weight"), logits)
    rope = rope_tables(config.rope, head_dim=config.head_dim, positions=max_context, dtype=ops.dtype, device=ops.device)
    progress(100, "loaded")
    return Decoder(config=config, weights=weights, rope=rope, ops=ops)


def _read_layer(reader: _Reader, config: ModelConfig, index: int) -> LayerWeights:
    prefix = f"model.layers.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    qk_norm = None
    if config.qk_norm:
        query = reader.tensor(f"{attention}.q_norm.weight").expand(config.num_heads, -1)
        key = reader.tensor(f"{attention}.k_norm.weight").expand(config.num_kv_heads, -1)
        qk_norm = torch.cat((query, key))
    return LayerWeights(
        input_norm=reader.tensor(f"{prefix}.input_layernorm.weight"),
        qkv=reader.linear(f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj"),
        qk_norm=qk_norm,
        out=reader.linear(f"{attention}.o_proj"),
        mlp_norm=reader.tensor(f"{prefix}.post_attention_layernorm.weight"),
        gate_up=reader.linear(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
        down=reader.linear(f"{mlp}.down_proj"),
    )
