"""Prompts as the core takes them: token ids, and where images stand in them."""

from dataclasses import dataclass
from typing import Any

from triptych_contract.errors import BadRequest
from triptych_contract.hashing import MediaSpan, media_digest
from triptych_engine.server.card import ModelCard
from triptych_engine.server.media import Image, read_images
from triptych_engine.server.parse import ChatRequest, CompletionRequest, Message


@dataclass(frozen=True, slots=True)
class Prepared:
    """One prompt.

    Attributes:
        token_ids: With the placeholders of all images in full length.
        media: Where each image stands.
        images: The images, in the same order.
    """

    token_ids: list[int]
    media: tuple[MediaSpan, ...] = ()
    images: tuple[Image, ...] = ()


async def completion_prompts(
    request: CompletionRequest, card: ModelCard, *, max_context: int = 0
) -> tuple[Prepared, ...]:
    """The prompts of a completion.

    Raises:
        BadRequest: An image placeholder, since there is no image.
        ContextLengthExceeded: A text that is far too long to be encoded.
    """
    found = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            ids = await card.tokenizer.encode(
                prompt, add_special_tokens=request.add_special_tokens, max_tokens=max_context
            )
        else:
            ids = list(prompt)
        if card.image_token is not None and card.image_token in ids:
            raise BadRequest("prompt has an image's placeholder, but no image.", param="prompt")
        found.append(Prepared(ids))
    return tuple(found)


async def chat_prompt(request: ChatRequest, card: ModelCard, *, tenant: str, max_context: int = 0) -> Prepared:
    """The prompt of a conversation.

    Raises:
        BadRequest: No chat template, images that the model does not take, or a template that refuses.
        ContextLengthExceeded: A text that is far too long to be encoded.
    """
    if card.template is None:
        raise BadRequest("This model has no chat template; use /v1/completions.", param="messages")
    images = _images(request.messages, card)
    marker = card.tokenizer.protect(_texts(list(request.messages)))
    messages = [_marked(message, card, marker) for message in request.messages]
    text = card.template.render(messages, request.template_variables)
    ids = await card.tokenizer.encode_chat(
        text, marker=marker, add_special_tokens=request.add_special_tokens, max_tokens=max_context
    )
    return _expand(ids, images, card, tenant)


def _images(messages: tuple[Message, ...], card: ModelCard) -> list[Image]:
    urls = [
        part["url"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image"
    ]
    if urls and card.image_token is None:
        raise BadRequest("This model takes no images.", param="messages")
    return read_images(urls)


def _texts(value: Any) -> list[str]:
    """All strings in what the client wrote."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, dict):
        return [text for key, item in value.items() if key != "url" for text in (*_texts(key), *_texts(item))]
    return []


def _marked(value: Any, card: ModelCard, marker: str) -> Any:
    """The same with special tokens protected; the bytes of images are not for the template."""
    if isinstance(value, str):
        return card.tokenizer.mark(value, marker)
    if isinstance(value, list):
        return [_marked(item, card, marker) for item in value]
    if isinstance(value, dict):
        return {
            _marked(key, card, marker): _marked(item, card, marker)
            for key, item in value.items()
            if not (key == "url" and value.get("type") == "image")
        }
    return value


def _expand(ids: list[int], images: list[Image], card: ModelCard, tenant: str) -> Prepared:
    """Let each placeholder take the tokens of its image."""
    if not images:
        return Prepared(ids)
    if ids.count(card.image_token or 0) != len(images):
        raise BadRequest("The model's chat template does not place each image once.", param="messages")
    expanded: list[int] = []
    spans: list[MediaSpan] = []
    left = iter(images)
    for token in ids:
        if token != card.image_token:
            expanded.append(token)
            continue
        image = next(left)
        digest = media_digest(image.data, size=image.size, mode=image.mode, tenant=tenant)
        spans.append(MediaSpan(digest, len(expanded), card.image_tokens))
        expanded += [token] * card.image_tokens
    return Prepared(expanded, tuple(spans), tuple(images))
