"""The core's loop: one thread that alternates between the channel and the next step.

While there is work the channel is only drained; while there is none the loop blocks on it until the next
deadline. Load samples are sent at a bounded rate during work, and at once when requests are admitted (the step
that follows may be long) and when work ends, so that what the server tells of them is true without delay.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from triptych_contract.clock import Clock
from triptych_engine.core.engine import Core
from triptych_engine.messages import AuditResult, Inbox, Outbox, Shutdown

_LOG = logging.getLogger(__name__)

STATS_INTERVAL_S = 0.05
"""Least time between two load samples during work; five of them fit between two heartbeats."""

AUDIT_AFTER_S = 1.0
"""Idle time after which the blocks are audited, once; work that arrives is never kept waiting by it."""


class Channel(Protocol):
    """The core's end of the channel."""

    def poll(self, timeout_s: float | None) -> list[Inbox]:
        """Messages that have arrived."""
        ...

    def send(self, message: Outbox) -> None:
        """Hand one message to the server."""
        ...


class CoreLoop:
    """Drives a `Core` from a channel until the server says stop or is gone.

    Args:
        core: Of this process.
        channel: To the server.
        clock: The machine's monotonic clock.
        on_taken: Told how many messages were taken, so that the server sees that the core still listens.
    """

    def __init__(
        self,
        core: Core,
        channel: Channel,
        *,
        clock: Clock,
        on_taken: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._core = core
        self._channel = channel
        self._clock = clock
        self._on_taken = on_taken
        self._stats_s = float("-inf")
        self._active_s = float("-inf")
        self._audited = True

    def run(self) -> None:
        """Returns after `Shutdown`.

        Raises:
            ChannelClosed, ChannelBroken: The server is gone or broken.
            CoreFault: The executor fails again and again.
        """
        busy = False
        self._tell_load(at_once=True)
        while True:
            messages = self._channel.poll(0.0 if busy else self._patience_s())
            self._on_taken(len(messages))
            for message in messages:
                if isinstance(message, Shutdown):
                    return
                self._core.receive(message)
                self._touch()
            decided = self._core.decide()
            busy = decided is not None
            self._tell_load(at_once=decided is None or bool(decided.admitted))
            if decided is not None:
                self._core.compute(decided)
                self._touch()

    def _touch(self) -> None:
        """Something happened, so the audit is due again."""
        self._active_s = self._clock.now_s()
        self._audited = False

    def _patience_s(self) -> float | None:
        """How long the idle loop may block; audits once when nothing has come for a while."""
        now_s = self._clock.now_s()
        deadline_s = self._core.next_deadline_s
        left_s = None if deadline_s is None else max(0.0, deadline_s - now_s)
        if self._audited:
            return left_s
        quiet_s = self._active_s + AUDIT_AFTER_S - now_s
        if quiet_s <= 0:
            self._audit()
            return left_s
        return quiet_s if left_s is None else min(left_s, quiet_s)

    def _audit(self) -> None:
        self._audited = True
        faults = self._core.audit()
        if faults:
            _LOG.error("block audit: %s", "; ".join(faults))
            self._channel.send(AuditResult(id="", faults=faults, stats=self._core.stats()))

    def _tell_load(self, *, at_once: bool) -> None:
        now_s = self._clock.now_s()
        if (at_once or now_s - self._stats_s >= STATS_INTERVAL_S) and self._core.take_changed():
            self._stats_s = now_s
            self._channel.send(self._core.stats())
