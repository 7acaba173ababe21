"""Inbox and outbox of the core process: plain structs over a socket pair.

Times in messages are seconds of the machine's monotonic clock, which both processes share.
"""

from enum import StrEnum

import msgspec

from triptych_contract.hashing import MediaSpan
from triptych_contract.instance import BlockCounts
from triptych_contract.profile import StepProfile
from triptych_contract.sampling import SamplingParams
from triptych_engine.kv.layout import KVLayout

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Bound of one message between the two processes of one engine; it may carry embeddings."""


class Mode(StrEnum):
    """What the core does with a request.

    SERVE computes prompt and output; PREFILL computes the prompt and keeps its blocks under a lease; PULL
    waits for blocks from elsewhere, then computes the last prompt position and the output.
    """

    SERVE = "serve"
    PREFILL = "prefill"
    PULL = "pull"


class FinishReason(StrEnum):
    """Why a choice ended. STOP and LENGTH are the client's words; the rest end with an error or in silence."""

    STOP = "stop"
    LENGTH = "length"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Embedding(msgspec.Struct, frozen=True):
    """Embeddings of one image: `count` rows for the positions from `first` on, raw bytes of the executor's dtype."""

    digest: bytes
    first: int
    count: int
    data: bytes


# --- inbox: server to core -----------------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """A request, tokenised and validated; one prompt.

    Attributes:
        id: Unique among live requests of this engine (the server makes it).
        token_ids: The prompt, at least one token.
        sampling: Parameters; `sampling.stop` strings are the server's business.
        mode: What to do with it.
        chain_root: 32-byte root of its block chain (tenant, adapter and salt are in it).
        prompt_index: Position in a list of prompts, for the draws.
        eos_token_ids: The model's end-of-sequence tokens.
        embeddings: Of the images in the prompt.
        media: Where images stand, for block identity.
        deadline_s: Monotonic time at which the core cancels it; None = no deadline.
        lease: Id of the lease to grant (PREFILL) or to pull under (PULL).
        remote_num_tokens: Prompt tokens computed by the producer (PULL).
        prefix: The router's affinity chain, repeated in KV events.
    """

    id: str
    token_ids: list[int]
    sampling: SamplingParams
    mode: Mode = Mode.SERVE
    chain_root: bytes = b""
    prompt_index: int = 0
    eos_token_ids: tuple[int, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    media: tuple[MediaSpan, ...] = ()
    deadline_s: float | None = None
    lease: str = ""
    remote_num_tokens: int = 0
    prefix: str = ""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End a request, or one choice of it (a stop string was found); unknown ids are ignored."""

    id: str
    choice: int | None = None


class PullEnded(msgspec.Struct, frozen=True, tag="pull-ended"):
    """The server has received and verified blocks (`received`: chain indices), or failed (`ok` false: use none)."""

    id: str
    ok: bool
    received: tuple[int, ...] = ()
    reason: str = ""


class ReleaseLease(msgspec.Struct, frozen=True, tag="release"):
    """Nobody reads the lease's blocks any more (taken, refused, cancelled, expired)."""

    lease: str


class Encode(msgspec.Struct, frozen=True, tag="encode"):
    """Embed one image."""

    id: str
    digest: bytes
    data: bytes
    count: int


