"""What a body may be: JSON, and not compressed, so that no small body becomes a large one."""

from aiohttp import web

from triptych_contract.errors import UnsupportedMedia


def check_media(request: web.Request) -> None:
    """Raise `UnsupportedMedia` for another content type, where one is given, or a content encoding."""
    if "content-type" in request.headers and request.content_type != "application/json":
        raise UnsupportedMedia("The content type must be application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Compressed bodies are not taken.")
