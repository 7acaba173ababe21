"""What an instance counts of its hand-overs; the proof that they happened, and why some did not."""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from triptych_contract.instance import HandoverCounts


class Failure(StrEnum):
    """Why a transfer was discarded."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    LATE = "late"
    SHORT = "short"
    MANIFEST = "manifest"
    CHECKSUM = "checksum"


class Counters:
    """Counters since start; the counts of the core's own (recomputed tokens, encoder runs) are not here."""

    def __init__(self) -> None:
        self.blocks_sent = 0
        self.blocks_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.embeddings_received = 0
        self.requests = 0
        self.refused = 0
        self._failures: Counter[Failure] = Counter()

    def failed(self, reason: Failure) -> None:
        """Count a discarded transfer."""
        self._failures[reason] += 1

    def failures(self) -> Mapping[str, int]:
        """Discarded transfers by reason; every reason is named."""
        return {reason.value: self._failures[reason] for reason in Failure}

    def snapshot(self) -> HandoverCounts:
        """All counters now."""
        return HandoverCounts(
            blocks_sent=self.blocks_sent,
            blocks_received=self.blocks_received,
            requests=self.requests,
            failed=self._failures.total(),
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            refused=self.refused,
            embeddings_received=self.embeddings_received,
        )
