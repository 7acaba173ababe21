"""An LLMService file becomes a typed, frozen spec, or one message with all of its faults.

text → document (values and where they stand) → schema → rules → support → LLMService
"""

from triptych_operator.spec.faults import BadSpec, Fault
from triptych_operator.spec.load import Loaded, load_file, load_text
from triptych_operator.spec.types import LLMService

__all__ = ["BadSpec", "Fault", "LLMService", "Loaded", "load_file", "load_text"]
