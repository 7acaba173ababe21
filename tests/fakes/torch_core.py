"""The core over a PyTorch executor, driven by hand as `core_harness` does it for the simulated one."""

from collections import defaultdict

from fakes.core_harness import CoreHarness, SilentBoard
from triptych_contract.clock import ManualClock
from triptych_engine.core.config import CoreConfig
from triptych_engine.core.engine import Core
from triptych_engine.executor.torch import TorchExecutor


class TorchCore(CoreHarness):
    """One core over a loaded executor, which gets a new, empty pool.

    Args:
        executor: Used by one core at a time.
        max_batch_tokens: Tokens of one step; a few make chunks of every prompt.
    """

    def __init__(self, executor: TorchExecutor, *, max_batch_tokens: int = 512) -> None:
        self.clock = ManualClock(100.0)
        self.layout = executor.info.layout
        self.pool = bytearray(self.layout.pool_bytes)
        self.executor = executor
        executor.bind(memoryview(self.pool))
        self.said = []
        config = CoreConfig(
            kind="torch", max_batch_tokens=max_batch_tokens, max_sequences=32, max_context=executor.info.max_context
        )
        self.core = Core(executor, config, clock=self.clock, send=self._hear, board=SilentBoard())
        self.tokens = defaultdict(list)
        self.ends = {}
