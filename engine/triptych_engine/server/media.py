"""Images in chat content: `data:` URIs only, their size read from the header, nothing is decoded here."""

import base64
import binascii
import re
import struct
from dataclasses import dataclass

from triptych_contract.errors import BadRequest, PayloadTooLarge, UnsupportedMedia

MAX_IMAGES = 16
MAX_IMAGE_BYTES = 16 * 1024 * 1024
MAX_PIXELS = 64 * 1024 * 1024
MIN_SIDE = 2
_DATA_URI = re.compile(r"data:(image/[a-z0-9.+-]{1,32});base64,")


@dataclass(frozen=True, slots=True)
class Image:
    """One image: its bytes, its size in pixels, and the format as its mode."""

    data: bytes
    size: tuple[int, int]
    mode: str


def read_images(urls: list[str]) -> list[Image]:
    """Check and read images.

    Raises:
        BadRequest: Another kind of URL, too many images, broken base64 or header, too many pixels.
        UnsupportedMedia: Another format than PNG, JPEG or WebP.
        PayloadTooLarge: An image over the limit.
    """
    if len(urls) > MAX_IMAGES:
        raise BadRequest(f"A request takes at most {MAX_IMAGES} images.", param="messages")
    return [_read(url) for url in urls]


def _read(url: str) -> Image:
    head = _DATA_URI.match(url)
    if head is None:
        raise BadRequest(
            "An image must be a data: URI with base64, such as data:image/png;base64,…; nothing is fetched from URLs.",
            param="messages",
        )
    if (len(url) - head.end()) * 3 // 4 > MAX_IMAGE_BYTES:
        raise PayloadTooLarge(f"An image takes at most {MAX_IMAGE_BYTES} bytes.", param="messages")
    try:
        data = base64.b64decode(url[head.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise BadRequest("An image is not valid base64.", param="messages") from None
    mode, size = image_size(data)
    width, height = size
    if width < MIN_SIDE or height < MIN_SIDE or width * height > MAX_PIXELS:
        raise BadRequest(f"An image of {width} × {height} pixels is not taken.", param="messages")
    return Image(data, size, mode)


def image_size(data: bytes) -> tuple[str, tuple[int, int]]:
    """Format and size in pixels, from the header alone; raises as `read_images` does."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return "png", _png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return "jpeg", _jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return "webp", _webp(data)
    except (struct.error, IndexError):
        raise BadRequest("An image is cut off in its header.", param="messages") from None
    raise UnsupportedMedia("An image must be PNG, JPEG or WebP.", param="messages")


def _png(data: bytes) -> tuple[int, int]:
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13:
        raise BadRequest("A PNG image has no header.", param="messages")
    return width, height


def _jpeg(data: bytes) -> tuple[int, int]:
    """Walk from marker to marker up to the frame header."""
    at = 2
    while True:
        marker, kind, length = struct.unpack_from(">BBH", data, at)
        if marker != 0xFF or length < 2:
            raise BadRequest("A JPEG image has a broken header.", param="messages")
        if kind in {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + length


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        if data[20] & 0x02:
            raise BadRequest("An animated image is not taken.", param="messages")
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise BadRequest("A WebP image has a broken header.", param="messages")
