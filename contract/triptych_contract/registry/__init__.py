"""Discovery: where the instances are. Backends: `local` (a directory of records) and `memory`.

Every backend speaks in whole sets, so that a missed change can never leave a reader with a wrong view for
longer than one watch interval.
"""

from triptych_contract.registry.base import Registration, Registry
from triptych_contract.registry.local import LocalRegistry
from triptych_contract.registry.memory import MemoryRegistry

__all__ = ["LocalRegistry", "MemoryRegistry", "Registration", "Registry"]
