"""The compiled attention against plain torch in float64, on every instruction set that this machine has."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies  # noqa: F401  # loads the hypothesis profile
from fakes.oracle_models import prompt
from fakes.torch_runner import Runner, load
from triptych_engine.executor.base import PlanRow, SampleSpec, StepPlan
from triptych_engine.kernels import find_built, library_path
from triptych_engine.ops.base import HeadShape
from triptych_engine.ops.batch import ForwardBatch, build_batch
from triptych_engine.ops.cpu import CpuOps
from triptych_engine.ops.native.attention import NativeAttention, answers_as_torch, load_attention
from triptych_engine.ops.reference import ReferenceOps

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")
Oracle = Callable[[str], tuple[Any, Path]]
SLACK = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
OUTPUT = 16
MIXED = [(0, 1), (31, 1), (7, 9), (32, 1), (100, 1), (0, 40), (63, 1)]
"""Context before the row, and tokens of the row."""

shapes = st.builds(
    lambda kv, group, dim: HeadShape(kv * group, kv, 16 * dim), st.integers(1, 3), st.integers(1, 9), st.integers(1, 16)
)
spans = st.lists(st.tuples(st.integers(0, 90), st.sampled_from([1, 1, 1, 1, 2, 9])), min_size=1, max_size=6)


@pytest.fixture
def cached(kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(kernel_cache))


@pytest.fixture(scope="module")
def kernels_of(kernel_cache: Path) -> list[NativeAttention]:
    """One for each instruction set up to that of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kernel_cache))
        assert load_attention("auto", dtype=torch.float32, head_dim=32) is not None
    return [NativeAttention(isa) for isa in range(torch.ops.triptych.best_isa() + 1)]


