"""How long a transfer may take, and how often a lease is renewed; pure."""

SLOWEST_BYTES_PER_S = 4_000_000
"""A slower link is worse than computing the prompt again: a small model makes this much KV in a second."""
RENEWALS_PER_TTL = 6
"""So many chances before a lease is lost; five may fail."""

MIN_INTERVAL_S = 0.02
"""Whatever life a ticket claims, it cannot make this instance call without a pause."""


def transfer_deadline_s(ttl_ms: int, size_bytes: int) -> float:
    """Seconds after which a transfer of so many bytes is given up, where nobody says otherwise."""
    return ttl_ms / 1000 + size_bytes / SLOWEST_BYTES_PER_S


def renewal_interval_s(ttl_ms: int) -> float:
    """Seconds between two renewals of a lease."""
    return max(MIN_INTERVAL_S, ttl_ms / 1000 / RENEWALS_PER_TTL)
