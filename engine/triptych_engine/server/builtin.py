"""The simulated engine's own tokenizer, one token a byte, and its chat template; no files are needed.

Token ids 0 to 255 are the bytes; then come the special tokens.
"""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"
IMAGE = "<|image|>"
SPECIAL = (END_OF_TEXT, MESSAGE_START, MESSAGE_END, IMAGE)
FIRST_SPECIAL = 256
VOCAB_SIZE = FIRST_SPECIAL + len(SPECIAL)
EOS_TOKEN_IDS = (FIRST_SPECIAL + SPECIAL.index(END_OF_TEXT), FIRST_SPECIAL + SPECIAL.index(MESSAGE_END))
IMAGE_TOKENS = 16
"""Tokens that an image takes, whatever its size."""
MAX_CONTEXT = 32768

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{{- '<|image|>' if part.type == 'image' else part.text -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def tokenizer_definition() -> str:
    """The built-in tokenizer as a `tokenizer.json`."""
    tokenizer = Tokenizer(models.BPE(vocab=_byte_letters(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return json.dumps(json.loads(tokenizer.to_str()))


def _byte_letters() -> dict[str, int]:
    """The letter by which byte-level tokenizers write each byte: itself if it is visible, else one from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return {chr(byte if byte in visible else next(hidden)): byte for byte in range(256)}