def batch_of(spans: list[tuple[int, int]], block: int) -> tuple[ForwardBatch, int]:
    """Rows with blocks of their own in falling order; and how many blocks there are."""
    rows, used = [], 1
    for index, (first, count) in enumerate(spans):
        blocks = -(-(first + count) // block)
        table = list(range(used + blocks - 1, used - 1, -1))
        rows.append(PlanRow(index, [0] * count, first, table, first, SampleSpec()))
        used += blocks
    return build_batch(StepPlan(tuple(rows)), block_tokens=block, device=CPU), used


def attend(
    native: NativeAttention | None, q: torch.Tensor, kv: torch.Tensor, batch: ForwardBatch, shape: HeadShape
) -> torch.Tensor:
    ops = CpuOps(dtype=q.dtype, block_tokens=kv.shape[3], native=native)
    return ops.attention(q, kv, ops.plan_attention(batch), shape)


def in_float64(q: torch.Tensor, kv: torch.Tensor, batch: ForwardBatch, shape: HeadShape) -> torch.Tensor:
    ops = ReferenceOps(device=CPU, dtype=torch.float64, block_tokens=kv.shape[3])
    return ops.attention(q.double(), kv.double(), ops.plan_attention(batch), shape)


def drawn(
    dtype: torch.dtype, shape: HeadShape, spans: list[tuple[int, int]], block: int
) -> tuple[torch.Tensor, torch.Tensor, ForwardBatch]:
    """Queries and KV as a model has them: parts of wider tensors."""
    batch, blocks = batch_of(spans, block)
    pool = torch.randn(blocks, 3, 2, shape.kv_heads, block, shape.head_dim).to(dtype)
    wide = torch.randn(batch.query_starts[-1], shape.heads + 2 * shape.kv_heads, shape.head_dim).to(dtype)
    return wide[:, : shape.heads], pool[:, 1], batch


class TestAnswers:
    @settings(max_examples=40)
    @given(
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
        shape=shapes,
        layout=st.tuples(st.integers(1, 40), spans, st.integers(0, 99)),
    )
    def test_are_those_of_the_reference_for_any_heads_blocks_and_contexts(
        self,
        kernels_of: list[NativeAttention],
        dtype: torch.dtype,
        shape: HeadShape,
        layout: tuple[int, list[tuple[int, int]], int],
    ) -> None:
        block, spans, seed = layout
        torch.manual_seed(seed)
        q, kv, batch = drawn(dtype, shape, spans, block)
        wanted = in_float64(q, kv, batch, shape)
        for native in kernels_of:
            found = attend(native, q, kv, batch, shape).double()
            assert torch.allclose(found, wanted, rtol=SLACK[dtype], atol=SLACK[dtype])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_do_not_depend_on_what_stands_past_the_context(
        self, kernels_of: list[NativeAttention], dtype: torch.dtype
    ) -> None:
        shape = HeadShape(6, 2, 32)
        q, kv, batch = drawn(dtype, shape, MIXED, 32)
        dirty = torch.full_like(kv, math.nan)
        for row, context in enumerate(batch.context_lengths):
            for position in range(context):
                block, slot = batch.block_tables[row][position // 32], position % 32
                dirty[block, :, :, slot] = kv[block, :, :, slot]
        singles = [batch.query_starts[row] for row in range(batch.num_rows) if batch.query_length(row) == 1]
        for native in kernels_of:
            clean = attend(native, q, kv, batch, shape)[singles]
            assert torch.equal(attend(native, q, dirty, batch, shape)[singles], clean)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_are_bit_for_bit_those_of_a_row_alone(self, kernels_of: list[NativeAttention], dtype: torch.dtype) -> None:
        shape = HeadShape(14, 2, 64)
        q, kv, batch = drawn(dtype, shape, [(first, 1) for first in (0, 5, 31, 32, 64, 77)], 32)
        for native in kernels_of:
            together = attend(native, q, kv, batch, shape)
            for row, table in enumerate(batch.block_tables):
                alone = PlanRow(0, [0], batch.context_lengths[row] - 1, list(table), 0, SampleSpec())
                single = build_batch(StepPlan((alone,)), block_tokens=32, device=CPU)
                assert torch.equal(attend(native, q[row : row + 1], kv, single, shape), together[row : row + 1])

    def test_large_scores_neither_overflow_nor_vanish(self, kernels_of: list[NativeAttention]) -> None:
        shape = HeadShape(2, 1, 16)
        q, kv, batch = drawn(torch.float32, shape, [(60, 1)], 32)
        for native in kernels_of:
            found = attend(native, q * 1e4, kv, batch, shape)
            assert torch.allclose(found.double(), in_float64(q * 1e4, kv, batch, shape), atol=1e-4)


class TestBadNumbers:
    @pytest.mark.parametrize(
        ("token", "block", "context"), [(1, 0, 4), (-1, 0, 4), (0, 3, 4), (0, -1, 4), (0, 0, 33), (0, 0, 0)]
    )
    def test_never_reach_foreign_memory(
        self, kernels_of: list[NativeAttention], token: int, block: int, context: int
    ) -> None:
        q, kv = torch.zeros(1, 2, 16), torch.zeros(3, 2, 1, 32, 16)
        rows = (torch.tensor([token]), torch.tensor([[block]]), torch.tensor([context]))
        with pytest.raises(RuntimeError, match="out of bounds"):
            torch.ops.triptych.paged_attention(q, kv, *rows, 1.0, 0, torch.empty_like(q))


class TestModels:
    @pytest.mark.usefixtures("cached")
    @pytest.mark.parametrize("kind", ["qwen3", "llama3-rope"])
    def test_say_the_same_with_and_without_kernels(
        self, kind: str, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls, said = [], []
        call = NativeAttention.__call__
        monkeypatch.setattr(NativeAttention, "__call__", lambda *args: (calls.append(1), call(*args))[1])
        for mode in ("off", "auto"):
            calls.clear()
            executor = load(oracle(kind)[1], kernels=mode)
            runner = Runner(executor)
            lanes = [runner.add(prompt(seed, 20 + 17 * seed), room=OUTPUT) for seed in range(4)]
            while any(len(lane.out) < OUTPUT for lane in lanes):
                runner.step([(lane, len(lane.tokens) - lane.computed) for lane in lanes])
            said.append([lane.out for lane in lanes])
            assert bool(calls) == (mode == "auto")
        assert said[0] == said[1]


class TestLoading:
    @pytest.mark.usefixtures("cached")
    @pytest.mark.parametrize(
        ("mode", "dtype", "dim"), [("off", "float32", 32), ("auto", "float64", 32), ("auto", "float32", 24)]
    )
    def test_is_left_out_where_it_is_off_or_not_made_for_the_model(self, mode: str, dtype: str, dim: int) -> None:
        assert load_attention(mode, dtype=getattr(torch, dtype), head_dim=dim) is None

    def test_says_once_how_to_build_what_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with caplog.at_level(logging.INFO):
            assert load_attention("auto", dtype=torch.float32, head_dim=32) is None
        assert [record.message for record in caplog.records if "--build-kernels" in record.message]

    def test_does_not_use_a_kernel_that_answers_wrongly(
        self, kernels_of: list[NativeAttention], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert answers_as_torch(kernels_of[0], torch.float32)
        monkeypatch.setattr(NativeAttention, "__call__", lambda self, q, kv, plan, shape, out: out.fill_(0.5))
        assert not answers_as_torch(kernels_of[0], torch.float32)

    def test_takes_no_library_that_others_may_change(self, kernel_cache: Path) -> None:
        environ = {"XDG_CACHE_HOME": str(kernel_cache)}
        path = library_path(environ)
        assert find_built(environ) == path
        for part in (path, path.parent, path.parents[2]):
            mode = part.stat().st_mode
            part.chmod(mode | 0o022)
            assert find_built(environ) is None
            part.chmod(mode)
        assert find_built(environ) == path
