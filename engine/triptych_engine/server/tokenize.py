"""Texts to token ids. Special tokens written out by a client in chat content stay text.

A rendered conversation holds special tokens of the template and the text of the client side by side. Before
rendering, each special token that a client wrote out gets a marker inside (`protect`), so that the template's
own ones are told from it afterwards (`encode_chat`). Conversations without any are encoded in one piece.
"""

import asyncio
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from triptych_contract.errors import BadRequest, ContextLengthExceeded
from triptych_engine.server.detokenize import Decode

THREAD_CHARACTERS = 20_000
"""Longer texts are encoded in a thread, so that other streams go on; the tokenizer lets the lock go."""
MARKERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
"""Code points that Unicode sets aside for a program's own use; one that no content holds is taken."""


class TextTokenizer:
    """A tokenizer of the `tokenizers` library, twice: one reads special tokens, the other takes them as text.

    Args:
        definition: The `tokenizer.json`.
    """

    def __init__(self, definition: str) -> None:
        self._reading: Tokenizer = Tokenizer.from_str(definition)
        self._literal: Tokenizer = Tokenizer.from_str(definition)
        self._literal.encode_special_tokens = True
        for tokenizer in (self._reading, self._literal):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        added = self._reading.get_added_tokens_decoder()
        self.special: dict[str, int] = {token.content: number for number, token in added.items() if token.special}
        ordered = sorted(self.special, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._longest_characters = max(map(len, self._reading.get_vocab(with_added_tokens=True)), default=1)

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """Read a `tokenizer.json`."""
        return cls(path.read_text("utf-8"))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added ones included."""
        return int(self._reading.get_vocab_size(with_added_tokens=True))

    @property
    def decode(self) -> Decode:
        """Token ids to text, special tokens left out."""
        return self._decode

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._reading.decode(list(token_ids), skip_special_tokens=True))

    def decode_all(self, token_ids: Sequence[int]) -> str:
        """Token ids to text, special tokens written out."""
        return str(self._reading.decode(list(token_ids), skip_special_tokens=False))

    def token_text(self, token_id: int) -> str:
        """One token by itself, for log-probabilities; a piece of a character becomes U+FFFD."""
        return self.decode_all((token_id,))

    async def encode(self, text: str, *, add_special_tokens: bool, max_tokens: int = 0) -> list[int]:
        """Token ids of a prompt; special tokens in it are read as such. Raises as `check_length` does."""
        self.check_length(text, max_tokens)
        return await self._run(len(text), self._encode, text, add_special_tokens)

    async def encode_chat(
        self, text: str, *, marker: str, add_special_tokens: bool = False, max_tokens: int = 0
    ) -> list[int]:
        """Token ids of a rendered conversation, in which `marker` protects what shall stay text.

        Raises as `check_length` does.
        """
        self.check_length(text, max_tokens)
        if not marker or marker not in text:
            return await self._run(len(text), self._encode, text, add_special_tokens)
        return await self._run(len(text), self._encode_protected, text, marker)

    def check_length(self, text: str, max_tokens: int) -> None:
        """Raise `ContextLengthExceeded` for a text of more than so many of the longest tokens; 0 is no bound.

        Told before the text is encoded, which takes some hundred bytes for each token.
        """
        if max_tokens and len(text) > max_tokens * self._longest_characters:
            raise ContextLengthExceeded(f"The prompt is longer than the model's context of {max_tokens} tokens.")

    def protect(self, texts: Iterable[str]) -> str:
        """The marker for a conversation of these texts; empty if none of them writes a special token out."""
        pattern = self._special_pattern
        texts = list(texts)
        if pattern is None or not any(pattern.search(text) for text in texts):
            return ""
        for marker in MARKERS:
            if not any(marker in text for text in texts):
                return marker
        raise BadRequest("The messages use every code point that is set aside for the engine.", param="messages")

    def mark(self, text: str, marker: str) -> str:
        """The text with the marker inside each special token that is written out in it."""
        if not marker or self._special_pattern is None:
            return text
        return self._special_pattern.sub(lambda match: match[0][0] + marker + match[0][1:], text)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._reading.encode(text, add_special_tokens=add_special_tokens).ids)

    def _encode_protected(self, text: str, marker: str) -> list[int]:
        ids: list[int] = []
        at = 0
        matches = self._special_pattern.finditer(text) if self._special_pattern else ()
        for match in matches:
            ids += self._literally(text[at : match.start()].replace(marker, ""))
            ids.append(self.special[match[0]])
            at = match.end()
        return ids + self._literally(text[at:].replace(marker, ""))

    def _literally(self, text: str) -> list[int]:
        return list(self._literal.encode(text, add_special_tokens=False).ids) if text else []

    async def _run(self, size: int, function: Any, *arguments: Any) -> list[int]:
        try:
            if size < THREAD_CHARACTERS:
                return list(function(*arguments))
            return list(await asyncio.to_thread(function, *arguments))
        except UnicodeEncodeError:
            raise BadRequest("The text holds half of a surrogate pair.") from None
