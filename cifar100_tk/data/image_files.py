"""Opens untrusted image files: checks the size before decoding, allows a few common formats, applies the EXIF orientation."""

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
"""Common formats only: each further decoder is another attack surface for malformed files."""
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""The file name extensions of these formats, in lower case."""
MAX_BYTES: Final = 50_000_000
"""The largest file that is read, in bytes."""
MAX_PIXELS: Final = 25_000_000
"""The largest image that is decoded, in pixels; decoding takes up to 0.4 GB."""
MAX_JPEG_PIXELS: Final = 50_000_000
"""The same for a JPEG, which is decoded at a lower resolution if large."""
MAX_RATIO: Final = 50
"""The largest aspect ratio: resizing by the short side would make a very thin image huge."""
_ENOUGH: Final = 1024
"""A JPEG with more pixels than this on both sides is decoded at 1/2, 1/4 or 1/8, but never below this."""


def open_image(source: bytes | Path, name: str | None = None) -> PIL.Image.Image:
    """Decode an untrusted image. Returns RGB, the first frame of an animation, in its EXIF orientation.

    source: the content of a file, or its path. name: its name in messages, by default the path. Transparent images are
    put on white; 16 bits per channel become 8; color profiles are ignored. Raises DataError for a file that is too
    large, damaged, missing or of another format; the size is checked before a pixel is decoded.
    """
    name = name or (str(source) if isinstance(source, Path) else "the image")
    content = _read(source, name) if isinstance(source, Path) else source
    if len(content) > MAX_BYTES:
        raise DataError(f"{name} has {len(content):,} bytes; an image may have at most {MAX_BYTES:,}. Make it smaller.")
    try:
        with _one_at_a_time, _unheard(), PIL.Image.open(BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            most = MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS
            if width * height <= most and max(width, height) <= MAX_RATIO * min(width, height):
                image.draft(None, (_ENOUGH, _ENOUGH))
                return _upright_rgb(image)
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image in a supported format; use {', '.join(FORMATS)}.") from error
    except PIL.Image.DecompressionBombError as error:
        raise DataError(
            f"{name} has too many pixels; an image may have at most {MAX_PIXELS:,}. Make it smaller."
        ) from error
    except Exception as error:  # On broken bytes a decoder can raise anything, including SyntaxError.
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{name} is damaged and cannot be decoded ({reason}).") from error
    if width * height > most:
        raise DataError(
            f"{name} is {width}x{height}; a {image.format} may have at most {most:,} pixels. Make it smaller."
        )
    raise DataError(f"{name} is {width}x{height}; no side may be more than {MAX_RATIO} times the other. Crop it.")


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a Pillow image as `open_image` returns a file: RGB, on white, in its EXIF orientation. The input is not modified."""
    try:
        return _upright_rgb(image.copy())
    except Exception as error:  # The file behind an image that is not decoded yet may be damaged.
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"the image is damaged and cannot be decoded ({reason}).") from error


# Several simultaneous uploads then need the memory of one.
_one_at_a_time: Final = threading.Lock()


@contextmanager
def _unheard() -> Iterator[None]:
    """Suppress Pillow's warnings, such as a large size or odd EXIF data: both are handled here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(path: Path, name: str) -> bytes:
    """Read a regular file, but no more than the limit; anything else, such as a pipe, might never end."""
    try:
        if not path.is_file():
            raise DataError(f"{name} is not a file." if path.exists() else f"{name} does not exist.")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror or error}).") from error


def _upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Decode, apply the EXIF orientation, and convert to RGB on white."""
    image.load()
    with suppress(Exception):  # EXIF data may be damaged where the image is not.
        PIL.ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would clip at 255.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        clear = image if image.mode == "RGBA" else image.convert("RGBA")
        image = PIL.Image.new("RGB", clear.size, "white")
        image.paste(clear, mask=clear)
    return image if image.mode == "RGB" else image.convert("RGB")
