"""The PyTorch executor: a decoder of a Hugging Face folder over the paged KV pool, on a CPU or a CUDA device.

    StepPlan → ForwardBatch → Decoder.forward → logits of the sampled rows → sampler → Sampled

On a CPU the pool's bytes are the KV itself. On a device the KV lives there, and the bytes are the mirror through
which blocks are handed over.

Importing this module sets `THP_MEM_ALLOC_ENABLE=1` (huge pages for weights: a third less time for one row), which
torch reads when it is first imported; a parent process that sets it for its children is as good.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch  # after the setting above

from triptych_contract.profile import StepProfile
from triptych_engine.executor.base import ExecutorInfo, LoadProgress, Sampled, StepPlan
from triptych_engine.executor.measure import (
    decode_plan,
    measure_profile,
    prefill_plan,
    scratch_blocks,
    scratch_context,
)
from triptych_engine.executor.sizing import choose_blocks, choose_context
from triptych_engine.kv.layout import KVLayout
from triptych_engine.model.config import choose_dtype, read_config
from triptych_engine.model.decoder import Decoder
from triptych_engine.model.errors import ModelFolderError
from triptych_engine.model.fingerprint import fingerprint
from triptych_engine.model.load import load_decoder
from triptych_engine.model.tensors import find_tensors
from triptych_engine.ops.base import Ops
from triptych_engine.ops.batch import build_batch
from triptych_engine.ops.cpu import CpuOps
from triptych_engine.ops.cuda import CudaOps
from triptych_engine.ops.native.attention import load_attention

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class TorchExecutor:
    """Computes steps with a decoder; see `executor.base.Executor`.

    Args:
        decoder: The model.
        info: What the core is told of it.
    """

    def __init__(self, *, decoder: Decoder, info: ExecutorInfo) -> None:
        self._decoder = decoder
        self._info = info
        self._device = decoder.ops.device
        self._pool: torch.Tensor | None = None
        self._mirror: torch.Tensor | None = None

    @property
    def info(self) -> ExecutorInfo:
        """Known once the executor is made."""
        return self._info

    def bind(self, pool: memoryview) -> None:
        """Take the pool's bytes; the memory view must outlive the executor."""
        mirror = torch.frombuffer(pool, dtype=self._decoder.ops.dtype).view(
            pool_shape(self._decoder, self._info.layout.num_blocks)
        )
        on_host = self._device.type == "cpu"
        self._mirror = None if on_host else mirror
        self._pool = mirror if on_host else torch.zeros_like(mirror, device=self._device)

    def warm_up(self) -> None:
        """Compute a chunk and a decode step on the padding block, without leaving anything behind in others."""
        count = min(self._decoder.ops.block_tokens, self._info.max_context) - 1
        for plan in (
            prefill_plan(tokens=max(1, count), context_tokens=0, block_tokens=self._decoder.ops.block_tokens),
            decode_plan(rows=1, context_tokens=max(0, count), block_tokens=self._decoder.ops.block_tokens),
        ):
            self.execute(plan)

    def execute(self, plan: StepPlan) -> list[Sampled]:
        """Compute a step and sample where asked.

        Raises:
            ValueError: A row that no batch can be built from, or one with input embeddings.
        """
        return run_plan(self._decoder, plan, self._bound())

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole physical blocks (source, target)."""
        self._decoder.ops.kv_copy(self._bound(), pairs)

    def export_blocks(self, blocks: Sequence[int]) -> None:
        """Write the device's blocks into the mirror; on a CPU they are the same."""
        if self._mirror is not None and blocks:
            self._mirror[list(blocks)] = self._bound()[list(blocks)].cpu()

    def import_blocks(self, blocks: Sequence[int]) -> None:
        """Read the device's blocks from the mirror; on a CPU they are the same."""
        if self._mirror is not None and blocks:
            self._bound()[list(blocks)] = self._mirror[list(blocks)].to(self._device)

    def encode(self, data: bytes, count: int) -> bytes:
        """No model served here takes images; raises `ValueError`."""
        raise ValueError("this model takes no images")

    def _bound(self) -> torch.Tensor:
        if self._pool is None:
            raise RuntimeError("bind comes before the first step")
        return self._pool


