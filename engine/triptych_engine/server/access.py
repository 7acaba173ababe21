"""Who may call which route. Nothing is open unless its route says so; an unknown path is closed as well."""

import hashlib
import hmac
from enum import StrEnum

from triptych_contract.errors import Unauthorized


class Access(StrEnum):
    """Who may call a route.

    PUBLIC: anybody. CLIENT: anybody on a loopback bind, else only with the service token. SERVICE: only with
    the service token, on every bind.
    """

    PUBLIC = "public"
    CLIENT = "client"
    SERVICE = "service"


class Guard:
    """Checks callers.

    Args:
        token: Service token; empty = nobody can show one.
        loopback: Only this machine reaches the program.
        insecure: No token is needed for anything; on loopback only.
    """

    def __init__(self, *, token: str, loopback: bool, insecure: bool) -> None:
        self._digest = _digest(token) if token else None
        self._loopback = loopback
        self._insecure = insecure and loopback

    def trusts(self, authorization: str | None) -> bool:
        """True if the caller shows the service token."""
        if self._insecure:
            return True
        scheme, _, shown = (authorization or "").partition(" ")
        if self._digest is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(_digest(shown.strip()), self._digest)

    def check(self, access: Access, authorization: str | None) -> bool:
        """Let the caller in, and say whether it is trusted.

        Raises:
            Unauthorized: The route needs a token that the caller does not show.
        """
        trusted = self.trusts(authorization)
        anybody = access is Access.PUBLIC or (access is Access.CLIENT and self._loopback)
        if not (trusted or anybody):
            raise Unauthorized("This needs the service token as a Bearer token.")
        return trusted


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
