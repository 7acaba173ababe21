"""Settings of the core process: JSON in its one command-line argument, written by the server process."""

import msgspec

from triptych_contract.profile import StepProfile


class SimConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The simulated executor.

    Attributes:
        vocab_size: Number of token ids.
        allowed: Token ids that the model may say; empty means the printable bytes, 32 to 126.
        eos_token_ids: End-of-sequence tokens, said now and then.
        profile: Step time.
        jitter_percent: Largest deviation of a step from its profile, either way.
        seed: Of the jitter; it takes no part in the text.
        token_bytes: Bytes of one token's slot in each of the two segments of a block, a multiple of 8; larger
            values give hand-overs realistic sizes.
        time_scale: Multiplies step times; 0 never waits.
        embedding_bytes: Bytes of one row of image embeddings.
    """

    vocab_size: int = 260
    allowed: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    profile: StepProfile = StepProfile()
    jitter_percent: float = 0.0
    seed: int = 0
    token_bytes: int = 8
    time_scale: float = 1.0
    embedding_bytes: int = 32


class CoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that the core process is told at start.

    Attributes:
        kind: Which executor: `sim` or `torch`.
        model_dir: Folder of the model (torch).
        dtype, device, threads: Of the torch executor; `auto` and 0 let it choose.
        kernels: CPU kernels of the torch executor: `auto` uses them if they are built, `off` never does.
        kv_blocks: Blocks of the KV pool, the padding block among them; 0 = as many as `kv_memory_bytes` holds.
        kv_memory_bytes: Memory of the KV pool; 0 = the executor chooses.
        max_context: Longest prompt plus output in tokens; 0 = the model's own bound.
        max_batch_tokens: Tokens of one step.
        max_sequences: Sequences that are computed at the same time.
        max_waiting: Requests that may wait; more are refused.
        lease_share_percent: Share of the pool that leases may hold.
        sim: Settings of the simulated executor.
        log_level: Least severity of log lines, on stderr.
        enable_failpoints: Arm the failpoints of the environment, for tests.
        parent_pid: Process id of the server; 0 = do not look.
        socket_fd, pool_fd, board_fd: Inherited descriptors: channel, KV pool (sized by the core), board.
    """

    kind: str = "sim"
    model_dir: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 0
    kernels: str = "auto"
    kv_blocks: int = 0
    kv_memory_bytes: int = 0
    max_context: int = 0
    max_batch_tokens: int = 512
    max_sequences: int = 256
    max_waiting: int = 1024
    lease_share_percent: int = 50
    sim: SimConfig = SimConfig()
    log_level: str = "info"
    enable_failpoints: bool = False
    parent_pid: int = 0
    socket_fd: int = -1
    pool_fd: int = -1
    board_fd: int = -1


def encode_config(config: CoreConfig) -> str:
    """The configuration as the core's command-line argument."""
    return msgspec.json.encode(config).decode()


def decode_config(text: str) -> CoreConfig:
    """Read the command-line argument; raises `msgspec.MsgspecError` if it is no configuration."""
    return msgspec.json.decode(text, type=CoreConfig, strict=True)
