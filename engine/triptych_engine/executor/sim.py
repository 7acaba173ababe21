"""The simulated executor: an integer language model, real KV bytes, and step times from a profile."""

import hashlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from triptych_engine.core.config import CoreConfig, SimConfig
from triptych_engine.executor.base import ExecutorInfo, Sampled, StepPlan
from triptych_engine.executor.cost import plan_seconds
from triptych_engine.kv.layout import KVLayout
from triptych_engine.sim.model import SEGMENTS, WORD_BYTES, SimMemory, contents
from triptych_engine.sim.pace import Pace
from triptych_engine.sim.sampling import choose
from triptych_engine.sim.vocabulary import Vocabulary

BLOCK_TOKENS = 32
DEFAULT_BLOCKS = 4096
DEFAULT_CONTEXT = 8192
KV_DTYPE = "uint64"
PRINTABLE = range(32, 127)


class SimExecutor:
    """Implements `Executor` over numpy arrays in the KV pool.

    Args:
        config: Settings of the simulation.
        num_blocks: Blocks of the KV pool, the padding block among them.
        max_context: Longest sequence in tokens.
        pace: Lets a step take its time.
    """

    def __init__(self, config: SimConfig, *, num_blocks: int, max_context: int, pace: Pace) -> None:
        self._config = config
        self._pace = pace
        self._vocabulary = Vocabulary(config.allowed or PRINTABLE, config.eos_token_ids)
        self._memory: SimMemory | None = None
        self._info = ExecutorInfo(
            layout=KVLayout(
                num_blocks=num_blocks,
                segments=SEGMENTS,
                block_tokens=BLOCK_TOKENS,
                token_bytes=config.token_bytes,
            ),
            kv_dtype=KV_DTYPE,
            fingerprint=_fingerprint(config),
            vocab_size=config.vocab_size,
            max_context=max_context,
            profile=config.profile,
            embedding_dtype="uint8",
            embedding_bytes=config.embedding_bytes,
        )

    @property
    def info(self) -> ExecutorInfo:
        """Geometry and limits."""
        return self._info

    @property
    def memory(self) -> SimMemory:
        """The bound pool; using it before `bind` is a defect of ours."""
        if self._memory is None:
            raise RuntimeError("the KV pool is not bound")
        return self._memory

    def bind(self, pool: memoryview) -> None:
        """Take the pool's bytes."""
        self._memory = SimMemory(self._info.layout, pool)

    def warm_up(self) -> None:
        """Nothing gets faster by running."""

    def execute(self, plan: StepPlan) -> list[Sampled]:
        """Write the context of all rows, then read it back and choose where asked."""
        began_s = self._pace.begin()
        memory = self.memory
        singles = [row for row in plan.rows if len(row.token_ids) == 1 and not row.embeddings]
        if singles:
            memory.write_singles(singles, np.array([row.token_ids[0] for row in singles], dtype=np.uint64))
        for row in plan.rows:
            if len(row.token_ids) > 1 or row.embeddings:
                memory.write(row, contents(row, embedding_bytes=self._config.embedding_bytes))
        results: list[Sampled] = []
        rows = [row for row in plan.rows if row.sample is not None]
        for row, state in zip(rows, memory.read(rows) if rows else (), strict=True):
            if row.sample is not None:
                token_id, logprobs = choose(row.sample, state, self._vocabulary)
                results.append(Sampled(row.sequence, token_id, logprobs))
        self._pace.finish(began_s=began_s, seconds=plan_seconds(self._config.profile, plan))
        return results

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks."""
        for source, target in pairs:
            self.memory.copy(source, target)

    def export_blocks(self, blocks: Sequence[int]) -> None:
        """The pool's bytes are the KV itself."""

    def import_blocks(self, blocks: Sequence[int]) -> None:
        """The pool's bytes are the KV itself."""

    def encode(self, data: bytes, count: int) -> bytes:
        """`count` rows that depend on nothing but the bytes of the image and the row's number."""
        digest = hashlib.sha256(data).digest()
        rows = (hashlib.shake_256(digest + row.to_bytes(4, "little")) for row in range(count))
        return b"".join(row.digest(self._config.embedding_bytes) for row in rows)


def load_sim(
    config: CoreConfig,
    *,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> SimExecutor:
    """The simulated executor for a configuration.

    Raises:
        ValueError: A setting that the simulation cannot take.
    """
    sim = config.sim
    if sim.token_bytes < WORD_BYTES or sim.token_bytes % WORD_BYTES:
        raise ValueError(f"token_bytes must be a multiple of {WORD_BYTES}")
    block_bytes = SEGMENTS * BLOCK_TOKENS * sim.token_bytes
    num_blocks = config.kv_blocks or config.kv_memory_bytes // block_bytes or DEFAULT_BLOCKS
    pace = Pace(
        now_s=now_s,
        sleep=sleep,
        seed=sim.seed,
        jitter_percent=sim.jitter_percent,
        time_scale=sim.time_scale,
    )
    return SimExecutor(sim, num_blocks=num_blocks, max_context=config.max_context or DEFAULT_CONTEXT, pace=pace)


def _fingerprint(config: SimConfig) -> str:
    """Equal for engines that say the same: time and jitter take no part."""
    said = repr((config.vocab_size, config.allowed, config.eos_token_ids, config.token_bytes, config.embedding_bytes))
    return "sim-" + hashlib.sha256(said.encode()).hexdigest()[:32]