def load_torch(
    *,
    model_dir: Path,
    dtype: str,
    device: str,
    threads: int,
    kv_blocks: int,
    kv_memory_bytes: int,
    max_context: int,
    progress: LoadProgress,
    kernels: str = "auto",
) -> TorchExecutor:
    """Load a folder.

    Args:
        model_dir: A Hugging Face folder of a Qwen3, Qwen2 or Llama model.
        dtype: `auto` (the folder's, else float32), `float32`, `bfloat16` or `float64`.
        device: `auto` (CUDA if there is one), `cpu` or `cuda`.
        threads: Compute threads; 0 = one for each core of the machine.
        kv_blocks: Blocks of the pool; 0 = as many as its memory holds.
        kv_memory_bytes: Memory of the pool; 0 = `executor.sizing` chooses.
        max_context: Longest sequence; 0 = the model's, at most `executor.sizing.DEFAULT_CONTEXT`.
        progress: Told percent and a few words.
        kernels: `auto` uses the CPU kernels if they are built, `off` never does.

    Raises:
        ModelFolderError: The folder or a setting cannot be served; the message is safe to show.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    progress(0, "reading the configuration")
    config = read_config(model_dir)
    dtype_name = choose_dtype(dtype, config)
    ops = _make_ops(device, _DTYPES[dtype_name], kernels, config.head_dim)
    places = find_tensors(model_dir)
    context = choose_context(asked=max_context, of_model=config.max_context)
    decoder = load_decoder(config=config, places=places, ops=ops, max_context=context, progress=progress)
    token_bytes = config.head_dim * ops.dtype.itemsize
    segments = config.num_layers * 2 * config.num_kv_heads
    layout = KVLayout(
        num_blocks=choose_blocks(
            asked=kv_blocks,
            memory_bytes=kv_memory_bytes,
            block_bytes=segments * ops.block_tokens * token_bytes,
            context_blocks=-(-context // ops.block_tokens),
        ),
        segments=segments,
        block_tokens=ops.block_tokens,
        token_bytes=token_bytes,
    )
    progress(100, "measuring the speed of a step")
    info = ExecutorInfo(
        layout=layout,
        kv_dtype=dtype_name,
        fingerprint=fingerprint(config, dtype_name, places),
        vocab_size=config.vocab_size,
        max_context=context,
        profile=_measure(decoder, context),
    )
    return TorchExecutor(decoder=decoder, info=info)


def pool_shape(decoder: Decoder, num_blocks: int) -> tuple[int, ...]:
    """[blocks, layers, 2, kv heads, block tokens, head dim]."""
    config = decoder.config
    return (num_blocks, config.num_layers, 2, config.num_kv_heads, decoder.ops.block_tokens, config.head_dim)


def run_plan(decoder: Decoder, plan: StepPlan, pool: torch.Tensor) -> list[Sampled]:
    """One step over a pool; raises `ValueError` as `TorchExecutor.execute` does."""
    if any(row.embeddings for row in plan.rows):
        raise ValueError("this model takes no input embeddings")
    if not plan.rows:
        return []
    ops = decoder.ops
    with torch.inference_mode():
        batch = build_batch(plan, block_tokens=ops.block_tokens, device=ops.device)
        logits = decoder.forward(batch, pool)
        asked = [(row.sequence, row.sample) for row in plan.rows if row.sample is not None]
        choices = ops.sample(logits, [spec for _, spec in asked]) if asked else []
    return [
        Sampled(sequence, choice.token_id, choice.logprobs)
        for (sequence, _), choice in zip(asked, choices, strict=True)
    ]


def _make_ops(device: str, dtype: torch.dtype, kernels: str, head_dim: int) -> Ops:
    if device not in ("auto", "cpu", "cuda"):
        raise ModelFolderError(f"device must be auto, cpu or cuda; it is {device!r}.")
    has_cuda = torch.cuda.is_available() if device != "cpu" else False
    if device == "cuda" and not has_cuda:
        raise ModelFolderError("device cuda is asked for, but this machine has no usable CUDA device.")
    if has_cuda:
        return CudaOps(device=torch.device("cuda"), dtype=dtype)
    return CpuOps(dtype=dtype, native=load_attention(kernels, dtype=dtype, head_dim=head_dim))


def _measure(decoder: Decoder, max_context: int) -> StepProfile:
    block_tokens = decoder.ops.block_tokens
    pool = torch.zeros(
        pool_shape(decoder, scratch_blocks(max_context, block_tokens)),
        dtype=decoder.ops.dtype,
        device=decoder.ops.device,
    )
    longest = prefill_plan(tokens=scratch_context(max_context), context_tokens=0, block_tokens=block_tokens)
    run_plan(decoder, longest, pool)
    return measure_profile(
        lambda plan: run_plan(decoder, plan, pool),
        now_s=time.monotonic,
        block_tokens=block_tokens,
        max_context=max_context,
    )
