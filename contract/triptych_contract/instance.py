"""What an instance says of itself: its record in discovery, its state, and the stream of its events.

Discovery says only where an instance is. Truth about it (role, epoch, load, health) comes from its own state
stream, `GET /instance/events`: NDJSON, first a `FullState`, then events numbered without a gap; after a gap
the reader asks for the full state again.
"""

from typing import Annotated

import msgspec

from triptych_contract import WIRE_VERSION
from triptych_contract.errors import BadRequest
from triptych_contract.ids import is_host, is_id, is_name
from triptych_contract.profile import StepProfile
from triptych_contract.roles import Phase, Role, Stage

BEAT_MS = 250
"""Interval of load samples, which are the heartbeat."""
SUSPECT_BEATS = 3
DEAD_BEATS = 6
MIN_STEP_AGE_MS = 2000
STEP_AGE_FACTOR = 5
"""A step older than max(MIN_STEP_AGE_MS, factor × its predicted time) makes its instance suspect."""
MAX_EPOCH = 2**53
"""Every JSON reader keeps whole numbers up to here."""


class InstanceRecord(msgspec.Struct, frozen=True):
    """Where an instance is; what discovery stores.

    Attributes:
        id: Name of the instance, kept over restarts.
        incarnation: 128-bit id of this life of its process.
        service: Name of the service it belongs to.
        host: Address of both ports.
        http_port: OpenAI and instance API, metrics.
        kv_port: KV link.
        dialect: `triptych` or `vllm`.
        model: Served model name.
        generation: Template of the rollout it belongs to.
    """

    id: str
    incarnation: str
    service: str
    host: str
    http_port: int
    kv_port: int
    dialect: str = "triptych"
    model: str = ""
    generation: str = ""
    version: int = WIRE_VERSION

    def check(self) -> None:
        """Raise `BadRequest` for a record that no instance of ours writes."""
        named = is_name(self.id) and is_id(self.incarnation) and is_name(self.service) and is_host(self.host)
        ported = 0 < self.http_port < 65536 and 0 <= self.kv_port < 65536
        if not (named and ported and self.dialect in ("triptych", "vllm")):
            raise BadRequest("This instance record is malformed.")


class BlockCounts(msgspec.Struct, frozen=True):
    """Blocks of the KV pool; in transfer > held > cached > free, each counted once."""

    free: int = 0
    cached: int = 0
    held: int = 0
    in_transfer: int = 0
    total: int = 0


class HandoverCounts(msgspec.Struct, frozen=True):
    """Counters since start that prove what was handed over.

    Attributes:
        blocks_sent: KV blocks that left over the KV link.
        blocks_received: KV blocks that arrived and were verified.
        tokens_recomputed: Prompt tokens computed by decode legs (one each on a healthy hand-over).
        requests: Decode legs served with a ticket.
        failed: Transfers that were discarded.
        bytes_sent: Bytes of KV and embeddings sent.
        bytes_received: Bytes of KV and embeddings received.
        refused: Forged, foreign or expired tickets and links refused.
        encoder_runs: Images that were embedded here.
        embeddings_received: Embeddings pulled from elsewhere.
    """

    blocks_sent: int = 0
    blocks_received: int = 0
    tokens_recomputed: int = 0
    requests: int = 0
    failed: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    refused: int = 0
    encoder_runs: int = 0
    embeddings_received: int = 0


class LoadSample(msgspec.Struct, frozen=True):
    """One heartbeat.

    Attributes:
        step: Number of steps finished.
        step_age_ms: Age of the running step, 0 while idle.
        step_predicted_ms: What the running step should take.
        running: Sequences that are being computed.
        waiting: Requests that wait for admission or blocks.
        waiting_tokens: Uncached prompt tokens not computed yet, of waiting and running requests.
        context_tokens: KV tokens of the running sequences.
        leases: Leases held for others.
        streams: Open HTTP requests of the OpenAI API.
    """

    step: int = 0
    step_age_ms: float = 0.0
    step_predicted_ms: float = 0.0
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    context_tokens: int = 0
    leases: int = 0
    streams: int = 0
    blocks: BlockCounts = BlockCounts()
    handover: HandoverCounts = HandoverCounts()


class InstanceState(msgspec.Struct, frozen=True):
    """`GET /instance`: all that an instance says of itself.

    Attributes:
        capable: Stages that it can take.
        role: Stages that it takes now, by name.
        epoch: Number of the role's assignment; 0 before the first.
        phase: Loading, serving, draining, drained or failed.
        loading_percent: Progress of loading weights, 100 once done.
        model: Served model name.
        block_tokens: Tokens a KV block.
        max_context: Longest prompt plus output in tokens.
        link_class: Digest of the KV link class.
        profile: Coefficients of the step time.
        message: What is wrong, in a sentence, where something is.
    """

    id: str
    incarnation: str
    service: str
    capable: tuple[Stage, ...]
    role: Role
    epoch: int
    phase: Phase
    model: str = ""
    loading_percent: int = 0
    block_tokens: int = 32
    max_context: int = 0
    link_class: str = ""
    profile: StepProfile = StepProfile()
    load: LoadSample = LoadSample()
    message: str = ""
    version: int = WIRE_VERSION


class FullState(msgspec.Struct, frozen=True, tag="state"):
    """The whole state; first on a stream and after each change of role or phase."""

    seq: int
    state: InstanceState


class Load(msgspec.Struct, frozen=True, tag="load"):
    """A heartbeat."""

    seq: int
    load: LoadSample


class KVStored(msgspec.Struct, frozen=True, tag="kv-stored"):
    """Blocks that became reusable: 16 hex digits of each hash, in chain order, and the router's own chain."""

    seq: int
    blocks: tuple[str, ...]
    prefix: str = ""


class KVRemoved(msgspec.Struct, frozen=True, tag="kv-removed"):
    """Blocks that are no longer reusable."""

    seq: int
    blocks: tuple[str, ...]


StateEvent = FullState | Load | KVStored | KVRemoved


class RoleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /instance/role`; the answer is the `InstanceState`."""

    role: Role
    epoch: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)]


class DrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /instance/drain`; `{"cancel": true}` takes it back. The answer is the `InstanceState`."""

    cancel: bool = False
