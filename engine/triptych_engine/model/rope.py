"""Rotary position tables.

Frequencies and angles are computed in float32, as the models were trained and as every other implementation
has them, or in float64 for a float64 model. The `llama3` blend is that of the Llama 3.1 model card.
"""

import math

import torch

from triptych_engine.model.config import Rope
from triptych_engine.model.decoder import RopeTables


def inverse_frequencies(rope: Rope, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Turn of each pair of dimensions from one position to the next, in radians [head dim / 2]."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64).to(dtype)
    plain = 1.0 / (rope.theta ** (steps / head_dim))
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    wavelength = 2 * math.pi / plain
    longest, shortest = rope.original_context / rope.low_freq_factor, rope.original_context / rope.high_freq_factor
    smooth = (rope.original_context / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = torch.where(wavelength > longest, plain / rope.factor, blended)
    return torch.where(wavelength < shortest, plain, scaled)


def rope_tables(rope: Rope, *, head_dim: int, positions: int, dtype: torch.dtype, device: torch.device) -> RopeTables:
    """Tables for positions 0 … `positions - 1` in the model's element type."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = inverse_frequencies(rope, head_dim, wide)
    angles = torch.outer(torch.arange(positions, dtype=wide), frequencies)
    both_halves = torch.cat((angles, angles), dim=-1)
    return RopeTables(both_halves.cos().to(dtype).to(device), both_halves.sin().to(dtype).to(device))
