"""Shared hypothesis strategies, and the two profiles: `ci` (default, reproducible) and `nightly` (long, random)."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from triptych_contract.handover import EmbeddingTicket, Ticket
from triptych_contract.hashing import MediaSpan
from triptych_contract.instance import InstanceRecord
from triptych_contract.ledger import LedgerEntry
from triptych_contract.roles import Assignment, Role, Stage

_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True, suppress_health_check=_SLOW)
settings.register_profile("nightly", max_examples=5000, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

ids = st.text("0123456789abcdef", min_size=32, max_size=32)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,20}", fullmatch=True)
hosts = st.one_of(st.ip_addresses().map(str), st.just("localhost"), st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True))
ports = st.integers(1, 65535)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
ttls_ms = st.integers(1, 600_000)
token_ids = st.integers(0, 2**31 - 1)
token_lists = st.lists(token_ids, max_size=200)
stage_sets = st.frozensets(st.sampled_from(list(Stage)))
roles = st.sampled_from(list(Role))
assignments = st.builds(Assignment, role=roles, epoch=st.integers(0, 20))
"""Few epochs, so that equal ones are common."""

records = st.builds(
    InstanceRecord,
    id=names,
    incarnation=ids,
    service=names,
    host=hosts,
    http_port=ports,
    kv_port=st.integers(0, 65535),
    model=st.text(max_size=20),
)
tickets = st.builds(
    Ticket,
    remote_engine_id=names,
    remote_request_id=names,
    remote_host=hosts,
    remote_port=ports,
    remote_num_tokens=st.integers(1, 10**6),
    remote_blocks_expiry_time=st.floats(0, 1e10),
    lease=ids,
    ttl_ms=ttls_ms,
    fingerprint=st.text("0123456789abcdef", min_size=16, max_size=16),
)
embedding_tickets = st.builds(
    EmbeddingTicket,
    remote_engine_id=names,
    remote_host=hosts,
    remote_port=ports,
    lease=ids,
    ttl_ms=ttls_ms,
    digests=st.lists(digests, min_size=1, max_size=3).map(tuple),
)
ledger_entries = st.builds(
    LedgerEntry,
    choice=st.integers(0, 15),
    first_position=st.integers(0, 10**6),
    token_ids=st.lists(token_ids, max_size=20).map(tuple),
    cursor=st.from_regex(r"[!-~]{1,20}", fullmatch=True),
)
media_spans = st.builds(
    MediaSpan, digest=st.binary(min_size=32, max_size=32), first=st.integers(0, 150), count=st.integers(1, 100)
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
"""Any JSON, with the numbers that readers stumble over."""