class Audit(msgspec.Struct, frozen=True, tag="audit"):
    """Check block conservation now; answered by `AuditResult`."""

    id: str


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Stop after the running step."""


Inbox = Submit | Cancel | PullEnded | ReleaseLease | Encode | Audit | Shutdown


# --- outbox: core to server ----------------------------------------------------------------------------


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Weights are being loaded."""

    percent: int
    text: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The core takes requests.

    Attributes:
        layout: Geometry of the KV pool, which the server maps too.
        fingerprint: Of weights and configuration.
        kv_dtype: Element type of KV.
        vocab_size: Number of token ids.
        max_context: Longest prompt plus output in tokens.
        profile: Prior or measured step profile.
        embedding_dtype: Element type of embeddings; empty if the model takes none.
        embedding_bytes: Bytes of one row of embeddings.
    """

    layout: KVLayout
    fingerprint: str
    kv_dtype: str
    vocab_size: int
    max_context: int
    profile: StepProfile
    embedding_dtype: str = ""
    embedding_bytes: int = 0


class CoreFailed(msgspec.Struct, frozen=True, tag="core-failed"):
    """The core cannot go on and exits; the sentence is safe to show."""

    message: str


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Raw-model log-probabilities at one position: the chosen token, its rank, and the best alternatives."""

    chosen: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one choice after a step.

    Attributes:
        id: The request.
        choice: Which choice.
        first_position: Output position of the first token here.
        token_ids: New tokens; empty if only the end is told. A stop token is included, the server hides it.
        finish_reason: Set with the last tokens of the choice.
        logprobs: One for each token if asked for.
        cached_tokens: Prompt tokens that were not computed here; told with the first tokens.
        admitted_s: Monotonic time at which the request first got its blocks; told with the first tokens.
    """

    id: str
    choice: int
    first_position: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    cached_tokens: int = 0
    admitted_s: float = 0.0


class Deltas(msgspec.Struct, frozen=True, tag="deltas"):
    """All tokens of one step; the time is that of its end."""

    at_s: float
    items: tuple[Delta, ...]


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """A request that was not admitted or could not go on: a code of the error tree and a sentence."""

    id: str
    code: str
    message: str
    retry_after_ms: int | None = None


class LeaseGranted(msgspec.Struct, frozen=True, tag="lease"):
    """A prefill request is computed; its blocks are `in transfer` until `ReleaseLease`.

    Attributes:
        id: The request.
        lease: Its lease.
        blocks: Physical block ids in chain order, the partial tail last.
        identities: Hash of each full block; the tail has none.
        num_tokens: Prompt tokens computed.
        cached_tokens: Prompt tokens that came from the prefix cache.
        admitted_s: Monotonic time at which the request first got its blocks.
    """

    id: str
    lease: str
    blocks: tuple[int, ...]
    identities: tuple[bytes, ...]
    num_tokens: int
    cached_tokens: int = 0
    admitted_s: float = 0.0


class PullBlock(msgspec.Struct, frozen=True, array_like=True):
    """A block to be filled: chain index, the physical block here, its hash (empty for the tail), valid tokens."""

    index: int
    block: int
    identity: bytes
    tokens: int


class PullWanted(msgspec.Struct, frozen=True, tag="pull-wanted"):
    """Blocks are allocated for a PULL request; the server fetches them and answers `PullEnded`.

    With no blocks everything was found here: the server only releases the lease.
    """

    id: str
    lease: str
    blocks: tuple[PullBlock, ...]


class Encoded(msgspec.Struct, frozen=True, tag="encoded"):
    """Embeddings of one image."""

    id: str
    digest: bytes
    count: int
    data: bytes


class KVChanged(msgspec.Struct, frozen=True, tag="kv-changed"):
    """Blocks that became reusable or stopped being so: first 8 bytes of their hashes, in hex."""

    stored: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    prefix: str = ""


class CoreStats(msgspec.Struct, frozen=True, tag="stats"):
    """A consistent sample between two steps; counters are since start.

    `scheduler_s` is the time spent on deciding steps.
    """

    step: int
    running: int
    waiting: int
    waiting_tokens: int
    context_tokens: int
    blocks: BlockCounts
    leases: int
    tokens_recomputed: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    prompt_tokens: int
    generation_tokens: int
    encoder_runs: int
    scheduler_s: float = 0.0


class AuditResult(msgspec.Struct, frozen=True, tag="audit-result"):
    """Faults found by an audit of block conservation; none in health."""

    id: str
    faults: tuple[str, ...]
    stats: CoreStats


Outbox = (
    Progress
    | Ready
    | CoreFailed
    | Deltas
    | Rejected
    | LeaseGranted
    | PullWanted
    | Encoded
    | KVChanged
    | CoreStats
    | AuditResult
)
