"""Asks instances and the router on loopback, each call with a deadline; no answer is an answer too."""

import asyncio
from collections.abc import Mapping

import aiohttp

from triptych_contract.codec import decode_json, encode_json
from triptych_contract.errors import TriptychError, parse_error
from triptych_contract.instance import InstanceRecord, InstanceState, RoleRequest
from triptych_contract.roles import Assignment

ASK_S = 0.5
"""Deadline of one question: `status` tells the truth within a second, and loopback answers in a millisecond."""
ANSWER_BYTES = 1 << 20


class InstanceRefused(Exception):
    """The instance answered, with an error; the message is its own."""


class InstanceClient:
    """Questions to the instances of one service.

    Args:
        session: Shared connections.
        token: The service token.
        timeout_s: Deadline of each call.
    """

    def __init__(self, session: aiohttp.ClientSession, *, token: str, timeout_s: float = ASK_S) -> None:
        self._session = session
        self._headers: Mapping[str, str] = {"authorization": f"Bearer {token}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def state(self, record: InstanceRecord) -> InstanceState | None:
        """What the instance says of itself; None without a sound answer in time, or from another instance."""
        try:
            body = await self._call("GET", record, "/instance")
            state = decode_json(body, InstanceState)
        except (aiohttp.ClientError, TimeoutError, OSError, TriptychError, InstanceRefused):
            return None
        return state if (state.id, state.incarnation) == (record.id, record.incarnation) else None

    async def states(self, records: tuple[InstanceRecord, ...]) -> dict[str, InstanceState | None]:
        """All states by instance id, asked at the same time."""
        answers = await asyncio.gather(*(self.state(record) for record in records))
        return {record.id: answer for record, answer in zip(records, answers, strict=True)}

    async def assign(self, record: InstanceRecord, wanted: Assignment) -> InstanceState:
        """Give a role.

        Raises:
            InstanceRefused: It answered with an error.
            OSError, TimeoutError, aiohttp.ClientError: It did not answer; the assignment may stand or not.
        """
        body = await self._call("POST", record, "/instance/role", encode_json(RoleRequest(wanted.role, wanted.epoch)))
        try:
            return decode_json(body, InstanceState)
        except TriptychError as error:
            raise InstanceRefused(error.message) from None

    async def ready(self, url: str) -> bool | None:
        """Whether the router at the base URL has a view and a route; None if it does not answer in time."""
        try:
            async with self._session.get(f"{url}/readyz", timeout=self._timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def _call(self, method: str, record: InstanceRecord, path: str, body: bytes | None = None) -> bytes:
        url = f"http://{record.host}:{record.http_port}{path}"
        headers = dict(self._headers) if body is None else {**self._headers, "content-type": "application/json"}
        async with self._session.request(
            method, url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
        ) as answer:
            data = await answer.content.read(ANSWER_BYTES)
            if answer.status != 200:
                error = parse_error(data)
                raise InstanceRefused(error.message if error else f"status {answer.status}")
            return data
