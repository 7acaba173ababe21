"""Typed places of the HTTP application and its requests."""

from aiohttp import web

from triptych_engine.server.access import Access, Guard
from triptych_engine.server.engine import Engine
from triptych_engine.server.events import EventHub

ENGINE = web.AppKey("engine", Engine)
HUB = web.AppKey("hub", EventHub)
GUARD = web.AppKey("guard", Guard)
ACCESS = web.AppKey("access", dict[tuple[str, str], Access])
REQUEST_ID = web.RequestKey("triptych_request_id", str)
TRUSTED = web.RequestKey("triptych_trusted", bool)
