"""Opens image files from anywhere: size before pixels, a few usual formats, and the way up that the camera says."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Final

import PIL.Image
import PIL.ImageOps

from cifar100_tk.errors import DataError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP")
"""Usual formats only: each further decoder is a further way in for a malformed file."""
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""What the names of such files end in, in lower case."""
MAX_BYTES: Final = 50_000_000
"""The largest file that is read."""
MAX_PIXELS: Final = 25_000_000
"""The largest image that is decoded, which takes up to 0.4 GB."""
MAX_JPEG_PIXELS: Final = 50_000_000
"""The same for a JPEG, as cameras write them, which is decoded at a lower resolution."""
MAX_RATIO: Final = 50
"""How many times longer than the other a side may be: resized by its short side, a thread of pixels becomes huge."""
_ENOUGH: Final = 1024
"""A JPEG with more pixels than this on both sides is decoded at a half, a quarter or an eighth, never below it."""


def open_image(source: bytes | Path, name: str | None = None) -> PIL.Image.Image:
    """Decode an image that nobody vouches for. Returns it in RGB, its first frame if it moves, the way up it was taken.

    source: the content of a file, or its path. name: what messages call it; the path, if there is one. What is
    transparent lies on white; 16 bits a channel become 8; a colour profile is not looked at. Raises DataError for what
    is too large, of another format, damaged or no file; the size is checked before a pixel is decoded.
    """
    name = name or (str(source) if isinstance(source, Path) else "the image")
    content = _read(source, name) if isinstance(source, Path) else source
    if len(content) > MAX_BYTES:
        raise DataError(f"{name} has {len(content):,} bytes; an image may have {MAX_BYTES:,}. Make it smaller.")
    try:
        with _one_at_a_time, _unheard(), PIL.Image.open(BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            most = MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS
            if width * height <= most and max(width, height) <= MAX_RATIO * min(width, height):
                image.draft(None, (_ENOUGH, _ENOUGH))
                return _upright_rgb(image)
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image that can be read; use {', '.join(FORMATS)}.") from error
    except PIL.Image.DecompressionBombError as error:
        raise DataError(f"{name} has too many pixels; an image may have {MAX_PIXELS:,}. Make it smaller.") from error
    except Exception as error:  # A decoder fed with broken bytes raises anything, SyntaxError included.
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{name} is damaged and cannot be decoded ({reason}).") from error
    if width * height > most:
        raise DataError(f"{name} is {width}x{height}; a {image.format} may have {most:,} pixels. Make it smaller.")
    raise DataError(f"{name} is {width}x{height}; no side may be more than {MAX_RATIO} times the other. Cut it.")


# Several uploads at once then need the memory of one.
_one_at_a_time: Final = threading.Lock()


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep to ourselves what Pillow warns of, such as a large size or odd notes of the camera: it is dealt with here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(path: Path, name: str) -> bytes:
    """Read a file, but no more than can be used, and nothing that is not a plain file: a pipe would never end."""
    try:
        if not path.is_file():
            raise DataError(f"{name} is not a file." if path.exists() else f"{name} does not exist.")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror or error}).") from error


def _upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Decode, turn as the camera was held, and convert to RGB on white."""
    image.load()
    with suppress(Exception):  # A camera's notes may be damaged where its image is not.
        PIL.ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        clear = image if image.mode == "RGBA" else image.convert("RGBA")
        image = PIL.Image.new("RGB", clear.size, "white")
        image.paste(clear, mask=clear)
    return image if image.mode == "RGB" else image.convert("RGB")
