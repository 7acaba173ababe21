"""One name for a model's configuration and weights: equal only for equal models. Imports no torch.

It goes into every block identity and into the link class, so that blocks of different models never meet. All
bytes are read while that is quick; of large models samples of every tensor are, which a changed, swapped or
renamed tensor does not survive, though a single changed weight may.
"""

import dataclasses
import hashlib
from collections.abc import Mapping

import msgspec

from triptych_engine.model.config import ModelConfig
from triptych_engine.model.tensors import TensorPlace

WHOLE_BYTES = 256 * 1024 * 1024
"""Up to here all bytes are hashed; about a quarter of a second."""
SAMPLE_BYTES = 4096
SAMPLES = 8
"""Samples taken of each tensor of a larger model, evenly spread."""


def fingerprint(config: ModelConfig, dtype: str, places: Mapping[str, TensorPlace]) -> str:
    """64 hex digits over configuration, computing element type, and names, shapes and bytes of the tensors.

    How the tensors are spread over files takes no part.
    """
    digest = hashlib.sha256(msgspec.msgpack.encode(("triptych-model-1", dataclasses.asdict(config), dtype)))
    total_bytes = sum(place.end_byte - place.start_byte for place in places.values())
    for name, place in sorted(places.items()):
        digest.update(msgspec.msgpack.encode((name, place.dtype, place.shape)))
        with place.path.open("rb") as file:
            for start, count in _ranges(place, whole=total_bytes <= WHOLE_BYTES):
                file.seek(start)
                digest.update(file.read(count))
    return digest.hexdigest()


def _ranges(place: TensorPlace, *, whole: bool) -> list[tuple[int, int]]:
    length = place.end_byte - place.start_byte
    if whole or length <= SAMPLES * SAMPLE_BYTES:
        return [(place.start_byte, length)]
    stride = (length - SAMPLE_BYTES) // (SAMPLES - 1)
    return [(place.start_byte + index * stride, SAMPLE_BYTES) for index in range(SAMPLES)]
