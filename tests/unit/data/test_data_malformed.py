"""Data files that are not what they claim to be: a sentence that names the file, in little memory and time, and never a crash."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import Copy, png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import PROGRAMS

MEGABYTES, SECONDS = 60, 10
"""What reading any of these files may take."""


class Reader:
    """Opens sources in processes of their own, which a segfault or the limit of time may end."""

    def __init__(self, cache: Path) -> None:
        environment = os.environ | {"CIFAR100_TK_CACHE": str(cache)}
        command = [sys.executable, str(PROGRAMS / "open_sources.py"), str(SECONDS)]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, env=environment, text=True)

    def opened(self, how: str, source: Path) -> tuple[int, str, float]:
        """Return the exit code and the sentence of a source, 0 and "" for a good one, and the megabytes it took."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([how, str(source)]) + "\n")
        self.process.stdin.flush()
        code, message, megabytes = json.loads(self.process.stdout.readline())
        return code, message, megabytes


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    started = Reader(tmp_path_factory.mktemp("cache"))
    yield started
    started.process.communicate()
    assert started.process.returncode == 0


BINARY, STRUCT = pa.binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
GOOD = Copy(100, seed=8)
GOOD.images[:90] = GOOD.images[:90, :1, :1]  # Of one colour: a small file, of which more is structure.
CELLS = [cell["bytes"] for cell in GOOD.cells()]


def table(**columns: Any) -> pa.Table:
    """A good table, or one with other columns; None leaves one out."""
    cells = [{"bytes": cell, "path": None} for cell in CELLS]
    good = {"img": pa.array(cells, STRUCT), "fine_label": GOOD.fine, "coarse_label": GOOD.coarse}
    return pa.table({name: column for name, column in (good | columns).items() if column is not None})


def parquet(content: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(content, buffer, **options)
    return buffer.getvalue()


def arrow(content: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, content.schema) as stream:
        stream.write_table(content)
    return buffer.getvalue()


def images(cells: list[Any], kind: pa.DataType = BINARY) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(cells, kind)], names=["bytes"])


def repeated(content: bytes, num_rows: int) -> pa.Table:
    """A table with one image in every row, which a parquet file holds once."""
    cells = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array([content]))
    labels = np.arange(num_rows) % 100
    return pa.table(
        {
            "img": pa.StructArray.from_arrays([cells], names=["bytes"]),
            "fine_label": labels,
            "coarse_label": np.asarray(GOOD.coarse[np.argsort(GOOD.fine)])[labels],
        }
    )


def footer(length: int) -> bytes:
    return b"PAR1" + bytes(100) + struct.pack("<I", length) + b"PAR1"


def names(fine: Any) -> bytes:
    """A good file whose class names are these."""
    features = {"fine_label": {"names": fine}, "coarse_label": {"names": [str(number) for number in range(20)]}}
    return parquet(table().replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}))


PARQUET: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "its magic number only": lambda: b"PAR1",
    "text": lambda: b"img,fine_label,coarse_label\n" * 100,
    "a megabyte of zeros": lambda: bytes(1_000_000),
    "footer beyond the beginning": lambda: footer(1000),
    "footer of 4 GiB": lambda: footer(2**32 - 1),
    "footer of zeros": lambda: footer(50),
    "first half": lambda: parquet(table())[:9000],
    "second half": lambda: parquet(table())[9000:],
    "no rows": lambda: parquet(table().slice(0, 0)),
    # The count in the footer, which counts row groups next.
    "a row more than it counts": lambda: parquet(table()).replace(b"\x16\xc8\x01\x19", b"\x16\xc6\x01\x19"),
    "no columns": lambda: parquet(pa.table({})),
    "a million rows and one": lambda: parquet(repeated(CELLS[0], 1_000_001), store_schema=False),
    "a megabyte in each of 1,000 rows, once in the file": lambda: parquet(
        repeated(bytes(1 << 20), 1000), store_schema=False
    ),
    "40 MB of zeros in a cell": lambda: parquet(
        table(img=images([bytes(4 * 10**7), *CELLS[1:]])), compression="zstd", use_dictionary=False
    ),
    "labels swapped": lambda: parquet(table(fine_label=GOOD.coarse, coarse_label=GOOD.fine)),
    "images and labels swapped": lambda: parquet(table(img=GOOD.fine, fine_label=table()["img"])),
    "image is bytes": lambda: parquet(table(img=pa.array(CELLS, BINARY))),
    "image is text": lambda: parquet(table(img=pa.array(["a"] * 100))),
    "image is a list of structs": lambda: parquet(table(img=pa.array([[]] * 100, pa.list_(STRUCT)))),
    "image without bytes": lambda: parquet(table(img=pa.array([{"path": "a"}] * 100))),
    "image's bytes are text": lambda: parquet(table(img=images(["a"] * 100, pa.string()))),
    "image's bytes are of a fixed size": lambda: parquet(table(img=images([b"a"] * 100, pa.binary(1)))),
    "image's bytes are a list of numbers": lambda: parquet(table(img=images([[1]] * 100, pa.list_(pa.uint8())))),
    "an empty cell": lambda: parquet(table(img=pa.array([None] * 100, STRUCT))),
    "label is a fraction": lambda: parquet(table(fine_label=GOOD.fine / 2)),
    "label is text": lambda: parquet(table(fine_label=[str(label) for label in GOOD.fine])),
    "label is true": lambda: parquet(table(coarse_label=[True] * 100)),
    "label is a list": lambda: parquet(table(fine_label=[[0]] * 100)),
    "label is nothing": lambda: parquet(table(fine_label=pa.nulls(100))),
    "label is empty": lambda: parquet(table(fine_label=pa.array([*GOOD.fine[:99].tolist(), None], pa.int64()))),
    "label of 2**63": lambda: parquet(table(fine_label=pa.array([2**63 + n for n in range(100)], pa.uint64()))),
    "label of -2**63": lambda: parquet(table(coarse_label=pa.array([-(2**63)] * 100))),
    "two columns of labels": lambda: arrow_with_two_labels(),
    "no labels": lambda: parquet(table(fine_label=None)),
    "classes with the same name": lambda: names(["a"] * 100),
    "classes named by lists": lambda: names([[number] for number in range(100)]),
    "classes named by numbers": lambda: names(list(range(100))),
}


