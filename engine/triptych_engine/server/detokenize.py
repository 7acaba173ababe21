"""Token ids to text, a few tokens at a time: whatever the split, the pieces add up to the whole's text.

A character may be spread over several tokens; what could still become another character is held back. Decoding
starts a few tokens before the new ones, because a decoder may look at a token's neighbour (leading spaces).
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

REPLACEMENT = "\ufffd"
WINDOW_TOKENS = 24
"""Longest run of tokens decoded again while nothing but broken characters arrives."""
CONTEXT_TOKENS = 8


class Detokenizer:
    """The text of one growing sequence of tokens.

    Args:
        decode: Whole sequences to text; bytes that are no character become U+FFFD.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._clean = 0
        self._sent = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens; the text that is certain now and was not before."""
        pieces = [self._push(token_id) for token_id in token_ids]
        return pieces[0] if len(pieces) == 1 else "".join(pieces)

    def finish(self) -> str:
        """The rest, broken characters included."""
        text = self._decode(self._window)[self._sent :]
        self._window, self._clean, self._sent = [], 0, 0
        return text

    def _push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        stable = text.rstrip(REPLACEMENT)
        if len(stable) == len(text):
            piece = text[self._sent :]
            self._forget(self._clean, len(text))
            return piece
        if len(self._window) > WINDOW_TOKENS:
            # An unfinished character is one replacement at the end; all before it is final.
            stable = text[:-1]
            piece = stable[self._sent :]
            self._slide(stable)
            return piece
        piece = stable[self._sent :]
        self._sent = max(self._sent, len(stable))
        return piece

    def _forget(self, count: int, sent: int) -> None:
        """Drop the tokens before the last clean cut and remember this one."""
        if count:
            del self._window[:count]
            sent = len(self._decode(self._window))
        self._clean = len(self._window)
        self._sent = sent

    def _slide(self, stable: str) -> None:
        del self._window[:-CONTEXT_TOKENS]
        self._clean = 0
        self._sent = len(self._decode(self._window)) - 1
