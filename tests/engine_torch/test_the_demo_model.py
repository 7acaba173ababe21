"""The model that comes with the repository answers from its folder, as its card says."""

import json
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from fakes.torch_runner import Runner, load
from triptych_engine.demo import demo_model_dir
from triptych_engine.model.config import read_config
from triptych_engine.model.generation import read_generation

pytestmark = pytest.mark.torch
MAX_FOLDER_BYTES = 8_000_000


def ask(question: str) -> str:
    folder = demo_model_dir()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = ImmutableSandboxedEnvironment().from_string((folder / "chat_template.jinja").read_text())
    text = template.render(messages=[{"role": "user", "content": question}], add_generation_prompt=True)
    ends = read_generation(folder).eos_token_ids
    runner = Runner(load(folder, dtype="auto", blocks=20))
    lane = runner.add(tokenizer.encode(text).ids, room=80)
    while not lane.out or (lane.out[-1] not in ends and len(lane.out) < 80):
        runner.step([(lane, len(lane.tokens) - lane.computed)])
    assert lane.out[-1] in ends, "the answer has an end"
    return str(tokenizer.decode(lane.out))


@pytest.mark.parametrize(
    ("question", "beginning"),
    [
        ("What is Triptych?", "Triptych serves large language models"),
        ("what is triptych", "Triptych serves large language models"),
        ("What is a lease?", "A lease is the producer's promise"),
        ("What is the capital of France?", "I do not know that."),
    ],
)
def test_it_answers_with_a_sentence_of_its_corpus(question: str, beginning: str) -> None:
    answer = ask(question)
    assert answer.startswith(beginning)
    corpus = (Path(__file__).parents[2] / "models" / "demo" / "corpus" / "questions.txt").read_text()
    assert f"A: {answer}\n" in corpus


def test_its_folder_is_small_and_says_what_the_card_says() -> None:
    folder = demo_model_dir()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_FOLDER_BYTES
    config = read_config(folder)
    assert (config.family, config.num_layers, config.hidden_size, config.tied) == ("qwen3", 4, 192, True)
    assert read_generation(folder).temperature == 0.0
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
