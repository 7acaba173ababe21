"""E → P → D: carry a route out, leg by leg, until the client has exactly one end.

    route ─ encode leg? ─┬─ prefill leg → ticket ─ decode leg (bound late) ─┬─ answer
                         └─ decode leg that does both ──────────────────────┘
      ▲                                   a leg failed before the first byte │
      └──────────── route again without the instance that failed ◄──────────┘

What follows a failure is decided in `retry`, where to go in `schedule`; this file only carries it out. While no
instance has the ticket its lease is renewed; every end but a delivered answer releases it.
"""

import asyncio

from triptych_contract.errors import NoInstance, TriptychError
from triptych_contract.roles import Stage
from triptych_router.cluster.view import InstanceKey, InstanceView
from triptych_router.dispatch.context import Context
from triptych_router.dispatch.legs import Held, Legs
from triptych_router.dispatch.outcome import Journey
from triptych_router.dispatch.reply import Reply
from triptych_router.dispatch.retry import LegFailed, Step, next_step
from triptych_router.dispatch.services import Services
from triptych_router.schedule.route import Route, bind_decode, no_instance, schedule

NO_INSTANCE_S = 1.5
"""How long a request waits for an instance of a needed stage to appear; within 2 s it has its refusal."""
SECOND_LOOK_S = 0.6
"""An instance that failed and is still in the view after so long may be tried again: the dead have left it."""
POLL_S = 0.25
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
LAST_MOMENT_S = 0.05
"""A wait ends so long before the deadline, so that the refusal can say what was waited for."""


