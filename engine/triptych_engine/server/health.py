"""Health, version, metrics: answered from what is at hand, without the core."""

import asyncio

from aiohttp import web

from triptych_contract import WIRE_VERSION, __version__
from triptych_contract.errors import NotReady
from triptych_contract.roles import Phase
from triptych_engine.server.engine import Engine
from triptych_engine.server.instance import json_response
from triptych_engine.server.keys import ENGINE
from triptych_engine.server.metrics import CONTENT_TYPE, engine_samples, render


async def livez(_request: web.Request) -> web.StreamResponse:
    """The process answers."""
    return json_response({"status": "ok"})


async def health(request: web.Request) -> web.StreamResponse:
    """The engine has its model and its core lives, whatever its role."""
    phase = request.app[ENGINE].role.phase
    if phase in (Phase.LOADING, Phase.FAILED):
        raise NotReady(f"This instance is {phase.value}.")
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.StreamResponse:
    """New work is taken."""
    role = request.app[ENGINE].role
    if not role.ready:
        raise NotReady("This instance takes no new work now.")
    return json_response({"status": "ok"})


async def version(_request: web.Request) -> web.StreamResponse:
    """The release, and the version of the wire."""
    return json_response({"version": __version__, "wire": WIRE_VERSION})


async def metrics(request: web.Request) -> web.StreamResponse:
    """Prometheus text under vLLM's names."""
    return web.Response(body=_render(request.app[ENGINE]), headers={"content-type": CONTENT_TYPE})


def _render(engine: Engine) -> bytes:
    state = engine.state()
    samples = engine_samples(
        engine.stats,
        state.load,
        state.load.handover,
        role=state.role.value,
        epoch=state.epoch,
        block_tokens=state.block_tokens,
        finished=engine.metrics.finished,
        failures=engine.handover.failures(),
        tasks=len(asyncio.all_tasks()),
    )
    return render(samples, engine.metrics.histograms, model=state.model, engine=state.id)
