"""Each fast operation against the plain one on random shapes; the code of accelerators runs on the CPU here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych_engine.executor.base import PlanRow, SampleSpec, StepPlan
from triptych_engine.ops.base import HeadShape, RopeTable
from triptych_engine.ops.batch import ForwardBatch, build_batch
from triptych_engine.ops.cpu import CpuOps
from triptych_engine.ops.cuda import CudaOps
from triptych_engine.ops.packed import packing_works
from triptych_engine.ops.reference import ReferenceOps

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")
BLOCK = 8
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
shapes = st.builds(
    lambda kv, group, half: HeadShape(kv * group, kv, 2 * half), st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)
)
rows = st.lists(st.tuples(st.integers(0, 70), st.sampled_from([1, 1, 1, 2, 9, 130])), min_size=1, max_size=7)
"""Context before the row, and tokens of the row."""


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    slack = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 4e-2}[wanted.dtype]
    return found.shape == wanted.shape and bool(torch.allclose(found, wanted, rtol=slack, atol=slack))


def batch_of(spans: list[tuple[int, int]], unstored: int = 0) -> tuple[ForwardBatch, int]:
    """A batch with blocks of its own for each row, in falling order; and how many blocks there are."""
    plan_rows, used = [], 1
    for index, (first, count) in enumerate(spans):
        blocks = -(-(first + count) // BLOCK)
        table = list(range(used + blocks - 1, used - 1, -1))
        used += blocks
        stored_from = first + min(unstored, count)
        plan_rows.append(PlanRow(index, [0] * count, first, table, stored_from, SampleSpec()))
    return build_batch(StepPlan(tuple(plan_rows)), block_tokens=BLOCK, device=CPU), used


class TestLinear:
    @given(dtype=dtypes, tokens=st.integers(1, 40), inputs=st.integers(1, 70), outputs=st.integers(1, 50))
    def test_packed_or_not(self, dtype: torch.dtype, tokens: int, inputs: int, outputs: int) -> None:
        x, weight = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype) / inputs**0.5
        bias = torch.randn(outputs).to(dtype) if outputs % 2 else None
        fast, plain = CpuOps(dtype=dtype), ReferenceOps(device=CPU, dtype=dtype)
        assert close(fast.linear(x, fast.pack_linear(weight, bias)), plain.linear(x, plain.pack_linear(weight, bias)))

    def test_a_float32_row_is_the_same_in_every_batch(self) -> None:
        if not packing_works(torch.float32):
            pytest.skip("this build of torch has no packed linears")
        ops = CpuOps(dtype=torch.float32)
        for inputs in (96, 1024, 2048):
            weight = ops.pack_linear(torch.randn(64, inputs), None)
            x = torch.randn(9, inputs)
            whole = ops.linear(x, weight)
            for count in (1, 2, 5):
                assert torch.equal(ops.linear(x[:count], weight), whole[:count])

    def test_float64_is_never_packed(self) -> None:
        assert not packing_works(torch.float64)
        assert not CpuOps(dtype=torch.float64).pack_linear(torch.eye(3, dtype=torch.float64), None).packed


class TestAttention:
    @settings(max_examples=40)
    @given(dtype=dtypes, shape=shapes, spans=rows, seed=st.integers(0, 99))
    def test_over_paged_blocks(
        self, dtype: torch.dtype, shape: HeadShape, spans: list[tuple[int, int]], seed: int
    ) -> None:
        torch.manual_seed(seed)
        batch, blocks = batch_of(spans)
        kv = torch.randn(blocks, 2, shape.kv_heads, BLOCK, shape.head_dim).to(dtype)
        q = torch.randn(batch.query_starts[-1], shape.heads, shape.head_dim).to(dtype)
        plain = ReferenceOps(device=CPU, dtype=dtype, block_tokens=BLOCK)
        wanted = plain.attention(q, kv, plain.plan_attention(batch), shape)
        for ops in (CpuOps(dtype=dtype, block_tokens=BLOCK), CudaOps(device=CPU, dtype=dtype, block_tokens=BLOCK)):
            assert close(ops.attention(q, kv, ops.plan_attention(batch), shape), wanted)


class TestStoring:
    @given(shape=shapes, spans=rows, unstored=st.integers(0, 3), normed=st.booleans())
    def test_writes_the_stored_slots_and_nothing_else(
        self, shape: HeadShape, spans: list[tuple[int, int]], unstored: int, normed: bool
    ) -> None:
        batch, blocks = batch_of(spans, unstored)
        ops = CpuOps(dtype=torch.float64, block_tokens=BLOCK)
        tokens = batch.query_starts[-1]
        kv = torch.full((blocks, 2, shape.kv_heads, BLOCK, shape.head_dim), 7.0, dtype=torch.float64)
        qkv = torch.randn(tokens, (shape.heads + 2 * shape.kv_heads) * shape.head_dim, dtype=torch.float64)
        values = qkv.view(tokens, -1, shape.head_dim)[:, -shape.kv_heads :].clone()
        norm = torch.ones(shape.heads + shape.kv_heads, shape.head_dim, dtype=torch.float64) if normed else None
        still = RopeTable(
            torch.ones(tokens, 1, shape.head_dim, dtype=torch.float64),
            torch.zeros(tokens, 1, shape.head_dim, dtype=torch.float64),
        )
        ops.qk_norm_rope_store(qkv, norm=norm, eps=1e-6, rope=still, kv=kv, batch=batch, shape=shape)
        slots = batch.slots.tolist()
        for token, slot in enumerate(slots):
            if slot >= 0:
                assert torch.equal(kv[slot // BLOCK, 1, :, slot % BLOCK], values[token])
        written = (kv[:, 1, 0, :, 0] != 7.0).sum()
        assert int(written) == sum(slot >= 0 for slot in slots)


class TestCopies:
    def test_blocks_are_copied_whole(self) -> None:
        ops = ReferenceOps(device=CPU, dtype=torch.float32)
        pool = torch.randn(6, 2, 2, 1, 4, 3)
        before = pool.clone()
        ops.kv_copy(pool, [(1, 4), (2, 5)])
        assert torch.equal(pool[4:], before[1:3])
        assert torch.equal(pool[:4], before[:4])
        ops.kv_copy(pool, [])
