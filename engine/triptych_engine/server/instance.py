"""The instance API: state, its stream, role, drain and leases. Only for callers with the service token."""

import asyncio
from typing import Any

from aiohttp import web

from triptych_contract.codec import decode_json, encode_json
from triptych_contract.errors import BadRequest, DeadlineExceeded, Internal, NotReady
from triptych_contract.ids import is_id
from triptych_contract.instance import DrainRequest, RoleRequest
from triptych_contract.roles import Assignment, PhaseEvent
from triptych_engine.messages import Audit, AuditResult
from triptych_engine.server.incoming import read_body
from triptych_engine.server.keys import ENGINE, HUB
from triptych_engine.server.stream import write_in_time

MAX_EPOCH = 2**53
MAX_BODY_BYTES = 4096
READ_DEADLINE_S = 10.0
"""A reader of the state stream that takes nothing for so long is cut off; it has missed forty beats."""
AUDIT_DEADLINE_S = 5.0
"""An audit waits for the running step, and for nothing else."""


def json_response(body: Any, status: int = 200) -> web.Response:
    """An answer in JSON."""
    return web.Response(body=encode_json(body), status=status, content_type="application/json")


async def state(request: web.Request) -> web.StreamResponse:
    """`GET /instance`."""
    return json_response(request.app[ENGINE].state())


async def events(request: web.Request) -> web.StreamResponse:
    """`GET /instance/events`: NDJSON, the full state first; ends for a reader that falls behind."""
    hub = request.app[HUB]
    hub.check_room()
    response = web.StreamResponse(headers={"content-type": "application/x-ndjson", "cache-control": "no-cache"})
    await response.prepare(request)
    lines = hub.lines()
    try:
        async for line in lines:
            await write_in_time(request, response, line, READ_DEADLINE_S)
    finally:
        await lines.aclose()  # type: ignore[attr-defined]
    await response.write_eof()
    return response


async def audit(request: web.Request) -> web.StreamResponse:
    """`GET /instance/audit`: the core checks that no block is lost or held twice; for operators and tests."""
    engine = request.app[ENGINE]
    if engine.ready is None:
        raise NotReady("This instance is still loading.", retry_after_ms=1000)
    try:
        async with asyncio.timeout(AUDIT_DEADLINE_S):
            with engine.table.open([Audit(engine.new_id())]) as call:
                found = await call.next()
    except TimeoutError:
        raise DeadlineExceeded("The core does not answer.") from None
    if not isinstance(found, AuditResult):
        raise Internal("The core gave an answer that nobody asked for.")
    server = {"calls": engine.table.calls, "open": len(engine.table), "leases": engine.handover.leases}
    return json_response({"faults": found.faults, "stats": found.stats, "server": server})


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