def arrow_with_two_labels() -> bytes:
    good = table()
    return parquet(good.append_column("fine_label", good["fine_label"]))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def made(
    width: int = 32, height: int = 32, *, depth: int = 8, kind: int = 2, data: bytes = b"", **more: bytes
) -> bytes:
    """A PNG with this header, and other chunks before its data."""
    extra = b"".join(chunk(name.encode(), content) for name, content in more.items())
    pixels = chunk(b"IDAT", zlib.compress(data or bytes(height * (1 + width * 3)))) if width * height < 10**6 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def encoded(mode: str, form: str, size: tuple[int, int] = (32, 32), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


def jpeg_of(width: int, height: int) -> bytes:
    content = encoded("RGB", "JPEG")
    return content.replace(struct.pack(">BHH", 8, 32, 32), struct.pack(">BHH", 8, height, width))


BOMB = zlib.compress(bytes(50_000_000), 9)
IMAGES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a byte": lambda: b"\x89",
    "text": lambda: b"an image of a cat",
    "a path": lambda: b"/etc/passwd",
    "PNG of 900 megapixels": lambda: made(30_000, 30_000),
    "PNG of 18 exapixels": lambda: made(2**32 - 1, 2**32 - 1),
    "PNG of no pixels": lambda: made(0, 0, data=b"a"),
    "PNG of a row of 65,536": lambda: made(65_536, 1),
    "PNG with 50 MB of text": lambda: made(zTXt=b"a\0\0" + BOMB),
    "PNG with a profile of 50 MB": lambda: made(iCCP=b"a\0\0" + BOMB),
    "PNG with a wrong checksum": lambda: png(GOOD.images[95])[:-20] + bytes(20),
    "PNG without its end": lambda: png(GOOD.images[95])[:2000],
    "PNG of an unknown kind": lambda: made(kind=5),
    "PNG, grey": lambda: encoded("L", "PNG"),
    "PNG with a palette": lambda: encoded("P", "PNG"),
    "PNG, transparent": lambda: encoded("RGBA", "PNG"),
    "PNG of 31x32": lambda: encoded("RGB", "PNG", (31, 32)),
    "JPEG of four colours": lambda: encoded("CMYK", "JPEG"),
    "JPEG of 4 gigapixels": lambda: jpeg_of(65_535, 65_535),
    "JPEG without its pixels": lambda: encoded("RGB", "JPEG")[:200],
    "WEBP without its end": lambda: encoded("RGB", "WEBP", lossless=True)[:-8],
    "WEBP of 16383x16383": lambda: b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + struct.pack("<I", 16382 | 16382 << 14),
    "BMP of 2 gigapixels": lambda: (
        b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, 46_340, 46_340, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "GIF": lambda: encoded("RGB", "GIF"),
    "TIFF": lambda: encoded("RGB", "TIFF"),
    "PPM": lambda: encoded("RGB", "PPM"),
    "PostScript, which is a program": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nquit\n",
}


def sparse(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)


def tar_header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("train.bin")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def state(content: Any) -> Callable[[Path], Path]:
    """A save_to_disk folder with this state.json, and a good file."""

    def write(folder: Path) -> Path:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / "state.json").write_bytes(text)
        (folder / "data.arrow").write_bytes(arrow(table()))
        return folder

    return write


