"""Where models come from: folders, the demo, and a hub that is only a fake on loopback."""

import json
from pathlib import Path

import pytest

from fakes.fake_hub import FakeHub
from triptych_operator.model_source import SourceFailed, Sources, resolve
from triptych_operator.spec.types import Model

FILES = {
    "config.json": json.dumps({"max_position_embeddings": 4096}).encode(),
    "model.safetensors": bytes(range(256)) * 1024,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"a pickle",
    "modeling_custom.py": b"import os",
}

LIBRARY_CHUNK_BYTES = 10 * 1024 * 1024
"""The hub library keeps what it received in chunks of this size."""


def sources(tmp_path: Path, **environ: str) -> Sources:
    def no_demo() -> Path:
        raise RuntimeError("not built")

    return Sources(no_demo, tmp_path, environ, cache=tmp_path / "cache", progress=False)


def hub_sources(tmp_path: Path, hub: FakeHub, **environ: str) -> Sources:
    return sources(tmp_path, HF_ENDPOINT=hub.url, **environ)


class TestFolders:
    def test_a_path_is_taken_from_the_folder_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "config.json").write_text('{"max_position_embeddings": 512}')
        folder = resolve(Model(source="host://m"), sources(tmp_path))
        assert (folder.path, folder.max_context) == (tmp_path / "m", 512)

    def test_a_missing_folder_says_what_to_write(self, tmp_path: Path) -> None:
        with pytest.raises(SourceFailed, match="write host://PATH of a Hugging Face folder"):
            resolve(Model(source="host://nowhere"), sources(tmp_path))

    def test_a_folder_without_configuration_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(SourceFailed, match=r"has no config\.json"):
            resolve(Model(source="host://."), sources(tmp_path))

    def test_a_folder_that_may_not_be_read_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: Path) -> bool:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "is_file", refuse)
        with pytest.raises(SourceFailed, match=r"you may not read .*; mend its permissions with chmod"):
            resolve(Model(source="host://."), sources(tmp_path))

    def test_a_broken_configuration_is_left_to_the_engine(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{")
        assert resolve(Model(source="host://."), sources(tmp_path)).max_context == 0

    def test_a_missing_demo_model_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(SourceFailed, match="the demo model is not there"):
            resolve(Model(source="demo://"), sources(tmp_path))


class TestHub:
    def test_weights_and_texts_are_fetched_and_code_is_not(self, tmp_path: Path) -> None:
        with FakeHub(FILES).running() as hub:
            folder = resolve(Model(source="hf://team/model"), hub_sources(tmp_path, hub))
        assert {path.name for path in folder.path.iterdir()} == {
            *("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"),
        }
        assert (folder.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
        assert folder.max_context == 4096
        assert not {"pytorch_model.bin", "modeling_custom.py"} & set(hub.asked)

    def test_a_cut_download_goes_on_where_it_was(self, tmp_path: Path) -> None:
        weights = bytes(range(256)) * (LIBRARY_CHUNK_BYTES // 256 + 4096)
        files = {**FILES, "model.safetensors": weights}
        with FakeHub(files, cut_after={"model.safetensors": LIBRARY_CHUNK_BYTES + 1000}).running() as hub:
            folder = resolve(Model(source="hf://team/model"), hub_sources(tmp_path, hub))
        assert (folder.path / "model.safetensors").read_bytes() == weights
        assert hub.ranges == [f"bytes={LIBRARY_CHUNK_BYTES}-"]

    def test_a_second_start_fetches_nothing(self, tmp_path: Path) -> None:
        with FakeHub(FILES).running() as hub:
            resolve(Model(source="hf://team/model"), hub_sources(tmp_path, hub))
            hub.asked.clear()
            resolve(Model(source="hf://team/model"), hub_sources(tmp_path, hub))
            assert hub.asked == []

    def test_what_was_fetched_once_works_while_the_hub_is_away(self, tmp_path: Path) -> None:
        with FakeHub(FILES).running() as hub:
            first = resolve(Model(source="hf://team/model"), hub_sources(tmp_path, hub))
        assert resolve(Model(source="hf://team/model"), hub_sources(tmp_path, hub)) == first

    def test_a_revision_may_stand_in_the_source_or_beside_it(self, tmp_path: Path) -> None:
        with FakeHub(FILES).running() as hub:
            pinned = resolve(Model(source="hf://team/model@v1"), hub_sources(tmp_path, hub))
            beside = resolve(Model(source="hf://team/model", revision="v1"), hub_sources(tmp_path, hub))
        assert pinned == beside

    def test_a_private_repository_opens_with_the_token(self, tmp_path: Path) -> None:
        with FakeHub(FILES, token="hf_secret").running() as hub:
            with pytest.raises(SourceFailed, match="set HF_TOKEN"):
                resolve(Model(source="hf://team/model"), hub_sources(tmp_path, hub))
            assert resolve(Model(source="hf://team/model"), hub_sources(tmp_path, hub, HF_TOKEN="hf_secret"))

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("hf://team/none", "there is no repository team/none, or it is private; check the name, or set HF_TOKEN"),
            ("hf://team/model@v9", "team/model has no revision v9; write a branch, tag or commit of it"),
            ("hf://a/b/c", "a/b/c is not the name of a repository; write hf://OWNER/NAME"),
        ],
    )
    def test_what_does_not_exist_is_one_clear_error(self, tmp_path: Path, source: str, message: str) -> None:
        with FakeHub(FILES).running() as hub:
            with pytest.raises(SourceFailed) as caught:
                resolve(Model(source=source), hub_sources(tmp_path, hub))
        assert str(caught.value) == message

    def test_an_unreachable_hub_names_the_ways_out(self, tmp_path: Path) -> None:
        offline = sources(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
        with pytest.raises(SourceFailed, match=r"cannot be reached.*HF_ENDPOINT.*host://PATH"):
            resolve(Model(source="hf://team/model"), offline)
