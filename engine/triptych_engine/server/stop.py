"""Stop strings over text that arrives in pieces: nothing is sent that may turn out to be part of one."""

from collections.abc import Sequence


class StopMatcher:
    """Looks for the first of several strings.

    Args:
        stops: The strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    @property
    def held_characters(self) -> int:
        """Characters that are held back."""
        return len(self._held)

    def feed(self, piece: str, *, armed: bool = True) -> str:
        """Add text; returns what can be sent. Once `stopped` is set, all has been sent.

        Args:
            piece: The new text.
            armed: False lets the text pass unseen (before `min_tokens`).
        """
        if not self._stops or not armed:
            text, self._held = self._held + piece, ""
            return text
        text = self._held + piece
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.stopped = True
            self._held = ""
            return text[: min(starts)]
        keep = self._overlap(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back in vain."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[len(text) - length :]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
