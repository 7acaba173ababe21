"""The router's view of a service: discovery says where instances are, their own streams say the rest.

A record that goes away takes its instance out of the view for new work at once; what runs there ends with the
instance's life, so that a drain finishes. Losing discovery itself changes nothing.
"""

import asyncio
import logging

import aiohttp

from triptych_contract.clock import Clock
from triptych_contract.instance import InstanceRecord
from triptych_contract.registry import Registry
from triptych_router.cluster.follow import Followed, follow
from triptych_router.cluster.lives import Life
from triptych_router.cluster.view import ClusterView, Dialect
from triptych_router.log import log

TICK_S = 0.1
MAX_INSTANCES = 1024
REGISTRY_PAUSE_S = 1.0


class ClusterWatch:
    """Keeps the view; `run` is its one task, `view` and `changed` are for readers."""

    def __init__(
        self, registry: Registry, session: aiohttp.ClientSession, *, clock: Clock, service: str, token: str, model: str
    ) -> None:
        self._registry = registry
        self._session = session
        self._clock = clock
        self._service = service
        self._token = token
        self._model = model
        self._followed: dict[tuple[str, str], Followed] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._listed_once = False
        self._refused: set[str] = set()
        self._view: ClusterView | None = None
        self._change = asyncio.Event()

    def view(self) -> ClusterView:
        """The present view; cheap, it is rebuilt only after a change or a tick."""
        if self._view is None:
            now_s = self._clock.now_s()
            seen = [(followed, followed.view(now_s)) for followed in self._followed.values()]
            shown = (view for _, view in seen if view is not None and self._model in ("", view.state.model))
            complete = self._listed_once and all(followed.heard for followed, _ in seen)
            self._view = ClusterView(tuple(sorted(shown, key=lambda view: view.id)), complete)
        return self._view

    def life(self, record: InstanceRecord) -> Life:
        """The life behind a record; one that is over if it is not followed any more."""
        followed = self._followed.get((record.id, record.incarnation))
        if followed is not None:
            return followed.life
        over = Life()
        over.end()
        return over

    async def changed(self, timeout_s: float) -> None:
        """Wait for the next change of the view, at most so long."""
        change = self._change
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await change.wait()
        except TimeoutError:
            return

    async def run(self) -> None:
        """Follow discovery and all instances until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tick())
                group.create_task(self._watch(group))
        finally:
            for followed in self._followed.values():
                followed.life.end()

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        while True:
            try:
                async for records in self._registry.watch():
                    self._take(records, group)
            except OSError as error:
                log(logging.WARNING, "discovery lost", cause=type(error).__name__)
            await asyncio.sleep(REGISTRY_PAUSE_S)

    def _take(self, records: tuple[InstanceRecord, ...], group: asyncio.TaskGroup) -> None:
        wanted = {(record.id, record.incarnation): record for record in records if self._is_ours(record)}
        for key, followed in self._followed.items():
            followed.listed = key in wanted and wanted[key] == followed.record
        for key, record in list(wanted.items())[:MAX_INSTANCES]:
            known = self._followed.get(key)
            if known is None or known.record != record:
                self._start(key, record, group)
        self._listed_once = True
        self._mark()

    def _start(self, key: tuple[str, str], record: InstanceRecord, group: asyncio.TaskGroup) -> None:
        self._stop(key)
        followed = self._followed[key] = Followed(record, now_s=self._clock.now_s())
        reading = follow(followed, self._session, token=self._token, clock=self._clock, changed=self._mark)
        self._tasks[key] = group.create_task(reading)

    def _stop(self, key: tuple[str, str]) -> None:
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
        followed = self._followed.pop(key, None)
        if followed is not None:
            followed.life.end()

    def _is_ours(self, record: InstanceRecord) -> bool:
        if record.service != self._service:
            return False
        if record.dialect != Dialect.TRIPTYCH:
            if record.id not in self._refused and len(self._refused) < MAX_INSTANCES:
                self._refused.add(record.id)
                log(logging.WARNING, "instance not routed to", instance=record.id, dialect=record.dialect)
            return False
        return True

    async def _tick(self) -> None:
        """Let health follow time, and sweep what is neither listed nor living."""
        before_s = self._clock.now_s()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = self._clock.now_s()
            lag_s = now_s - before_s - TICK_S
            before_s = now_s
            for key, followed in list(self._followed.items()):
                if lag_s > TICK_S:
                    followed.excuse(lag_s)
                followed.check_life(now_s)
                if not followed.listed and (followed.life.over or followed.stream.state is None):
                    self._stop(key)
            self._mark()

    def _mark(self) -> None:
        self._view = None
        change, self._change = self._change, asyncio.Event()
        change.set()
