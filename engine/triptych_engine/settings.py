"""Settings of the engine program: one frozen value, read once, checked as a whole."""

import argparse
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from triptych_contract.handover import LEASE_TTL_MS, MAX_TTL_MS
from triptych_contract.ids import is_name, random_id
from triptych_contract.profile import StepProfile
from triptych_contract.program.flags import (
    LOG_LEVELS,
    Bounds,
    SettingsError,
    is_loopback,
    out_of_bounds,
    read_discovery,
    read_token,
)
from triptych_contract.roles import STAGES, Role, Stage
from triptych_engine import kernels

DTYPES = ("auto", "float32", "bfloat16", "float64")
DEVICES = ("auto", "cpu", "cuda")
KERNELS = ("auto", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that the engine is told at start; see `--help` for what each one means.

    `service_token` is empty if there is no file with one; the instance API and hand-overs are closed then,
    unless `insecure` opens them (on loopback only).
    """

    model: Path | None
    served_name: str
    host: str
    port: int
    kv_port: int
    instance_id: str
    service: str
    role: Role
    role_timeout_s: float
    capable: frozenset[Stage]
    discovery: Path | None
    service_token: str = field(repr=False)
    insecure: bool
    dtype: str
    device: str
    threads: int
    kernels: str
    max_context: int
    kv_blocks: int
    kv_memory_bytes: int
    max_batch_tokens: int
    max_sequences: int
    max_waiting: int
    lease_ttl_ms: int
    lease_share_percent: int
    drain_s: float
    request_timeout_s: float
    sim_profile: StepProfile
    sim_jitter_percent: float
    sim_seed: int
    sim_token_bytes: int
    log_level: str
    exit_with_stdin: bool
    enable_failpoints: bool

    @property
    def loopback(self) -> bool:
        """True if only this machine can reach the program."""
        return is_loopback(self.host)


def read_settings(arguments: Sequence[str]) -> Settings:
    """Read the command line; prints help or a usage error and exits as `argparse` does.

    Raises:
        SettingsError: Values that contradict each other or are out of bounds, all of them together.
    """
    flags = _parser().parse_args(arguments)
    faults: list[str] = []
    capable = _capable(flags, faults)
    settings = Settings(
        model=flags.model,
        served_name=flags.served_name or ("sim" if flags.sim else flags.model.resolve().name),
        host=flags.host,
        port=flags.port,
        kv_port=flags.kv_port,
        instance_id=flags.instance_id or f"{socket.gethostname().split('.')[0][:32]}-{random_id()[:8]}",
        service=flags.service,
        role=Role(flags.role),
        role_timeout_s=flags.role_timeout_s,
        capable=capable,
        discovery=read_discovery(flags.discovery, faults) if flags.discovery is not None else None,
        service_token=read_token(flags.token_file, faults),
        insecure=flags.insecure,
        dtype=flags.dtype,
        device=flags.device,
        threads=flags.threads,
        kernels=flags.kernels,
        max_context=flags.max_context,
        kv_blocks=flags.kv_blocks,
        kv_memory_bytes=flags.kv_memory_bytes,
        max_batch_tokens=flags.max_batch_tokens,
        max_sequences=flags.max_sequences,
        max_waiting=flags.max_waiting,
        lease_ttl_ms=flags.lease_ttl_ms,
        lease_share_percent=flags.lease_share_percent,
        drain_s=flags.drain_s,
        request_timeout_s=flags.request_timeout_s,
        sim_profile=_profile(flags.sim_profile, faults),
        sim_jitter_percent=flags.sim_jitter_percent,
        sim_seed=flags.sim_seed,
        sim_token_bytes=flags.sim_token_bytes,
        log_level=flags.log_level,
        exit_with_stdin=flags.exit_with_stdin,
        enable_failpoints=flags.enable_failpoints,
    )
    faults += _bounds(settings) + _security(settings) + _model(settings)
    if faults:
        raise SettingsError(faults)
    return settings


class _BuildKernels(argparse.Action):
    """Like `--version`: does its work and ends the program."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002 - argparse names it
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            print(kernels.build(os.environ))
        except kernels.BuildFailed as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triptych-engine",
        description="Serve one model by the OpenAI API, as one instance of an encode, prefill and decode service.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _add_serving(parser)
    _add_core(parser)
    _add_sim(parser)
    return parser


def _add_serving(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, metavar="DIR", help="Hugging Face folder of the model")
    model.add_argument("--sim", action="store_true", help="simulated engine: no model, no torch")
    model.add_argument("--build-kernels", action=_BuildKernels, help="compile the optional CPU kernels and exit")
    serving = parser.add_argument_group("serving")
    add = serving.add_argument
    add("--served-name", metavar="NAME", help="model name of the API (default: the folder's name, or sim)")
    add("--host", default="127.0.0.1", help="address to bind; other than loopback needs --token-file")
    add("--port", type=int, default=0, help="HTTP port; 0 takes a free one")
    add("--kv-port", type=int, default=0, help="port of the KV link; 0 takes a free one")
    add("--instance-id", metavar="ID", help="name of this instance, kept over restarts (default: made up)")
    add("--service", default="default", help="service that the instance belongs to")
    add("--role", choices=[role.value for role in Role], default=Role.UNASSIGNED.value, help="role to start with")
    add("--role-timeout-s", type=float, default=10.0, help="without a role for so long, take the largest one")
    add("--capable", metavar="STAGES", help="comma-separated stages (default: all with --sim, else prefill,decode)")
    add("--discovery", metavar="local:DIR", help="where instances find each other (default: nowhere)")
    add("--token-file", type=Path, metavar="F", help="file with the service token")
    add("--insecure", action="store_true", help="no token at all, on loopback only")
    add("--lease-ttl-ms", type=int, default=LEASE_TTL_MS, help="life of a lease without renewal")
    add("--drain-s", type=float, default=30.0, help="SIGTERM: time for running requests")
    add("--request-timeout-s", type=float, default=600.0, help="longest time of one request")
    add("--log-level", choices=LOG_LEVELS, default="info", help="least severity of log lines, on stderr")
    add("--exit-with-stdin", action="store_true", help="exit as soon as stdin reaches its end")
    add("--enable-failpoints", action="store_true", help=argparse.SUPPRESS)


def _add_core(parser: argparse.ArgumentParser) -> None:
    core = parser.add_argument_group("core")
    add = core.add_argument
    add("--dtype", choices=DTYPES, default="auto", help="element type of weights and KV")
    add("--device", choices=DEVICES, default="auto", help="where the model runs")
    add("--threads", type=int, default=0, help="threads of the core; 0 = all processors")
    add("--kernels", choices=KERNELS, default="auto", help="CPU kernels: used if they are built, or never")
    add("--max-context", type=int, default=0, help="longest prompt plus output in tokens; 0 = the model's own")
    add("--kv-blocks", type=int, default=0, help="blocks of the KV pool; 0 = as many as the memory holds")
    add("--kv-memory-bytes", type=int, default=0, help="memory of the KV pool; 0 = chosen by the engine")
    add("--max-batch-tokens", type=int, default=512, help="tokens of one step")
    add("--max-sequences", type=int, default=256, help="sequences computed at a time")
    add("--max-waiting", type=int, default=1024, help="requests that may wait; more are refused")
    add("--lease-share-percent", type=int, default=50, help="share of the KV pool that leases may hold")


def _add_sim(parser: argparse.ArgumentParser) -> None:
    sim = parser.add_argument_group("simulated engine")
    add = sim.add_argument
    add("--sim-profile", metavar="A,B,C,D,E", help="seconds: step, prompt token, token × context, sequence, context")
    add("--sim-jitter-percent", type=float, default=0.0, help="largest deviation of a step from its profile")
    add("--sim-seed", type=int, default=0, help="seed of the jitter")
    add("--sim-token-bytes", type=int, default=8, help="bytes of one token's KV, a multiple of 8")


def _capable(flags: argparse.Namespace, faults: list[str]) -> frozenset[Stage]:
    if flags.capable is None:
        return frozenset(Stage) if flags.sim else frozenset({Stage.PREFILL, Stage.DECODE})
    known = {stage.value for stage in Stage}
    words = {word.strip() for word in flags.capable.split(",")}
    if not words <= known:
        faults.append(f"--capable takes a comma-separated list of {', '.join(sorted(known))}")
    if not flags.sim and Stage.ENCODE in words:
        faults.append("--capable encode: this engine embeds images with --sim only")
    return frozenset(Stage(word) for word in words & known)


def _profile(text: str | None, faults: list[str]) -> StepProfile:
    if text is None:
        return StepProfile()
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 5 or not all(0 <= value < 3600 for value in values):
        faults.append("--sim-profile takes five numbers of seconds, A,B,C,D,E")
        return StepProfile()
    return StepProfile(*values)


_BOUNDS: Bounds = (
    ("port", 0, 65535),
    ("kv_port", 0, 65535),
    ("role_timeout_s", 0, 86400),
    ("threads", 0, 1024),
    ("max_context", 0, 2**31 - 1),
    ("kv_blocks", 0, 2**31 - 1),
    ("kv_memory_bytes", 0, 2**50),
    ("max_batch_tokens", 1, 2**20),
    ("max_sequences", 1, 65536),
    ("max_waiting", 1, 2**20),
    ("lease_ttl_ms", 100, MAX_TTL_MS),
    ("lease_share_percent", 1, 100),
    ("drain_s", 0, 86400),
    ("request_timeout_s", 0.001, 86400),
    ("sim_jitter_percent", 0, 100),
    ("sim_seed", -(2**63), 2**63 - 1),
    ("sim_token_bytes", 8, 2**20),
)


def _bounds(settings: Settings) -> list[str]:
    faults = out_of_bounds(settings, _BOUNDS)
    if settings.sim_token_bytes % 8:
        faults.append("--sim-token-bytes must be a multiple of 8")
    if not STAGES[settings.role] <= settings.capable:
        faults.append(f"--role {settings.role.value} needs stages that --capable does not name")
    faults += [
        f"--{name.replace('_', '-')} must be letters, digits and . _ : @ - (at most 128)"
        for name in ("instance_id", "service", "host")
        if not is_name(getattr(settings, name)) and not (name == "host" and settings.loopback)
    ]
    if not (settings.served_name.isprintable() and 0 < len(settings.served_name) <= 256):
        faults.append("--served-name must be 1 to 256 printable characters")
    return faults


def _security(settings: Settings) -> list[str]:
    faults = []
    if not settings.loopback and not settings.service_token:
        faults.append(f"--host {settings.host} is not loopback and needs --token-file")
    if settings.insecure and not settings.loopback:
        faults.append("--insecure is for loopback only")
    return faults


def _model(settings: Settings) -> list[str]:
    if settings.model is not None and not settings.model.is_dir():
        return ["--model must be a folder"]
    return []
