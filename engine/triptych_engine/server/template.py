"""Chat templates as Hugging Face models bring them, in a sandbox: no attribute walks, no mutation, a time cap.

A template comes with the model's files and is code of a stranger; one in a request is refused elsewhere.
"""

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from triptych_contract.errors import BadRequest, Internal
from triptych_engine.server.log import log_exception

MAX_RENDERED_CHARACTERS = 64 * 1024 * 1024
MAX_TICKS = 1_000_000
"""Pieces of work of one rendering, about a second of them; the longest honest conversations take a tenth."""
MAX_SIZE = 1_000_000


class _Raised(jinja2.TemplateError):
    """The template refuses the conversation."""


class _Exhausted(Exception):
    """The template takes too long."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        """Take the body as it stands."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja source.
        special_tokens: `bos_token`, `eos_token` and the like, by name.
        now: The local time, for `strftime_now`.

    Raises:
        jinja2.TemplateError: The source is no template.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self._environment = environment
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(self, messages: list[dict[str, Any]], variables: Mapping[str, object] | None = None) -> str:
        """The prompt of a conversation, ready for the assistant's answer.

        Raises:
            BadRequest: The template refuses the conversation.
            Internal: It is at fault itself, or takes too long.
        """
        self._environment.start()
        values = {**(variables or {}), **self._special_tokens}
        try:
            pieces: list[str] = []
            size = 0
            for piece in self._template.generate(messages=messages, add_generation_prompt=True, **values):
                self._environment.tick()
                size += len(piece)
                if size > MAX_RENDERED_CHARACTERS:
                    raise _Exhausted
                pieces.append(piece)
            return "".join(pieces)
        except _Raised:
            raise BadRequest("The model's chat template refuses these messages.", param="messages") from None
        except _Exhausted:
            log_exception("template-too-long")
            raise BadRequest("The model's chat template takes too long for these messages.", param="messages") from None
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError):
            log_exception("template-failed")
            raise BadRequest("The model's chat template cannot render these messages.", param="messages") from None
        except (ArithmeticError, LookupError, MemoryError):
            log_exception("template-failed")
            raise Internal("The model's chat template is at fault.") from None


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, which also counts work: every turn of a loop, every call and every access."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self._ticks = 0
        for name in ("center", "format", "indent", "wordwrap"):
            del self.filters[name]
        self.globals["__tick__"] = _nothing

    def start(self) -> None:
        """A rendering begins."""
        self._ticks = 0

    def tick(self) -> None:
        """One more piece of work; the bound stands for time, and is the same on every machine."""
        self._ticks += 1
        if self._ticks > MAX_TICKS:
            raise _Exhausted

    def _generate(self, source: jinja2.nodes.Template, *arguments: Any, **named: Any) -> str:
        """Let each turn of each loop begin with a call, which is counted."""
        for loop in source.find_all(jinja2.nodes.For):
            name = jinja2.nodes.Name("__tick__", "load", lineno=loop.lineno)
            call = jinja2.nodes.Call(name, [], [], None, None, lineno=loop.lineno)
            loop.body.insert(0, jinja2.nodes.ExprStmt(call, lineno=loop.lineno))
        return super()._generate(source, *arguments, **named)

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        """Count, and refuse sizes that no conversation needs."""
        self.tick()
        if any(isinstance(argument, int) and argument > MAX_SIZE for argument in arguments):
            raise _Exhausted
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse products and formats that grow without bound."""
        if operator == "*" and _size(left) * _size(right) > MAX_SIZE:
            raise _Exhausted
        if operator == "**" and not (abs(left) <= MAX_SIZE and abs(right) <= 8):
            raise _Exhausted
        if operator == "%" and isinstance(left, str):
            raise _Exhausted
        return super().call_binop(context, operator, left, right)

    def getattr(self, value: Any, attribute: str) -> Any:
        """Count."""
        self.tick()
        return super().getattr(value, attribute)

    def getitem(self, value: Any, argument: Any) -> Any:
        """Count."""
        self.tick()
        return super().getitem(value, argument)


def _nothing() -> str:
    return ""


def _size(value: Any) -> int:
    """Length of a sequence, size of a number."""
    return len(value) if isinstance(value, str | bytes | list | tuple) else int(min(abs(value), MAX_SIZE + 1))


def _raise(message: str) -> NoReturn:
    raise _Raised(message)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **named: Any) -> str:
    """As transformers has it: no HTML escapes, and readable letters."""
    separators, sort_keys = named.get("separators"), bool(named.get("sort_keys", False))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