def stream(content: Callable[[], bytes]) -> Callable[[Path], Path]:
    """A save_to_disk folder with this file."""

    def write(folder: Path) -> Path:
        state({"_data_files": [{"filename": "data.arrow"}]})(folder)
        (folder / "data.arrow").write_bytes(content())
        return folder

    return write


def file(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def huge(name: str, size: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        sparse(folder / name, size)
        return folder

    return write


OTHERS: dict[str, Callable[[Path], Path]] = {
    "parquet of a terabyte": huge("train.parquet", 10**12),
    "binary of a terabyte": huge("train.bin", 3074 * 10**9),
    "tar of a terabyte": lambda folder: huge("copy.tar", 10**12)(folder) / "copy.tar",
    "state.json of a terabyte": huge("state.json", 10**12),
    "state.json is deep": state(b"[" * 100_000),
    "state.json is a list": state([]),
    "state.json names no files": state({"_data_files": []}),
    "state.json names a number": state({"_data_files": [7]}),
    "state.json names a file elsewhere": state({"_data_files": [{"filename": "../../../etc/passwd"}]}),
    "state.json names no name": state({"_data_files": [{"filename": "a\0b"}]}),
    "arrow, empty": stream(lambda: b""),
    "arrow, text": stream(lambda: b"not a stream of columns"),
    "arrow, message of 2 GiB": stream(lambda: b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100)),
    "arrow, first half": stream(lambda: arrow(table())[:9000]),
    "arrow, without its schema": stream(lambda: arrow(table())[1000:]),
    "arrow, other columns": stream(lambda: arrow(table(img=None))),
    "arrow, a cell of 40 MB": stream(lambda: arrow(table(img=images([bytes(4 * 10**7), *CELLS[1:]])))),
    "arrow, a label out of range": stream(lambda: arrow(table(fine_label=GOOD.fine + 1))),
    **{
        f"tar, {what} of {size:,} bytes, {form}": file("copy.tar", lambda k=kind, s=size, p=pack: p(tar_header(k, s)))  # type: ignore[misc]
        for what, kind in (("names", tarfile.GNUTYPE_LONGNAME), ("attributes", tarfile.XHDTYPE), ("train", b"0"))
        for size in (2**33, 2**62, 2**80)
        for form, pack in (("gz", gzip.compress), ("plain", bytes))
    },
    "tar.gz, attributes of 20 MB of zeros": file(
        "copy.tar", lambda: gzip.compress(tar_header(tarfile.XHDTYPE, 2 * 10**7) + bytes(2 * 10**7))
    ),
}


SAID = {
    "no rows": "train.parquet: 100 of 100 classes have no images, such as 0 (",
    "a row more than it counts": "train.parquet declares 99 rows but contains 100. Fetch ",
    "a million rows and one": "declares 1,000,001 rows; expected at most 1,000,000. Fetch",
    "a megabyte in each of 1,000 rows, once in the file": "near row 0: an image has 1,048,576 bytes; expected at most 65,536",
    "40 MB of zeros in a cell": " bytes for 100 rows; expected at most 65,536 per image. Fetch it again.",
    "images and labels swapped": ": fine_label has type struct<bytes: binary, path: string>; expected integers.",
    "image is text": ": img has type string; expected the Hub's struct of bytes and path.",
    "classes with the same name": "names 100 classes in fine_label; expected 100 different names. Is it CIFAR-100?",
    "state.json of a terabyte": "state.json is incomplete (too long); copy the folder again.",
    "state.json is a list": "state.json was not written by save_to_disk; save the data set again.",
    "state.json names no files": "state.json names no data files; save the data set again.",
    "state.json names a number": "state.json names no data files; save the data set again.",
}
"""What is said of some of them, as far as our own words go."""


def refused(reader: Reader, source: Path, *named: str) -> None:
    for how in ("open", "verify"):
        code, message, megabytes = reader.opened(how, source)
        assert code == 3 and "\n" not in message and all(name in message for name in (str(source), *named)), message
        assert megabytes < MEGABYTES


def test_the_good_files_are_good(reader: Reader, tmp_path: Path) -> None:
    longer = made(data=bytes(50_000_000))  # Whatever comes after the last pixel is not looked at.
    for content in (table(), repeated(CELLS[0], 300), table(img=images([longer, *CELLS[1:]]))):
        (tmp_path / "train.parquet").write_bytes(parquet(content, store_schema=False))
        assert reader.opened("open", tmp_path)[:2] == (0, "")
    code, message, megabytes = reader.opened("verify", stream(lambda: arrow(table()))(tmp_path))
    assert (code, message) == (0, "") and megabytes > 1  # Else the measure would measure nothing.
    assert len(PARQUET) + len(IMAGES) + len(OTHERS) > 100 and SAID.keys() <= PARQUET.keys() | OTHERS.keys()


@pytest.mark.parametrize("what", PARQUET)
def test_a_parquet_file_that_is_none_is_refused(what: str, reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(PARQUET[what]())
    refused(reader, tmp_path, "train.parquet", SAID.get(what, ""))


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)
def test_an_image_that_is_none_is_refused(content: Callable[[], bytes], reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(parquet(table(img=images([*CELLS[:7], content(), *CELLS[8:]]))))
    refused(reader, tmp_path, "train.parquet, row 7: the image ")


@pytest.mark.parametrize("what", OTHERS)
def test_another_file_that_is_none_is_refused(what: str, reader: Reader, tmp_path: Path) -> None:
    refused(reader, OTHERS[what](tmp_path), SAID.get(what, ""))


WHOLE = {
    "train.parquet": [
        parquet(table()),
        parquet(table(), compression="none", use_dictionary=False, data_page_version="2.0", row_group_size=30),
    ],
    "data.arrow": [arrow(table())],
}


@st.composite
def changed(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes of a file with some of them changed, left out, doubled or put in; more often near the end or the beginning."""
    content = whole
    for _ in range(draw(st.integers(1, 4))):
        last = len(content)
        start = draw(st.integers(0, last) | st.integers(max(0, last - 3000), last) | st.integers(0, min(100, last)))
        length = draw(st.integers(0, 8) | st.integers(0, last))
        numbers = st.sampled_from([0, 1, 127, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
        kept = content[start : start + length]
        middle = draw(
            st.sampled_from([b"", kept * 2, bytes(byte ^ 1 for byte in kept[:64])])
            | st.binary(max_size=16)
            | numbers.map(lambda number: number.to_bytes(8, "little"))
        )
        content = content[:start] + middle + content[start + length :]
    return content


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, bytes]:
    name = draw(st.sampled_from(sorted(WHOLE)))
    return {name: draw(changed(draw(st.sampled_from(WHOLE[name]))))}


TYPES: list[pa.DataType] = [
    *(pa.int8(), pa.uint8(), pa.int32(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.string(), pa.date32()),
    *(BINARY, pa.large_binary(), pa.binary(3), pa.large_string(), pa.timestamp("ns"), pa.decimal128(38), pa.null()),
    *(pa.list_(pa.int64()), STRUCT, pa.struct([("bytes", pa.large_binary())]), pa.struct([("bytes", pa.int8())])),
    *(pa.dictionary(pa.int8(), pa.int64()), pa.map_(pa.string(), BINARY), pa.list_(pa.float32(), 2), pa.duration("s")),
]


@st.composite
def columns(draw: st.DrawFn) -> dict[str, bytes]:
    """A table of columns of any type, in any order, by right and by wrong names."""
    good, made = table(), {}
    for name in draw(st.permutations(["img", "fine_label", "coarse_label"])):
        kind = draw(st.none() | st.sampled_from(TYPES))
        filled = kind is None or not draw(st.booleans())
        made[name] = good[name] if kind is None else cast(good[name], kind) if filled else pa.nulls(100, kind)
    later = draw(st.permutations(sorted(made)))
    content = pa.table(made).rename_columns(draw(st.sampled_from([list(made), later])))
    return {"train.parquet": parquet(content.slice(0, draw(st.sampled_from([0, 1, 100]))))}


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """The same values in another type, or none of them where that cannot be."""
    try:
        return column.combine_chunks().cast(kind)
    except (pa.ArrowException, ValueError):
        return pa.nulls(len(column), kind)


FORMATS = [png(GOOD.images[95]), encoded("RGB", "JPEG"), encoded("RGB", "WEBP"), encoded("RGB", "BMP"), made()]


@st.composite
def damaged_images(draw: st.DrawFn) -> dict[str, bytes]:
    """A table whose first image is damaged."""
    cells = [draw(changed(draw(st.sampled_from(FORMATS)))), *CELLS[1:]]
    return {"train.parquet": parquet(table(img=images(cells)))}


@pytest.mark.parametrize("files", [damaged(), columns(), damaged_images()], ids=["damaged", "columns", "images"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_anything_is_loaded_or_refused_by_name(
    files: st.SearchStrategy[dict[str, bytes]],
    data: st.DataObject,
    reader: Reader,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name, content in data.draw(files).items():
        if name == "data.arrow":
            state({"_data_files": [{"filename": name}]})(folder)
        (folder / name).write_bytes(content)
    code, message, megabytes = reader.opened("verify", folder)
    assert code == 0 or (code == 3 and str(folder) in message and "\n" not in message), message
    assert megabytes < MEGABYTES
