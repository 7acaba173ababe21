"""What crosses a process boundary in Triptych: roles, messages, errors, hashing, discovery.

Operator, router and engine never import each other; they meet here. Everything in this package is
a frozen value or a pure function, except the discovery backends in `registry`.
"""

__version__ = "0.1.0"

WIRE_VERSION = 1
"""Version of every message and record of this package; peers one minor release apart still talk."""