class Flow:
    """One request on its way; `run` returns once the client has its answer, and raises if it got none."""

    def __init__(self, services: Services, context: Context, journey: Journey, reply: Reply) -> None:
        self._services = services
        self._context = context
        self._journey = journey
        self._legs = Legs(services, context, journey, reply)
        self._failed: set[InstanceKey] = set()
        self._full: set[InstanceKey] = set()
        self._full_since_s: float | None = None
        self._full_pause_s = FIRST_PAUSE_S
        self._last_failure: LegFailed | None = None
        self._images: Held | None = None

    async def run(self) -> TriptychError | None:
        """Run the legs.

        Returns:
            The error that an instance put into a stream which had begun; None for a whole answer.

        Raises:
            LegFailed: No attempt brought an answer; `delivered` says if the client has a part of it.
            TriptychError: No instance, or a full queue.
            ClientGone: The client left.
        """
        try:
            while True:
                route = await self._route()
                try:
                    return await self._follow(route)
                except LegFailed as failure:
                    self._after(failure)
        finally:
            self._journey.tokens = self._legs.ledger.tokens
            self._drop_images()

    async def _follow(self, route: Route) -> TriptychError | None:
        encode, prefill, decode = route.leg(Stage.ENCODE), route.leg(Stage.PREFILL), route.leg(Stage.DECODE)
        if encode is not None and encode.instance is not None and self._images is None:
            self._images = await self._legs.encode(encode.instance)
        if prefill is not None and prefill.instance is not None:
            ticket = await self._legs.prefill(prefill.instance, self._images)
            self._images = None  # the prefill instance has taken them and released their lease
            return await self._decode(ticket)
        if decode is None or decode.instance is None:
            raise no_instance(Stage.DECODE)
        return await self._legs.alone(decode.instance, self._images)

    async def _decode(self, ticket: Held) -> TriptychError | None:
        """Try decode instances until one answers; all of them get the same ticket."""
        delivered = False
        try:
            while True:
                instance = await self._bind(ticket)
                try:
                    ended = await self._legs.decode(instance, ticket)
                    delivered = True
                    return ended
                except LegFailed as failure:
                    delivered = failure.delivered
                    if self._step(failure) is Step.BACK:
                        raise
                    self._after(failure)
        finally:
            if not delivered:
                self._services.leases.release(ticket.record, ticket.lease)

    # --- where to ----------------------------------------------------------------------------------

    async def _route(self) -> Route:
        """The route now, or as soon as there is one."""
        services, began_s = self._services, self._services.clock.now_s()
        turn = services.turn()
        while True:
            try:
                route = schedule(
                    services.watch.view(),
                    self._context.parsed,
                    services.book.view(),
                    services.policy,
                    turn=turn,
                    handover_min_tokens=services.handover_min_tokens,
                    excluded=self._failed | self._full,
                )
            except NoInstance as refusal:
                await self._queue(refusal, waited_s=services.clock.now_s() - began_s)
                continue
            self._journey.queued_s += services.clock.now_s() - began_s
            self._journey.shape, self._journey.reason = route.shape.value, route.reason
            services.telemetry.decided(route.shape.value)
            return route

    async def _queue(self, refusal: NoInstance, *, waited_s: float) -> None:
        """Wait a moment in the bounded queue, or give up.

        Raises:
            NoInstance: None appeared in time.
            LegFailed: All instances stayed full.
            Overloaded: The queue is full.
        """
        now_s = self._services.clock.now_s()
        if self._full_since_s is not None and self._full and self._last_failure is not None:
            if now_s - self._full_since_s >= self._services.queue_timeout_s:
                raise self._last_failure
            with self._services.gate.queued():
                await asyncio.sleep(self._full_pause_s)
            self._full_pause_s = min(MAX_PAUSE_S, self._full_pause_s * 2)
            self._full.clear()
            return
        if waited_s >= NO_INSTANCE_S:
            raise refusal
        with self._services.gate.queued():
            await self._services.watch.changed(min(POLL_S, NO_INSTANCE_S - waited_s))
        if waited_s >= SECOND_LOOK_S:
            self._failed.clear()

    async def _bind(self, ticket: Held) -> InstanceView:
        """The decode instance for a ticket; waits for one until the request's deadline, and keeps the lease alive.

        Raises:
            NoInstance: None came before the deadline.
            Overloaded: The queue is full.
        """
        services, began_s = self._services, self._services.clock.now_s()
        turn = services.turn()
        instance = self._decoder(ticket, turn)
        if instance is None:
            again = Stage.DECODE in self._journey.attempts
            with services.leases.kept(ticket.record, ticket.lease, ticket.ttl_ms, at_once=again):
                while instance is None:
                    await self._look_again(began_s)
                    instance = self._decoder(ticket, turn)
        self._journey.queued_s += services.clock.now_s() - began_s
        return instance

    def _decoder(self, ticket: Held, turn: int) -> InstanceView | None:
        services = self._services
        return bind_decode(
            services.watch.view(),
            self._context.parsed,
            services.book.view(),
            services.policy,
            link_class=ticket.link_class,
            turn=turn,
            excluded=self._failed | self._full,
        )

    async def _look_again(self, began_s: float) -> None:
        """Wait in the bounded queue for a change; raises `NoInstance` at the deadline, `Overloaded` if it is full."""
        services = self._services
        now_s = services.clock.now_s()
        left_s = self._context.deadline_s - now_s - LAST_MOMENT_S
        if left_s <= 0:
            raise no_instance(Stage.DECODE)
        with services.gate.queued():
            await services.watch.changed(min(POLL_S, left_s))
        if now_s - began_s >= SECOND_LOOK_S:
            self._failed.clear()
            self._full.clear()

    # --- after a failure ---------------------------------------------------------------------------

    def _step(self, failure: LegFailed) -> Step:
        attempts = self._journey.attempts.get(failure.stage, 0)
        return next_step(failure, attempts=attempts, max_attempts=self._services.max_attempts)

    def _after(self, failure: LegFailed) -> None:
        """Note what failed, so that the next decision avoids it; raises the failure if there is no next one."""
        step = self._step(failure)
        # A full instance is asked again from the queue, which has a bound, a time and a pace of its own.
        if step is Step.GIVE_UP or (step is not Step.QUEUE and not self._services.spend_retry()):
            raise failure
        self._services.telemetry.retried(failure.stage.value, failure.cause.value)
        self._last_failure = failure
        if step is Step.BACK:
            self._drop_images()
            return
        instance = self._legs.last
        if instance is None:
            raise failure
        if step is Step.QUEUE:
            self._full.add(instance.key)
            if self._full_since_s is None:
                self._full_since_s = self._services.clock.now_s()
        else:
            self._failed.add(instance.key)

    def _drop_images(self) -> None:
        if self._images is not None:
            self._services.leases.release(self._images.record, self._images.lease)
            self._images = None
