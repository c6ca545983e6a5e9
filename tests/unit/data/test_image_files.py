"""Images from anywhere open as people see them, and hostile ones end in a sentence before they cost anything."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cifar100_tk.data.image_files import FORMATS, MAX_BYTES, SUFFIXES, open_image
from cifar100_tk.errors import DataError


def encoded(image: PIL.Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def quarters(width: int = 40, height: int = 20) -> PIL.Image.Image:
    """Red, green, blue and white quarters."""
    image = PIL.Image.new("RGB", (width, height), "white")
    w, h = width // 2, height // 2
    for place, colour in (((0, 0), "red"), ((w, 0), "lime"), ((0, h), "blue")):
        image.paste(PIL.Image.new("RGB", (w, h), colour), place)
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no more than it must."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_opens_from_bytes_and_from_a_file(tmp_path: Path, format: str) -> None:
    content = encoded(quarters(), format, **({"lossless": True} if format == "WEBP" else {}))
    path = tmp_path / f"image{SUFFIXES[FORMATS.index(format)]}"
    path.write_bytes(content)
    for image in (open_image(content), open_image(path)):
        assert image.mode == "RGB" and image.size == (40, 20)
        assert np.abs(np.array(image.getpixel((2, 2))) - (255, 0, 0)).max() < 5


@pytest.mark.parametrize(
    ("orientation", "corners"),
    [(1, ("red", "lime")), (2, ("lime", "red")), (3, ("white", "blue")), (6, ("blue", "red")), (8, ("lime", "white"))],
)
def test_a_camera_held_another_way_is_turned_back(orientation: int, corners: tuple[str, str]) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(quarters(), "PNG", exif=exif))
    assert image.size == ((20, 40) if orientation >= 5 else (40, 20))
    colours = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    found = image.getpixel((0, 0)), image.getpixel((image.width - 1, 0))
    assert found == tuple(colours[name] for name in corners)


def test_damaged_notes_of_the_camera_do_not_cost_the_image() -> None:
    image = open_image(encoded(quarters(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"))
    assert image.size == (40, 20)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PIL.Image.new("L", (4, 4), 200), (200, 200, 200)),
        (PIL.Image.new("LA", (4, 4), (200, 255)), (200, 200, 200)),
        (PIL.Image.new("1", (4, 4), 1), (255, 255, 255)),
        (PIL.Image.new("RGB", (4, 4), (10, 20, 30)).convert("P", palette=PIL.Image.Palette.ADAPTIVE), (10, 20, 30)),
        # On white: 10 * 0.4 + 255 * 0.6 = 157; what is hidden does not show.
        (PIL.Image.new("RGBA", (4, 4), (10, 20, 30, 102)), (157, 161, 165)),
        (PIL.Image.new("RGBA", (4, 4), (10, 20, 30, 0)), (255, 255, 255)),
        (PIL.Image.new("I;16", (4, 4), 200 * 256 + 77), (200, 200, 200)),
    ],
    ids=lambda value: value.mode if isinstance(value, PIL.Image.Image) else "",
)
def test_every_kind_of_pixel_becomes_what_is_seen(image: PIL.Image.Image, expected: tuple[int, ...]) -> None:
    assert open_image(encoded(image)).getpixel((1, 1)) == expected


def test_of_what_moves_the_first_frame_counts() -> None:
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert open_image(content).getpixel((0, 0)) == (255, 0, 0)


def test_a_camera_s_jpeg_is_decoded_no_larger_than_useful() -> None:
    content = encoded(quarters(6000, 4000), "JPEG")
    image = open_image(content)
    assert image.size == (3000, 2000)  # A quarter of it would be below 1024.
    assert image.getpixel((10, 10)) == pytest.approx((254, 0, 0), abs=2)
    assert open_image(encoded(quarters(1000, 600), "JPEG")).size == (1000, 600)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the image is not an image in a supported format; use PNG, JPEG, WEBP, BMP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image in a supported format"),
        (encoded(quarters(), "GIF"), "is not an image in a supported format"),
        (encoded(quarters(), "TIFF"), "is not an image in a supported format"),
        (encoded(quarters(), "PDF"), "is not an image in a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not an image in a supported format"),
        (encoded(quarters(400, 400))[:300], r"the image is damaged and cannot be decoded \(.+\)"),
        (encoded(quarters(400, 400), "JPEG")[:900], r"is damaged and cannot be decoded \(.+\)"),
        (png_header(5001, 5000), "is 5001x5000; a PNG may have at most 25,000,000 pixels. Make it smaller"),
        (png_header(12_000, 12_000), "is 12000x12000; a PNG may have at most 25,000,000 pixels"),
        (png_header(51, 1), "is 51x1; no side may be more than 50 times the other. Crop it"),
        (png_header(1, 25_000_000), "is 1x25000000; no side may be more than 50 times the other"),
        (png_header(2**31 - 1, 2**31 - 1), "has too many pixels; an image may have at most 25,000,000"),
        (png_header(10, 0), "is (damaged|not an image)"),
        (b"\0" * (MAX_BYTES + 1), "has 50,000,001 bytes; an image may have at most 50,000,000"),
    ],
)
def test_what_is_no_small_whole_image_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        open_image(content)
    assert "\n" not in str(error.value)


def test_a_bomb_is_refused_before_its_pixels_are_made() -> None:
    bomb = png_header(5001, 5000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="is 5001x5000"):
            open_image(bomb, "bomb.png")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.png does not exist"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="is not a file"):
        open_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")  # Reading it would wait forever.
    with pytest.raises(DataError, match=r"pipe.png is not a file"):
        open_image(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="/dev/zero is not a file"):
        open_image(Path("/dev/zero"))
    sparse = tmp_path / "huge.png"
    with sparse.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(DataError, match=r"huge.png has 50,000,001 bytes"):
        open_image(sparse)
