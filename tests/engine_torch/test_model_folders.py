"""What a Hugging Face folder may look like, and what is refused with one clear sentence."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes.oracle_models import LLAMA3_ROPE, make_oracle, prompt, save_oracle
from fakes.torch_runner import Scratch, load_model
from triptych_engine.executor.sizing import DEFAULT_CONTEXT, choose_blocks, choose_context
from triptych_engine.executor.torch import load_torch
from triptych_engine.model.config import choose_dtype, parse_config, read_config
from triptych_engine.model.errors import ModelFolderError
from triptych_engine.model.fingerprint import fingerprint
from triptych_engine.model.generation import read_generation
from triptych_engine.model.tensors import check_tensors, find_tensors

pytestmark = pytest.mark.torch
Oracle = Callable[[str], tuple[Any, Path]]
OLD_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"},
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


@pytest.fixture
def folder(oracle: Oracle, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(oracle("qwen2")[1], tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


class TestConfigurations:
    def test_old_and_new_spellings_say_the_same(self) -> None:
        new = {
            key: value for key, value in OLD_LLAMA.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")
        }
        new.update(rope_parameters=LLAMA3_ROPE, dtype="bfloat16")
        assert parse_config(OLD_LLAMA) == parse_config(new)
        assert parse_config(new).rope.original_context == 32

    def test_a_folder_in_the_old_spelling_computes_the_same(self, oracle: Oracle, tmp_path: Path) -> None:
        source = oracle("llama3-rope")[1]
        old = Path(shutil.copytree(source, tmp_path / "old"))
        raw = json.loads((old / "config.json").read_text())
        rope = raw.pop("rope_parameters")
        raw.update(rope_theta=rope.pop("rope_theta"), rope_scaling=rope, torch_dtype=raw.pop("dtype"))
        (old / "config.json").write_text(json.dumps(raw))
        found = [Scratch(load_model(path)).logits(prompt(1)) for path in (source, old)]
        assert torch.equal(*found)

    def test_defaults_are_those_of_the_families(self) -> None:
        llama = parse_config(OLD_LLAMA)
        assert (llama.num_kv_heads, llama.head_dim, llama.qkv_bias) == (4, 16, False)
        qwen = parse_config({**OLD_LLAMA, "architectures": ["Qwen2ForCausalLM"], "rope_scaling": None})
        assert (qwen.qkv_bias, qwen.out_bias, qwen.rope.kind) == (True, False, "default")

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"architectures": ["GPT2LMHeadModel"]}, "architectures"),
            ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
            ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters"),
            ({"rope_scaling": {"type": "linear"}}, "factor"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
            ({"hidden_act": "gelu"}, "hidden_act"),
            ({"quantization_config": {"bits": 4}}, "quantization_config"),
            ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "use_sliding_window"),
            ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
            ({"num_key_value_heads": 3}, "num_key_value_heads"),
            ({"hidden_size": "64"}, "hidden_size"),
            ({"vocab_size": None}, "vocab_size"),
            ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ],
    )
    def test_what_is_not_computed_is_refused_by_name(self, changes: dict[str, Any], word: str) -> None:
        with pytest.raises(ModelFolderError, match=word):
            parse_config({**OLD_LLAMA, **changes})

    def test_a_sliding_window_that_no_layer_uses_is_no_fault(self) -> None:
        parse_config({**OLD_LLAMA, "use_sliding_window": False, "sliding_window": 64})
        parse_config({**OLD_LLAMA, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2})

    @pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
    def test_a_folder_that_asks_for_code_is_refused(self, name: str, folder: Path) -> None:
        edit(folder / name, auto_map={"AutoModel": "modeling.Evil"})
        with pytest.raises(ModelFolderError, match=f"{name} has an auto_map"):
            read_config(folder)

    @pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": ' * 3000])
    def test_a_damaged_config_is_refused(self, content: str, folder: Path) -> None:
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelFolderError, match=r"config\.json"):
            read_config(folder)

    def test_element_types(self) -> None:
        llama = parse_config(OLD_LLAMA)
        half = parse_config({**OLD_LLAMA, "torch_dtype": "float16"})
        assert choose_dtype("auto", llama) == "bfloat16"
        assert choose_dtype("auto", half) == "float32"
        assert choose_dtype("float64", llama) == "float64"
        with pytest.raises(ModelFolderError, match="dtype"):
            choose_dtype("int8", llama)


class TestGenerationDefaults:
    def test_are_read_with_a_list_of_end_tokens(self, folder: Path) -> None:
        edit(folder / "generation_config.json", eos_token_id=[5, 9], temperature=0.6, top_k=20, top_p=0.95)
        found = read_generation(folder)
        assert found.eos_token_ids == (5, 9)
        assert (found.temperature, found.top_k, found.top_p, found.min_p) == (0.6, 20, 0.95, None)

    def test_fall_back_to_the_end_token_of_the_config(self, folder: Path) -> None:
        (folder / "generation_config.json").unlink()
        assert read_generation(folder).eos_token_ids == (1,)

    def test_a_folder_that_does_not_sample_is_greedy(self, folder: Path) -> None:
        edit(folder / "generation_config.json", do_sample=False, temperature=0.6)
        assert read_generation(folder).temperature == 0.0

    @pytest.mark.parametrize("changes", [{"eos_token_id": "x"}, {"temperature": 9}, {"top_p": True}, {"top_k": -7}])
    def test_out_of_bounds_are_refused(self, changes: dict[str, Any], folder: Path) -> None:
        edit(folder / "generation_config.json", **changes)
        with pytest.raises(ModelFolderError, match=next(iter(changes))):
            read_generation(folder)


class TestWeights:
    def test_shards_are_read_as_one_file_is(self, oracle: Oracle, tmp_path: Path) -> None:
        model, whole = oracle("qwen3")
        sharded = save_oracle(model, tmp_path / "sharded", shard_size="100KB")
        assert len(list(sharded.glob("*.safetensors"))) > 2
        assert torch.equal(*(Scratch(load_model(path)).logits(prompt(1)) for path in (whole, sharded)))
        config = read_config(whole)
        assert fingerprint(config, "float32", find_tensors(whole)) == fingerprint(
            config, "float32", find_tensors(sharded)
        )

    def test_every_misfit_is_told_in_one_message(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.norm.weight"]
        tensors["model.extra.weight"] = torch.zeros(2)
        tensors["lm_head.weight"] = torch.zeros(2, 2)
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(ModelFolderError) as refusal:
            check_tensors(read_config(folder), find_tensors(folder))
        for part in (
            "model.norm.weight is missing",
            "model.extra.weight is unexpected",
            "lm_head.weight has shape [2, 2], not [256, 64]",
            "up_proj.weight has element type I8",
        ):
            assert part in str(refusal.value)

    def test_a_copy_of_a_tied_embedding_is_ignored(self, tmp_path: Path) -> None:
        tied = save_oracle(make_oracle("qwen2-tied", layers=1), tmp_path / "tied")
        tensors = load_file(tied / "model.safetensors")
        tensors["lm_head.weight"] = torch.zeros(256, 64)
        save_file(tensors, tied / "model.safetensors")
        check_tensors(read_config(tied), find_tensors(tied))

    @pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", ""])
    def test_an_index_cannot_lead_out_of_its_folder(self, name: str, folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(ModelFolderError, match="no safetensors file of this folder"):
            find_tensors(folder)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff" * 64,
            (2).to_bytes(8, "little") + b"[]",
            (20).to_bytes(8, "little") + b'{"a": {"dtype": 1}}  ',
            (72).to_bytes(8, "little") + b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 99999]}}'.ljust(72),
        ],
        ids=["empty", "huge header", "no object", "no shape", "past the end"],
    )
    def test_a_damaged_file_is_refused(self, content: bytes, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelFolderError, match="no sound safetensors file"):
            find_tensors(folder)

    def test_missing_weights_and_shards_are_named(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelFolderError, match="neither"):
            find_tensors(folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "one.safetensors"}}))
        with pytest.raises(ModelFolderError, match=r"no one\.safetensors"):
            find_tensors(folder)

    def test_one_changed_weight_changes_the_fingerprint(self, folder: Path) -> None:
        config = read_config(folder)
        before = fingerprint(config, "float32", find_tensors(folder))
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][3] += 1
        save_file(tensors, folder / "model.safetensors")
        assert fingerprint(config, "float32", find_tensors(folder)) != before
        assert fingerprint(config, "float64", find_tensors(folder)) != before


class TestLoading:
    def load(self, folder: Path, told: list[int], **changes: Any) -> Any:
        options: dict[str, Any] = {
            "model_dir": folder,
            "dtype": "auto",
            "device": "cpu",
            "threads": 1,
            "kv_blocks": 0,
            "kv_memory_bytes": 0,
            "max_context": 0,
            "progress": lambda percent, text: told.append(percent),
            "kernels": "off",
        }
        return load_torch(**{**options, **changes})

    def test_tells_progress_layout_and_a_measured_profile(self, folder: Path) -> None:
        told: list[int] = []
        executor = self.load(folder, told, kv_memory_bytes=4_000_000)
        info = executor.info
        assert told == sorted(told)
        assert (told[0], told[-1]) == (0, 100)
        assert (info.layout.segments, info.layout.block_tokens, info.layout.token_bytes) == (3 * 2 * 2, 32, 16 * 4)
        assert info.layout.pool_bytes <= 4_000_000
        assert (info.vocab_size, info.max_context, info.kv_dtype) == (256, 512, "float32")
        profile = info.profile
        assert min(profile.base_s, profile.prefill_token_s, profile.sequence_s, profile.context_token_s) > 0
        assert profile.base_s < 1
        executor.bind(memoryview(bytearray(info.layout.pool_bytes)))
        executor.warm_up()

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"max_context": 1024}, "max_context"),
            ({"kv_blocks": 3}, "KV pool has 3 blocks"),
            ({"device": "tpu"}, "device"),
            ({"dtype": "int4"}, "dtype"),
        ],
    )
    def test_settings_that_cannot_be_served_are_refused(self, changes: dict[str, Any], word: str, folder: Path) -> None:
        with pytest.raises(ModelFolderError, match=word):
            self.load(folder, [], **changes)

    def test_images_are_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="takes no images"):
            self.load(folder, [], kv_blocks=20).encode(b"x", 4)

    def test_the_default_pool_is_a_share_of_the_machine_but_holds_two_contexts(self) -> None:
        size = {"asked": 0, "memory_bytes": 0, "block_bytes": 1 << 20}
        assert choose_blocks(**size, context_blocks=16, machine_bytes=64 << 30) == 1024
        assert choose_blocks(**size, context_blocks=16, machine_bytes=1 << 30) == 256
        assert choose_blocks(**size, context_blocks=400, machine_bytes=1 << 30) == 801
        assert choose_context(asked=0, of_model=131_072) == DEFAULT_CONTEXT
        assert choose_context(asked=20_000, of_model=131_072) == 20_000


def test_reading_a_folder_needs_no_torch() -> None:
    """The server process reads folders, and importing torch there would cost it seconds and hundreds of megabytes."""
    code = (
        "import sys, triptych_engine.model.config, triptych_engine.model.generation, triptych_engine.model.tensors, "
        "triptych_engine.model.fingerprint, triptych_engine.executor.measure, triptych_engine.executor.sizing; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
