"""Who may call which path: everything is closed unless it is listed here.

With API keys each call needs one; `/metrics` and `/version` also open to the service token, for scrapers. Without
keys the router is bound to loopback, and whoever reaches it may call.
"""

from triptych_contract.errors import Unauthorized
from triptych_router.admission.keys import ApiKeys, is_service_token

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz"})
SERVICE_PATHS = frozenset({"/metrics", "/version"})


def tenant_of(path: str, authorization: str, *, keys: ApiKeys | None, token: str) -> str:
    """The tenant that calls; empty where none is needed.

    Raises:
        Unauthorized: A key is needed, and this is none.
    """
    if keys is None or path in OPEN_PATHS:
        return ""
    try:
        return keys.tenant(authorization)
    except Unauthorized:
        if path in SERVICE_PATHS and is_service_token(authorization, token):
            return ""
        raise
