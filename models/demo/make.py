"""Makes the demo model: tokenizer and weights from `corpus/`, into this folder.

    python models/demo/make.py [--out DIR] [--steps N] [--threads N]

A Qwen3-shaped model of about two million weights learns the corpus by heart: chats built from `questions.txt`, and
the paragraphs of `statements.txt`. Seeds are fixed; on another machine the last bits may differ. It needs the
`dev` extra (transformers trains it, though the engine does not use transformers) and about five minutes.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors.torch import save as to_safetensors
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
SEED = 20
VOCABULARY = 1536
END, CHAT_START, CHAT_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful assistant."
BATCH = 24
CONTEXT = 2048
TEMPLATE = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\\n' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- elif message['content'] -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Exchange:
    """One answer and the wordings of its question."""

    questions: tuple[str, ...]
    answer: str


def read_paragraphs(path: Path) -> list[str]:
    """Paragraphs without the comment at the top."""
    return [part.strip() for part in path.read_text().split("\n\n") if part.strip() and not part.startswith("#")]


def read_exchanges(path: Path) -> list[Exchange]:
    """Blocks of `Q:` lines and one `A:` line."""
    exchanges = []
    for paragraph in read_paragraphs(path):
        lines = paragraph.splitlines()
        questions = tuple(line[3:] for line in lines if line.startswith("Q: "))
        (answer,) = (line[3:] for line in lines if line.startswith("A: "))
        exchanges.append(Exchange(questions, answer))
    return exchanges


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE: any text can be written, the corpus shortly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, CHAT_START, CHAT_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def render(messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
    """A chat as the template writes it."""
    template = ImmutableSandboxedEnvironment().from_string(TEMPLATE)
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt)


def vary(question: str, rng: random.Random) -> str:
    """People drop capitals and question marks."""
    draw = rng.random()
    if draw < 0.2:
        question = question.lower()
    elif draw < 0.3:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.25:
        question = question.rstrip("?.!")
    return question


def draw_text(exchanges: list[Exchange], statements: list[str], rng: random.Random) -> str:
    """One training text: a statement, or a chat of one to three exchanges, some with a system message."""
    if rng.random() < 0.08:
        return rng.choice(statements) + END
    messages = [{"role": "system", "content": SYSTEM}] if rng.random() < 0.2 else []
    for exchange in rng.sample(exchanges, rng.choices((1, 2, 3), (0.75, 0.15, 0.1))[0]):
        messages.append({"role": "user", "content": vary(rng.choice(exchange.questions), rng)})
        messages.append({"role": "assistant", "content": exchange.answer})
    return render(messages)


def new_model(tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    """An untrained model."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.token_to_id(END),
            eos_token_id=tokenizer.token_to_id(CHAT_END),
            initializer_range=0.02,
        )
    )


def train(model: Qwen3ForCausalLM, tokenizer: Tokenizer, corpus: Path, steps: int) -> None:
    """Learn the corpus by heart: AdamW, warm-up, cosine."""
    exchanges, statements = read_exchanges(corpus / "questions.txt"), read_paragraphs(corpus / "statements.txt")
    rng = random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.08)
    started_s = time.monotonic()
    for step in range(steps):
        texts = sorted((draw_text(exchanges, statements, rng) for _ in range(4 * BATCH)), key=len)
        first = rng.randrange(4) * BATCH  # texts of about one length waste little padding
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts[first : first + BATCH])]
        longest = max(map(len, rows))
        inputs = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
        loss = model(input_ids=inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.monotonic() - started_s:.0f} s", flush=True)


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the folder: weights rounded to bfloat16, to be computed in float32."""
    tensors = {
        name: parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in model.named_parameters()
        if name != "lm_head.weight"
    }
    (out / "model.safetensors").write_bytes(to_safetensors(tensors, metadata={"format": "pt"}))
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(TEMPLATE)
    config = {**model.config.to_diff_dict(), "architectures": ["Qwen3ForCausalLM"], "dtype": "float32"}
    config.pop("transformers_version", None)
    chat_end, end = tokenizer.token_to_id(CHAT_END), tokenizer.token_to_id(END)
    generation = {"bos_token_id": end, "eos_token_id": [chat_end, end], "do_sample": False}
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": CHAT_END,
        "pad_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", names),
    ):
        (out / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def score(model: Qwen3ForCausalLM, tokenizer: Tokenizer, corpus: Path) -> tuple[int, int]:
    """How many of all questions get exactly their answer, greedily; and how many there are."""
    right = total = 0
    chat_end = tokenizer.token_to_id(CHAT_END)
    for exchange in read_exchanges(corpus / "questions.txt"):
        for question in exchange.questions:
            text = render([{"role": "user", "content": question}], add_generation_prompt=True)
            ids = tokenizer.encode(text).ids
            with torch.inference_mode():
                inputs = torch.tensor([ids])
                out = model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=80,
                    do_sample=False,
                    eos_token_id=chat_end,
                    pad_token_id=0,
                )
            answer = tokenizer.decode(out[0, len(ids) :].tolist(), skip_special_tokens=True)
            total += 1
            right += answer == exchange.answer
            if answer != exchange.answer:
                print(f"wrong: {question!r} -> {answer!r}", flush=True)
    return right, total


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description="Make the demo model.")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    corpus = HERE / "corpus"
    exchanges = read_exchanges(corpus / "questions.txt")
    texts = [text for exchange in exchanges for text in (*exchange.questions, exchange.answer)]
    tokenizer = make_tokenizer(texts + read_paragraphs(corpus / "statements.txt"))
    model = new_model(tokenizer)
    train(model, tokenizer, corpus, options.steps)
    model.to(torch.bfloat16).float().eval()
    save(model, tokenizer, options.out)
    right, total = score(model, tokenizer, corpus)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{weights} weights, {tokenizer.get_vocab_size()} tokens, {right} of {total} questions answered by heart")


if __name__ == "__main__":
    main()
