"""Settings of the router program: one frozen value, read once, checked as a whole."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych_contract.ids import is_host, is_name
from triptych_contract.program.flags import (
    LOG_LEVELS,
    Bounds,
    SettingsError,
    is_loopback,
    out_of_bounds,
    read_discovery,
    read_token,
)
from triptych_router.admission.keys import KeyFileError, read_keys
from triptych_router.schedule.policies import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that the router is told at start; see `--help` for what each one means.

    `service_token` is empty only with `insecure`. Without `api_keys` clients need none, on loopback only.
    """

    discovery: Path
    service: str
    model: str
    host: str
    port: int
    api_keys: Path | None
    service_token: str
    insecure: bool
    policy: Policy
    handover_min_tokens: int
    max_queue: int
    max_requests_per_key: int
    queue_timeout_s: float
    request_timeout_s: float
    slow_client_s: float
    retries: int
    drain_s: float
    expose_route: bool
    log_level: str
    log_requests: bool
    exit_with_stdin: bool


def read_settings(arguments: Sequence[str]) -> Settings:
    """Read the command line; prints help or a usage error and exits as `argparse` does.

    Raises:
        SettingsError: Values that contradict each other or are out of bounds, all of them together.
    """
    flags = _parser().parse_args(arguments)
    faults: list[str] = []
    settings = Settings(
        discovery=read_discovery(flags.discovery, faults),
        service=flags.service,
        model=flags.model,
        host=flags.host,
        port=flags.port,
        api_keys=flags.api_keys,
        service_token=read_token(flags.token_file, faults),
        insecure=flags.insecure,
        policy=Policy(flags.policy),
        handover_min_tokens=flags.handover_min_tokens,
        max_queue=flags.max_queue,
        max_requests_per_key=flags.max_requests_per_key,
        queue_timeout_s=flags.queue_timeout_s,
        request_timeout_s=flags.request_timeout_s,
        slow_client_s=flags.slow_client_s,
        retries=flags.retries,
        drain_s=flags.drain_s,
        expose_route=flags.expose_route,
        log_level=flags.log_level,
        log_requests=flags.log_requests,
        exit_with_stdin=flags.exit_with_stdin,
    )
    faults += _bounds(settings) + _security(settings, has_token_file=flags.token_file is not None)
    if faults:
        raise SettingsError(faults)
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triptych-router",
        description="The front door of a service: the OpenAI API over its encode, prefill and decode instances.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--discovery", metavar="local:DIR", required=True, help="where instances are found")
    add("--service", default="default", help="service whose instances are routed to")
    add("--model", default="", metavar="NAME", help="serve only this model (default: all that the instances serve)")
    add("--host", default="127.0.0.1", help="address to bind; other than loopback needs --api-keys")
    add("--port", type=int, default=8000, help="HTTP port; 0 takes a free one")
    add("--api-keys", type=Path, metavar="FILE", help="one name:sha256hex a line; read again when it changes")
    add("--token-file", type=Path, metavar="F", help="file with the service token that the instances know")
    add("--insecure", action="store_true", help="no service token at all, on loopback only")
    add("--policy", choices=[policy.value for policy in Policy], default=Policy.LEAST_LOAD.value, help="how to choose")
    add(
        "--handover-min-tokens",
        type=int,
        default=16,
        help="shorter prompts are computed where they are decoded, and longer ones too while a hand-over would gain"
        " nothing; 0 = hand over all that can be",
    )
    add("--max-queue", type=int, default=1024, help="requests that may wait for an instance; more are refused")
    add("--max-requests-per-key", type=int, default=0, help="requests of one API key at a time; 0 = no bound")
    add("--queue-timeout-s", type=float, default=30.0, help="longest wait while all instances are full")
    add("--request-timeout-s", type=float, default=600.0, help="longest time of one request")
    add("--slow-client-s", type=float, default=30.0, help="longest time a client may take nothing of its answer")
    add("--retries", type=int, default=2, help="further tries of a stage on other instances, before the first byte")
    add("--drain-s", type=float, default=30.0, help="SIGTERM: time for running requests")
    add("--expose-route", action="store_true", help="name the instances that served in x-triptych-served-by")
    add("--log-level", choices=LOG_LEVELS, default="info", help="least severity of log lines, on stderr")
    add(
        "--log-requests",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="one log line a request; --no-log-requests for none",
    )
    add("--exit-with-stdin", action="store_true", help="exit as soon as stdin reaches its end")
    return parser


_BOUNDS: Bounds = (
    ("port", 0, 65535),
    ("handover_min_tokens", 0, 2**31 - 1),
    ("max_queue", 0, 2**20),
    ("max_requests_per_key", 0, 2**20),
    ("queue_timeout_s", 0, 86400),
    ("request_timeout_s", 0.001, 86400),
    ("slow_client_s", 0.001, 86400),
    ("retries", 0, 16),
    ("drain_s", 0, 86400),
)


def _bounds(settings: Settings) -> list[str]:
    faults = out_of_bounds(settings, _BOUNDS)
    if not is_name(settings.service):
        faults.append("--service must be letters, digits and . _ : @ - (at most 128)")
    if not is_host(settings.host):
        faults.append("--host must be a host name or an address")
    return faults


def _security(settings: Settings, *, has_token_file: bool) -> list[str]:
    faults = []
    loopback = is_loopback(settings.host)
    if not loopback and settings.api_keys is None:
        faults.append(f"--host {settings.host} is not loopback and needs --api-keys")
    if settings.insecure and not loopback:
        faults.append("--insecure is for loopback only")
    if not has_token_file and not settings.insecure:
        faults.append("--token-file is needed to talk to the instances (--insecure does without, on loopback only)")
    if settings.api_keys is not None:
        try:
            read_keys(settings.api_keys)
        except KeyFileError as error:
            faults.append(str(error))
    return faults
