"""Images by their headers, defaults of the model, the hub of events, pieces of a choice, failpoints."""

import asyncio
import json
import struct
from collections.abc import Iterator
from unittest import mock

import pytest
from aiohttp.client_exceptions import ClientConnectionResetError

from fakes.asking import png
from triptych_contract.errors import BadRequest, ContextLengthExceeded, Overloaded, TriptychError, UnsupportedMedia
from triptych_contract.instance import InstanceState, LoadSample
from triptych_contract.roles import Phase, Role
from triptych_contract.sampling import SamplingParams
from triptych_engine import failpoints
from triptych_engine.messages import Delta, FinishReason
from triptych_engine.server.card import read_defaults
from triptych_engine.server.choice import ChoiceStream
from triptych_engine.server.events import MAX_BEHIND, MAX_READERS, EventHub
from triptych_engine.server.media import image_size, read_images
from triptych_engine.server.parse import Options
from triptych_engine.server.sampling import Defaults, resolve_sampling
from triptych_engine.server.stream import write_in_time
from triptych_engine.transfer.tasks import Tasks


def decode(ids: object) -> str:
    return bytes(ids).decode("utf-8", "replace")  # type: ignore[call-overload,no-any-return]


class TestImages:
    def test_sizes_come_from_the_header(self) -> None:
        jpeg = b"\xff\xd8\xff\xe0" + struct.pack(">H", 4) + b"ab\xff\xc0" + struct.pack(">HBHH", 11, 8, 30, 40)
        webp = b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + (9).to_bytes(3, "little") + (19).to_bytes(3, "little")
        assert image_size(png(5, 6)) == ("png", (5, 6))
        assert image_size(jpeg) == ("jpeg", (40, 30))
        assert image_size(webp) == ("webp", (10, 20))

    @pytest.mark.parametrize("data", [b"", b"<svg/>", b"GIF89a", b"\0\0\0\x0cjP  "])
    def test_other_formats_are_refused(self, data: bytes) -> None:
        with pytest.raises(UnsupportedMedia):
            image_size(data)

    @pytest.mark.parametrize("data", [png(1, 1)[:20], b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8X"])
    def test_cut_off_headers_are_refused(self, data: bytes) -> None:
        with pytest.raises(BadRequest):
            image_size(data)

    @pytest.mark.parametrize("url", ["http://a/b.png", "data:image/png,x", "data:image/png;base64,!!", ""])
    def test_only_data_uris_with_base64_are_read(self, url: str) -> None:
        with pytest.raises(TriptychError) as caught:
            read_images([url])
        assert caught.value.param == "messages"


class TestSampling:
    def resolve(self, options: Options, defaults: Defaults | None = None) -> SamplingParams:
        return resolve_sampling(
            options,
            defaults or Defaults(),
            prompt_tokens=10,
            max_context=100,
            vocab_size=300,
            default_max_tokens=None,
            seed=42,
        )

    def test_the_client_goes_before_the_model_s_defaults(self) -> None:
        defaults = Defaults(temperature=0.6, top_p=0.9, top_k=20)
        found = self.resolve(Options(temperature=0.0, top_k=-1), defaults)
        assert (found.temperature, found.top_p, found.top_k, found.seed, found.max_tokens) == (0.0, 0.9, 0, 42, 90)

    def test_what_does_not_fit_the_context_is_refused(self) -> None:
        with pytest.raises(ContextLengthExceeded):
            self.resolve(Options(max_tokens=91))
        assert self.resolve(Options(max_tokens=90)).max_tokens == 90

    def test_generation_config_gives_the_defaults(self) -> None:
        generation = {"temperature": 0.6, "top_k": 20, "eos_token_id": [7, 8], "top_p": None}
        assert read_defaults({"eos_token_id": 1}, generation) == Defaults(
            temperature=0.6, top_k=20, eos_token_ids=(7, 8)
        )


STATE = InstanceState("i", "0" * 32, "s", (), Role.ALL, 1, Phase.SERVING)


class TestTheHub:
    def setup_method(self) -> None:
        self.hub = EventHub(lambda: STATE)

    async def test_cuts_off_a_reader_that_falls_behind(self) -> None:
        lines = self.hub.lines()
        first = json.loads(await anext(lines))
        for _ in range(MAX_BEHIND + 1):
            self.hub.load(LoadSample())
        assert first["type"] == "state"
        async with asyncio.timeout(1):
            assert [line async for line in lines] == []

    async def test_numbers_events_without_a_gap(self) -> None:
        lines = self.hub.lines()
        seen = [json.loads(await anext(lines))]
        self.hub.load(LoadSample())
        self.hub.kv(stored=("a",), removed=("b",), prefix="")
        seen += [json.loads(await anext(lines)) for _ in range(3)]
        assert [event["seq"] - seen[0]["seq"] for event in seen] == [0, 1, 2, 3]
        await lines.aclose()  # type: ignore[attr-defined]


class TestAChoice:
    def test_hides_its_stop_token_but_counts_it(self) -> None:
        stream = ChoiceStream(0, SamplingParams(), decode)
        piece = stream.push(Delta("a", 0, 0, (97, 98), FinishReason.STOP))
        assert piece is not None
        assert (piece.text, piece.token_ids, piece.finish_reason) == ("a", (97, 98), "stop")

    def test_looks_for_stop_strings_only_after_min_tokens(self) -> None:
        stream = ChoiceStream(0, SamplingParams(stop=("a",), min_tokens=2), decode)
        pieces = [stream.push(Delta("a", 0, i, (97,))) for i in range(3)]
        assert [piece.text if piece else None for piece in pieces] == ["a", "a", ""]
        assert stream.finished

    def test_keeps_tokens_without_text_for_the_next_piece(self) -> None:
        stream = ChoiceStream(3, SamplingParams(), decode)
        first, second = (stream.push(Delta("a", 0, i, (byte,))) for i, byte in enumerate("é".encode()))
        assert first is None
        assert second is not None
        assert (second.choice, second.text, second.first_position, len(second.token_ids)) == (3, "é", 0, 2)


class TestFailpoints:
    @pytest.fixture(autouse=True)
    def disarmed(self) -> Iterator[None]:
        yield
        failpoints.arm({})

    def test_do_nothing_until_armed_and_act_as_often_as_told(self) -> None:
        assert not failpoints.failpoint("a")
        failpoints.arm({failpoints.VARIABLE: "a=corrupt*1,b=error"})
        assert [failpoints.failpoint("a"), failpoints.failpoint("a")] == [True, False]
        with pytest.raises(failpoints.FailpointError):
            failpoints.failpoint("b")

    @pytest.mark.parametrize("text", ["a", "a=melt", "a=delay", "a=kill:3"])
    def test_refuse_what_they_do_not_know(self, text: str) -> None:
        with pytest.raises(ValueError, match=failpoints.VARIABLE):
            failpoints.arm({failpoints.VARIABLE: text})


class TestAClientThatTakesNothing:
    async def test_is_cut_off_after_its_time(self) -> None:
        response, request = mock.Mock(), mock.Mock()
        response.write = lambda _data: asyncio.Event().wait()
        with pytest.raises(ClientConnectionResetError):
            await write_in_time(request, response, b"data", 0.01)
        request.transport.abort.assert_called_once_with()

    async def test_keeps_no_place_from_other_readers_of_the_state(self) -> None:
        hub = EventHub(lambda: STATE)
        readers = [hub.lines() for _ in range(MAX_READERS)]
        for reader in readers:
            await anext(reader)
        with pytest.raises(Overloaded):
            hub.check_room()
        for reader in readers:
            await reader.aclose()  # type: ignore[attr-defined]
        hub.check_room()


class TestBackgroundTasks:
    async def test_are_given_time_to_end_by_themselves(self) -> None:
        tasks, ended = Tasks(limit=2), []

        async def work(seconds: float) -> None:
            await asyncio.sleep(seconds)
            ended.append(seconds)

        tasks.start(work(0.01), name="short")
        tasks.start(work(60), name="long")
        await tasks.finish(0.2)
        assert (ended, len(tasks)) == ([0.01], 0)
