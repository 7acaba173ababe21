"""Random models whose every part shows in their output, and transformers as the oracle for them.

Ordinary initial weights prove nothing: a model of standard deviation 0.02 says one token for ever, whatever its
KV holds. Here it is 0.2, biases and norm weights are random too, scaled rope starts to differ at position 32, and
prompts are long enough to get there.
"""

import warnings
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 256
PROMPT_TOKENS = 100
LAYERS = 3
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = ("qwen3", "qwen3-tied", "qwen2", "qwen2-tied", "llama3-rope", "llama3-rope-tied")


def make_oracle(kind: str, *, layers: int = LAYERS, seed: int = 7) -> Any:
    """A transformers model in float32, in evaluation mode."""
    import transformers

    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": kind.endswith("-tied"),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "attn_implementation": "eager",
    }
    family = kind.removesuffix("-tied")
    if family == "qwen3":
        config = transformers.Qwen3Config(**shape, head_dim=32)
        model_class = transformers.Qwen3ForCausalLM
    elif family == "qwen2":
        config = transformers.Qwen2Config(**shape)
        model_class = transformers.Qwen2ForCausalLM
    else:
        config = transformers.LlamaConfig(**shape, rope_parameters=dict(LLAMA3_ROPE))
        model_class = transformers.LlamaForCausalLM
    torch.manual_seed(seed)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0.0, 0.5, generator=generator)
            elif parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model


def save_oracle(model: Any, folder: Path, *, shard_size: str = "5GB") -> Path:
    """Write the model as a Hugging Face folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def prompt(seed: int, tokens: int = PROMPT_TOKENS) -> list[int]:
    """A random prompt."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (tokens,), generator=generator).tolist()


def oracle_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Logits of every position, [tokens, vocabulary], in one uncached pass."""
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0]


def oracle_greedy(model: Any, token_ids: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Cached greedy continuation, and the logits it was chosen from, [count, vocabulary]."""
    tokens: list[int] = []
    rows = []
    with torch.inference_mode():
        out = model(torch.tensor([token_ids]), use_cache=True)
        for _ in range(count):
            rows.append(out.logits[0, -1])
            tokens.append(int(rows[-1].argmax()))
            out = model(torch.tensor([[tokens[-1]]]), past_key_values=out.past_key_values, use_cache=True)
    return tokens, torch.stack(rows)
