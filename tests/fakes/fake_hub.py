"""A hub on loopback that speaks what huggingface_hub asks: repository info, tree, and files with byte ranges.

It can cut a file's connection after some bytes, demand a token, and hide repositories, so that resume, privacy and
outages are tested without a network.
"""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

COMMIT = "c" * 40


@dataclass
class FakeHub:
    """What the hub serves, and what it was asked.

    Attributes:
        files: Content by path, of the one repository.
        repo: Its name.
        token: Demanded as Bearer where it is set.
        cut_after: By path, bytes after which the first answer is cut.
        ranges: Range headers that were asked for.
        asked: Paths of files that were sent, or begun.
    """

    files: dict[str, bytes]
    repo: str = "team/model"
    token: str = ""
    cut_after: dict[str, int] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def _refusal(self, request: web.Request) -> web.Response | None:
        repo = f"{request.match_info['owner']}/{request.match_info['name']}"
        known = repo == self.repo
        allowed = not self.token or request.headers.get("authorization") == f"Bearer {self.token}"
        if known and allowed:
            return None
        headers = {"x-error-code": "RepoNotFound", "x-error-message": "Repository not found"}
        return web.Response(status=404 if known or not self.token else 401, headers=headers)

    async def info(self, request: web.Request) -> web.Response:
        revision = request.match_info.get("revision", "main")
        if refusal := self._refusal(request):
            return refusal
        if revision not in ("main", "v1", COMMIT):
            return web.Response(status=404, headers={"x-error-code": "RevisionNotFound"})
        siblings = [{"rfilename": path} for path in self.files]
        return web.json_response({"id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": siblings})

    async def tree(self, request: web.Request) -> web.Response:
        if refusal := self._refusal(request):
            return refusal
        return web.json_response(
            [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}  # noqa: S324
                for path, data in self.files.items()
            ]
        )

    async def file(self, request: web.Request) -> web.StreamResponse:
        if refusal := self._refusal(request):
            return refusal
        path = request.match_info["path"]
        data = self.files.get(path)
        if data is None:
            return web.Response(status=404, headers={"x-error-code": "EntryNotFound"})
        headers = {"etag": f'"{hashlib.sha1(data).hexdigest()}"', "x-repo-commit": COMMIT}  # noqa: S324
        if request.method == "HEAD":
            return web.Response(headers={**headers, "content-length": str(len(data))})
        return await self._send(request, path, data, headers)

    async def _send(self, request: web.Request, path: str, data: bytes, headers: dict[str, str]) -> web.StreamResponse:
        self.asked.append(path)
        wanted = request.headers.get("range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted:
            self.ranges.append(wanted)
            headers = {**headers, "content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        response = web.StreamResponse(status=206 if wanted else 200, headers=headers)
        response.content_length = len(data) - start
        await response.prepare(request)
        cut = self.cut_after.pop(path, None)
        await response.write(data[start : len(data) if cut is None else start + cut])
        if cut is not None and request.transport is not None:
            request.transport.close()
        return response

    def app(self) -> web.Application:
        app = web.Application()
        repo = "/api/models/{owner}/{name}"
        app.router.add_get(repo, self.info)
        app.router.add_get(repo + "/revision/{revision}", self.info)
        app.router.add_get(repo + "/tree/{revision}", self.tree)
        app.router.add_get("/{owner}/{name}/resolve/{revision}/{path:.+}", self.file)
        return app

    @contextmanager
    def running(self) -> Iterator["FakeHub"]:
        """Serve from a thread: the hub library is synchronous."""
        loop = asyncio.new_event_loop()
        runner = web.AppRunner(self.app())
        loop.run_until_complete(runner.setup())
        loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout=10)
            loop.close()
