"""The table of open calls: every call ends once, and nothing stays held at the core."""

import pytest

from triptych_contract.errors import Internal, NotReady, Overloaded, RequestTimeout
from triptych_contract.sampling import SamplingParams
from triptych_engine.messages import (
    Cancel,
    Delta,
    Deltas,
    FinishReason,
    Inbox,
    LeaseGranted,
    Mode,
    PullBlock,
    PullEnded,
    PullWanted,
    Rejected,
    ReleaseLease,
    Submit,
)
from triptych_engine.server.requests import MAX_BEHIND, RequestTable, Tokens


def submit(id_: str = "a", *, n: int = 1, mode: Mode = Mode.SERVE) -> Submit:
    return Submit(id=id_, token_ids=[1, 2], sampling=SamplingParams(n=n), mode=mode, lease="l")


def tokens(id_: str, choice: int = 0, *ids: int, end: FinishReason | None = None) -> Deltas:
    return Deltas(at_s=1.0, items=(Delta(id_, choice, 0, ids, end),))


class TestACall:
    def setup_method(self) -> None:
        self.sent: list[Inbox] = []
        self.table = RequestTable(self.sent.append)

    async def test_that_ends_by_itself_is_not_cancelled(self) -> None:
        with self.table.open([submit()]) as call:
            self.table.dispatch(tokens("a", 0, 5, end=FinishReason.LENGTH))
            event = await call.next()
        assert isinstance(event, Tokens)
        assert self.sent == [submit()]

    async def test_that_is_left_early_is_cancelled_for_every_prompt_that_still_runs(self) -> None:
        with self.table.open([submit("a"), submit("b")]):
            self.table.dispatch(tokens("a", 0, 5, end=FinishReason.STOP))
        assert self.sent[2:] == [Cancel("b")]

    async def test_with_a_stop_string_ends_that_choice_alone(self) -> None:
        with self.table.open([submit(n=2)]) as call:
            call.end_choice("a", 0)
            self.table.dispatch(tokens("a", 0, 7))
            self.table.dispatch(tokens("a", 1, 8, end=FinishReason.LENGTH))
            event = await call.next()
        assert isinstance(event, Tokens)
        assert event.delta.choice == 1
        assert self.sent[1:] == [Cancel("a", 0)]

    async def test_that_is_refused_raises_the_core_s_error(self) -> None:
        with self.table.open([submit()]) as call:
            self.table.dispatch(Rejected("a", "overloaded", "Too many.", 1500))
            with pytest.raises(Overloaded) as caught:
                await call.next()
        assert caught.value.retry_after_ms == 1500
        assert self.sent == [submit()]

    async def test_ends_with_one_error_when_the_core_is_lost_and_no_new_one_begins(self) -> None:
        with self.table.open([submit()]) as call:
            self.table.core_lost()
            with pytest.raises(Internal):
                await call.next()
        with pytest.raises(Internal), self.table.open([submit("b")]):
            pytest.fail("a call began without a core")

    async def test_whose_client_reads_nothing_costs_a_bounded_buffer_and_then_no_further_step(self) -> None:
        with self.table.open([submit(n=2)]) as call:
            for _ in range(MAX_BEHIND + 1):
                self.table.dispatch(tokens("a", 0, 5))
            assert self.sent[1:] == [Cancel("a")]
            self.table.dispatch(tokens("a", 1, 5))
            for _ in range(MAX_BEHIND + 1):
                await call.next()
            with pytest.raises(RequestTimeout):
                await call.next()
        assert self.sent[1:] == [Cancel("a")]

    async def test_that_is_open_when_the_program_ends_is_cancelled_once_and_no_new_one_begins(self) -> None:
        error = NotReady("This instance is shutting down.")
        with self.table.open([submit()]) as call:
            self.table.close(error)
            with pytest.raises(NotReady):
                await call.next()
        assert self.sent[1:] == [Cancel("a")]
        with pytest.raises(NotReady), self.table.open([submit("b")]):
            pytest.fail("a call began while the program ends")


class TestALease:
    def setup_method(self) -> None:
        self.sent: list[Inbox] = []
        self.table = RequestTable(self.sent.append)
        self.granted = LeaseGranted("a", "l", (1,), (), 2)

    async def test_that_nobody_took_is_released(self) -> None:
        with self.table.open([submit(mode=Mode.PREFILL)]):
            self.table.dispatch(self.granted)
        assert self.sent[1:] == [ReleaseLease("l")]

    async def test_that_comes_after_the_client_has_left_is_released(self) -> None:
        with self.table.open([submit(mode=Mode.PREFILL)]):
            pass
        self.table.dispatch(self.granted)
        assert self.sent[1:] == [Cancel("a"), ReleaseLease("l")]

    async def test_that_was_taken_is_kept(self) -> None:
        with self.table.open([submit(mode=Mode.PREFILL)]) as call:
            self.table.dispatch(self.granted)
            await call.next()
        assert len(self.sent) == 1


class TestRoomForAPull:
    """The core keeps it until it is told that nothing writes there any more, whatever became of the request."""

    def setup_method(self) -> None:
        self.sent: list[Inbox] = []
        self.table = RequestTable(self.sent.append)
        self.wanted = PullWanted("a", "l", (PullBlock(0, 1, b"", 2),))
        self.ended = PullEnded("a", ok=False, reason="cancelled")

    async def test_is_given_back_when_the_call_is_left_before_the_pull_has_ended(self) -> None:
        with self.table.open([submit(mode=Mode.PULL)]) as call:
            self.table.dispatch(self.wanted)
            await call.next()
        assert self.sent[1:] == [Cancel("a"), self.ended]

    async def test_is_given_back_when_nobody_has_seen_it(self) -> None:
        with self.table.open([submit(mode=Mode.PULL)]):
            self.table.dispatch(self.wanted)
        assert self.sent[1:] == [Cancel("a"), self.ended]

    async def test_that_comes_after_the_client_has_left_is_given_back(self) -> None:
        with self.table.open([submit(mode=Mode.PULL)]):
            pass
        self.table.dispatch(self.wanted)
        assert self.sent[1:] == [Cancel("a"), self.ended]

    async def test_is_kept_while_the_pull_goes_on_although_the_program_ends(self) -> None:
        with self.table.open([submit(mode=Mode.PULL)]) as call:
            self.table.dispatch(self.wanted)
            await call.next()
            self.table.close(NotReady("This instance is shutting down."))
            assert self.sent[1:] == [Cancel("a")]
            call.pull_ended(PullEnded("a", ok=True, received=(0,)))
        assert self.sent[2:] == [PullEnded("a", ok=True, received=(0,))]
