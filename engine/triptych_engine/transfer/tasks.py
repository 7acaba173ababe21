"""Background tasks with an owner: bounded in number, none outlives its owner, no failure is lost."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Tasks:
    """Tasks of one owner.

    Args:
        limit: Most tasks at a time.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None] | None:
        """Run a coroutine in a task; None, and the coroutine never starts, if there are too many."""
        if len(self._tasks) >= self._limit:
            work.close()
            return None
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self, limit_s: float) -> None:
        """Let all tasks end by themselves within so many seconds, then as `close`."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=limit_s)
        await self.close()

    async def close(self) -> None:
        """Cancel all tasks and wait for their end."""
        while self._tasks:
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("task %s failed", task.get_name(), exc_info=task.exception())
