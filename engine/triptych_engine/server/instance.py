"""The instance API: state, its stream, role, drain and leases. Only for callers with the service token."""

from typing import Any

from aiohttp import web

from triptych_contract.codec import decode_json, encode_json
from triptych_contract.errors import BadRequest
from triptych_contract.ids import is_id
from triptych_contract.instance import DrainRequest, RoleRequest
from triptych_contract.roles import Assignment, PhaseEvent
from triptych_engine.server.keys import ENGINE, HUB
from triptych_engine.server.openai import read_body

MAX_EPOCH = 2**53
MAX_BODY_BYTES = 4096


def json_response(body: Any, status: int = 200) -> web.Response:
    """An answer in JSON."""
    return web.Response(body=encode_json(body), status=status, content_type="application/json")


async def state(request: web.Request) -> web.StreamResponse:
    """`GET /instance`."""
    return json_response(request.app[ENGINE].state())


async def events(request: web.Request) -> web.StreamResponse:
    """`GET /instance/events`: NDJSON, the full state first; ends for a reader that falls behind."""
    response = web.StreamResponse(headers={"content-type": "application/x-ndjson", "cache-control": "no-cache"})
    await response.prepare(request)
    lines = request.app[HUB].lines()
    try:
        async for line in lines:
            await response.write(line)
    finally:
        await lines.aclose()  # type: ignore[attr-defined]
    await response.write_eof()
    return response


async def role(request: web.Request) -> web.StreamResponse:
    """`POST /instance/role`: idempotent by epoch."""
    wanted = decode_json(await read_body(request), RoleRequest, limit_bytes=MAX_BODY_BYTES)
    if not 0 <= wanted.epoch <= MAX_EPOCH:
        raise BadRequest("The epoch is out of range.", param="epoch")
    engine = request.app[ENGINE]
    engine.role.assign(Assignment(wanted.role, wanted.epoch))
    return json_response(engine.state())


async def drain(request: web.Request) -> web.StreamResponse:
    """`POST /instance/drain`: finish what is in flight, accept nothing new; or take that back."""
    body = await read_body(request) if request.can_read_body else b"{}"
    wanted = decode_json(body, DrainRequest, limit_bytes=MAX_BODY_BYTES)
    engine = request.app[ENGINE]
    if wanted.cancel:
        engine.role.cancel_drain()
    else:
        engine.role.apply(PhaseEvent.DRAIN)
    if engine.idle:
        engine.role.apply(PhaseEvent.EMPTY)
    return json_response(engine.state())


async def renew(request: web.Request) -> web.StreamResponse:
    """`POST /instance/leases/{id}`: the lease starts its life anew."""
    return json_response(request.app[ENGINE].handover.renew(_lease(request)))


async def release(request: web.Request) -> web.StreamResponse:
    """`DELETE /instance/leases/{id}`: the blocks are wanted no more; the same answer every time."""
    lease = _lease(request)
    request.app[ENGINE].handover.release(lease)
    return json_response({"lease": lease})


def _lease(request: web.Request) -> str:
    lease = request.match_info["lease"]
    if not is_id(lease):
        raise BadRequest("A lease is 32 lower-case hex digits.", param="lease")
    return lease
