"""The page answers images, refuses what is none with a sentence, and gives away nothing: a real server, real requests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from cards import CARD
from processes import PROGRAMS
from screenshots import screenshot_folder

import cifar100_tk
from cifar100_tk.augment import Normalize
from cifar100_tk.data import COARSE_NAMES, COARSE_OF_FINE, FINE_NAMES
from cifar100_tk.data.shapes100 import NAMES as SHAPES
from cifar100_tk.demo import about, guard
from cifar100_tk.demo.answer import SHOWN, answer, readable
from cifar100_tk.demo.examples import examples
from cifar100_tk.errors import ConfigError
from cifar100_tk.evaluation import files as evaluation_files
from cifar100_tk.evaluation.files import Conditions
from cifar100_tk.evaluation.scores import Scores
from cifar100_tk.models import folder as model_folder

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs the extra demo")


def png(image: PIL.Image.Image, format: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has one."""
    content = bytearray(png(PIL.Image.new("L", (1, 1))))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def photo(width: int = 96, height: int = 64) -> PIL.Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize((width, height), PIL.Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "model"
    torch.manual_seed(0)
    network = timm.create_model("resnet10_cifar_w16", num_classes=100).eval()
    model_folder.write(folder, network, FINE_NAMES, Normalize(), CARD)
    return folder


# The server


@dataclass
class Server:
    """A running page and what it noted."""

    port: int
    process: subprocess.Popen[str]
    notes: Path
    temporary: Path

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def upload(self, name: str, content: bytes) -> tuple[int, Any]:
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        status, answer = self.request("POST", "/gradio_api/upload", body, kind)
        return status, json.loads(answer)

    def join(self, payload: Any, trigger: str = "upload") -> tuple[int, str, Any]:
        """Ask for what the page asks for when an image has been uploaded or an example chosen."""
        config = json.loads(self.request("GET", "/config")[1])
        (number,) = (d["id"] for d in config["dependencies"] if d["targets"] and d["targets"][0][1] == trigger)
        session = uuid.uuid4().hex
        call = {"data": [payload], "fn_index": number, "session_hash": session}
        kind = {"Content-Type": "application/json"}
        status, answer = self.request("POST", "/gradio_api/queue/join", json.dumps(call), kind)
        return status, session, json.loads(answer)

    def result(self, session: str) -> Any:
        """Read the stream of events up to the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
            for line in connection.getresponse():
                if line.startswith(b"data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "process_completed":
                        assert message["success"], message
                        return message["output"]["data"]
        finally:
            connection.close()
        raise AssertionError("the stream ended without an answer")

    def look(self, name: str, content: bytes) -> tuple[str, Any, list[Any]]:
        """Upload a file and return the sentence, the label and the three images."""
        status, paths = self.upload(name, content)
        assert status == 200, paths
        payload = {"path": paths[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        status, session, said = self.join(payload)
        assert status == 200, said
        image, sentence, label, seen, looked = self.result(session)
        return sentence, label, [image, seen, looked]

    def image(self, value: Any) -> PIL.Image.Image:
        status, content = self.request("GET", f"/gradio_api/file={quote(value['path'])}")
        assert status == 200
        return PIL.Image.open(io.BytesIO(content))

    def peak_megabytes(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def start(arguments: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the command under watch; its notes go to FOLDER/notes, its temporary files below FOLDER/tmp."""
    (folder / "tmp").mkdir()
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / "watched_demo.py"), str(folder / "notes"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(Path.cwd())} | environment,
    )


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Return the output up to the line that holds a text."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"the page did not start: {said}")


@contextlib.contextmanager
def serving(model: Path, folder: Path, **environment: str) -> Iterator[Server]:
    """Serve the page of a model in an environment in which others might have opened doors."""
    port = free_port()
    opened = {"GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_ANALYTICS_ENABLED": "True"}
    process = start([str(model), "--port", str(port)], folder, **opened, **environment)
    try:
        assert "320,436 parameters that classifies 32x32 images into 100 classes" in wait_for(process, "page is at")
        yield Server(port, process, folder / "notes", folder / "tmp")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(model, tmp_path_factory.mktemp("server")) as running:
        yield running


@needs_gradio
def test_an_image_gets_the_probabilities_of_the_model_and_shows_what_it_saw(server: Server, model: Path) -> None:
    sentence, label, images = server.look("photo.png", png(photo()))
    classifier = cifar100_tk.load(model)
    with torch.no_grad():
        expected = classifier.model(classifier.transform(photo())[None]).softmax(1)[0]
    top = expected.topk(5)
    got = label["confidences"]
    assert [line["label"] for line in got] == [FINE_NAMES[k].replace("_", " ") for k in top.indices.tolist()]
    assert [line["confidence"] for line in got] == pytest.approx(top.values.tolist(), abs=1e-5)
    superclass = COARSE_NAMES[COARSE_OF_FINE[int(top.indices[0])]].replace("_", " ")
    assert got[0]["label"] in sentence and f"super-class <b>{superclass}</b>" in sentence
    _, seen, looked = (server.image(value) for value in images)
    assert seen.size == looked.size == (SHOWN, SHOWN)
    small = np.asarray(seen)[6::12, 6::12]  # The middles of the squares.
    assert np.array_equal(np.asarray(PIL.Image.fromarray(small).resize((SHOWN, SHOWN), 0)), np.asarray(seen))


@needs_gradio
def test_an_example_is_answered(server: Server) -> None:
    status, session, said = server.join(2, trigger="click")
    assert status == 200, said
    _, sentence, label, seen, looked = server.result(session)
    assert "Most likely" in sentence and len(label["confidences"]) == 5 and seen and looked


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "letter.png": (lambda: b"Dear Sir or Madam,\n" * 40, "This file is not an image in a supported format"),
    "empty.png": (lambda: b"", "This file is not an image in a supported format"),
    "bomb.png": (lambda: claims(12_000, 12_000), "This file is 12000x12000"),
    "bigger.png": (lambda: claims(30_000, 30_000), "This file has too many pixels"),
    "half.png": (lambda: png(photo())[:3000], "This file is damaged"),
    "drawing.svg": (
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "not an im",
    ),
    "script.png": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
    "moving.gif": (lambda: png(photo(), "GIF"), "use PNG, JPEG, WEBP, BMP"),
    "<b>x</b>.png": (lambda: b"<script>alert(1)</script>", "not an image"),
}


@needs_gradio
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_image_gets_a_sentence(server: Server, name: str) -> None:
    make, expected = HOSTILE[name]
    sentence, label, images = server.look(name, make())
    assert expected in sentence and "refused" in sentence
    assert not label and images == [None, None, None]
    assert str(server.temporary) not in sentence and "<script>" not in sentence


ODD: dict[str, Callable[[], bytes]] = {
    "dot.png": lambda: png(PIL.Image.new("RGB", (1, 1), "red")),
    "deep.png": lambda: png(PIL.Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)),
    "print.jpg": lambda: png(photo().convert("CMYK"), "JPEG"),
    "palette.png": lambda: png(photo().quantize(16), transparency=0),
    "moving.webp": lambda: png(photo(), "WEBP", save_all=True, append_images=[photo().rotate(90)]),
}


@needs_gradio
@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_answered(server: Server, name: str) -> None:
    sentence, label, images = server.look(name, ODD[name]())
    assert "Most likely" in sentence and len(label["confidences"]) == 5 and all(images)


@needs_gradio
def test_a_photograph_is_shown_the_way_up_it_was_taken(server: Server) -> None:
    lying = PIL.Image.new("RGB", (80, 40), "blue")
    lying.paste("red", (0, 0, 40, 40))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # The camera was held upright: turn clockwise by a quarter.
    _, _, images = server.look("tower.jpg", png(lying, "JPEG", exif=exif))
    shown = server.image(images[0]).convert("RGB")
    assert shown.width * 2 == shown.height
    top, bottom = shown.getpixel((shown.width // 2, 9)), shown.getpixel((shown.width // 2, shown.height - 9))
    assert isinstance(top, tuple) and isinstance(bottom, tuple) and top[0] > 200 > bottom[0] and bottom[2] > 200


@needs_gradio
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see the memory of a process")
def test_bombs_take_no_memory(server: Server) -> None:
    server.look("photo.png", png(photo()))
    before = server.peak_megabytes()
    bomb = png(PIL.Image.new("1", (12_000, 12_000)))
    for _ in range(3):
        server.look("bomb.png", bomb)
    assert server.peak_megabytes() - before < 100  # As RGB each would have 432 MB.


@needs_gradio
def test_no_file_of_the_host_is_handed_out(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "confidential.txt"
    secret.write_text("do not tell")
    _, paths = server.upload("photo.png", png(photo()))
    inside = Path(paths[0]).parent
    assert server.request("GET", f"/gradio_api/file={quote(paths[0])}")[0] == 200
    up = f"{inside}{'/..' * (len(inside.parts) - 1)}"
    encoded = quote(f"{up}{secret}", safe="").replace("..", "%2e%2e")
    for asked in (
        secret,
        f"{up}{secret}",
        f"file://{secret}",
        f"/{secret}",
        f"../../../../../../../..{secret}",
        inside,
    ):
        for path in (f"/gradio_api/file={asked}", f"/gradio_api/file/{asked}", f"/file={asked}", f"/static/{asked}"):
            status, said = server.request("GET", path)
            assert status in (403, 404) and b"do not tell" not in said, path
    for path in (f"/gradio_api/file={encoded}", f"/assets/{encoded}", "/static/..%2f..%2f..%2f..%2fetc%2fpasswd"):
        status, said = server.request("GET", path)
        assert status in (403, 404) and b"do not tell" not in said and b"root:" not in said, path
    assert "confidential" not in server.notes.read_text()


@needs_gradio
def test_a_crafted_call_reads_no_file_and_fetches_no_address(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "confidential.png"
    secret.write_bytes(png(photo()))
    _, (own,) = server.upload("photo.png", png(photo()))
    above = "/.." * len(Path(own).parts)
    link = Path(own).with_name("link.png")
    link.symlink_to(secret)
    meta = {"meta": {"_type": "gradio.FileData"}}
    inline = "data:image/png;base64," + base64.b64encode(png(PIL.Image.new("RGB", (9, 9), "red"))).decode()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        files = [str(secret), f"{own}{above}{secret}", str(link), str(Path(own).parent), "confidential.png"]
        for path in (*files, address, "http://example.com/x.png", inline, None, 3, "", [own]):
            for payload in ({"path": path} | meta, {"path": path}, [{"path": path} | meta], {"image": {"path": path}}):
                status, _, said = server.join(payload)
                assert status == 403, payload
                assert said["detail"] == "Only images uploaded to this page can be classified."
        # What stands beside an image that was uploaded is not looked at.
        for url in (address, f"file://{secret}", inline):
            status, session, _ = server.join({"path": own, "url": url} | meta)
            shown = server.image(server.result(session)[0])
            assert status == 200 and shown.size == (384, 256)  # The uploaded photograph, four times as large.
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()  # Nobody waits to be let in.
    notes = server.notes.read_text().splitlines()
    assert not [line for line in notes if "confidential" in line]
    # In all its life the server talked to nobody but itself, at its start.
    assert {line for line in notes if line.startswith("connect")} == {f"connect ('127.0.0.1', {server.port})"}
    assert {line for line in notes if line.startswith("lookup")} == {"lookup 127.0.0.1"}


@needs_gradio
def test_every_other_door_is_shut(server: Server) -> None:
    secret = "/etc/passwd"
    for path in (
        *("/gradio_api/info", "/gradio_api/openapi.json", "/docs", "/openapi.json", "/monitoring", "/gradio_api/mcp/"),
        *("/gradio_api/proxy=http://example.com/", "/gradio_api/file=http://example.com/x.png", "/gradio_api/runs"),
        *(
            f"/svelte/..{secret}",
            f"/gradio_api/stream/a/b/c/{secret}",
            "/gradio_api/custom_component/1/client/component/x",
        ),
    ):
        assert server.request("GET", path)[0] in (403, 404), path
    kind = {"Content-Type": "application/json"}
    for path in (
        "run/look",
        "api/look",
        "call/look",
        "call/v2/look",
        "component_server",
        "process_recording",
        "vibe-edit/",
    ):
        assert server.request("POST", f"/gradio_api/{path}", json.dumps({"data": [None]}), kind)[0] == 404, path
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert server.request(method, "/gradio_api/upload")[0] in (400, 404, 405)
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "eA==",
        "Sec-WebSocket-Version": "13",
    }
    assert server.request("GET", "/gradio_api/queue/join", headers=upgrade)[0] >= 400


@needs_gradio
def test_nothing_is_flagged_shared_or_counted(server: Server) -> None:
    config = json.loads(server.request("GET", "/config")[1])
    assert config["analytics_enabled"] is False and config.get("share_url") is None
    assert all(dependency["api_visibility"] == "private" for dependency in config["dependencies"])
    assert "flag" not in json.dumps(config["components"]).lower()
    page = server.request("GET", "/")[1].decode()
    assert "Measured on 10,000 images of CIFAR-100 (test)" in page
    assert "top-1 accuracy 30.32 %" in page and "top-5 accuracy 62.44 %" in page


@needs_gradio
def test_what_is_too_large_is_refused_at_the_door(server: Server) -> None:
    kind = {"Content-Type": "application/json"}
    status, said = server.request("POST", "/gradio_api/queue/join", json.dumps({"data": ["x" * guard.MAX_CALL]}), kind)
    assert (status, json.loads(said)["detail"]) == (
        413,
        "The call is too large; the limit is 64 kB. Upload the image first.",
    )
    head = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(10**10)}
    status, said = server.request("POST", "/gradio_api/upload", b"--x", head)
    assert (status, json.loads(said)["detail"]) == (413, "The upload is too large; the limit is 20 MB.")
    chunked = {"Content-Type": "multipart/form-data; boundary=x", "Transfer-Encoding": "chunked"}
    assert server.request("POST", "/gradio_api/upload", b"1\r\nx\r\n0\r\n\r\n", chunked)[0] == 411


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium with a camera that shows a test pattern."""
    if CHROMIUM is None:
        pytest.skip("needs a chromium on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@needs_gradio
def test_the_answer_stands_beside_the_image_or_on_a_phone_between_it_and_the_examples(
    server: Server, browser: Any, tmp_path: Path
) -> None:
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.get_by_role("button", name="sunflower").wait_for(timeout=60_000)
            name = screenshot_folder(tmp_path) / f"demo-{width}-{scheme}"
            page.screenshot(path=f"{name}-start.png", full_page=True)
            assert not page.locator("#two").is_visible()  # No empty frames.
            page.get_by_role("button", name="sunflower").click()
            page.locator("#looked img").wait_for(timeout=60_000)
            assert [page.locator(f"#answer h2 >> nth={k}").inner_text() for k in (0, 1)] == [
                "What it sees",
                "Where it looks",
            ]
            assert "Most likely" in page.locator("#status").inner_text()
            assert page.locator("#label dd, #label .confidence").count() >= 5
            assert page.evaluate("document.documentElement.scrollWidth") == width  # Nothing sticks out.
            if width == 390:
                # The page scrolls by itself until the answer is at the top.
                page.wait_for_function("Math.abs(document.querySelector('#status').getBoundingClientRect().top) < 40")
            boxes = {each: page.locator(f"#{each}").bounding_box() for each in ("image", "answer", "examples")}
            page.screenshot(path=f"{name}.png")
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=f"{name}-full.png", full_page=True)
            ends = {each: box["y"] + box["height"] for each, box in boxes.items()}
            assert ends["image"] <= boxes["examples"]["y"]
            if width == 390:
                assert ends["image"] <= boxes["answer"]["y"] < ends["answer"] <= boxes["examples"]["y"]
            else:
                assert abs(boxes["image"]["y"] - boxes["answer"]["y"]) < 20
                assert boxes["image"]["x"] + boxes["image"]["width"] <= boxes["answer"]["x"]
            page.close()


@needs_gradio
def test_people_drop_photograph_and_are_refused_in_a_browser(server: Server, browser: Any, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    (tmp_path / "letter.png").write_bytes(b"Dear Sir or Madam,\n")
    dropped = base64.b64encode(png(photo())).decode()
    elsewhere: list[str] = []
    refused: list[str] = []
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.on("request", lambda r: None if f"127.0.0.1:{server.port}" in r.url else elsewhere.append(r.url))
    # Gradio's page asks for the progress of an upload before there is one.
    page.on("response", lambda r: None if r.ok or r.url.endswith("?upload_id=") else refused.append(r.url))
    page.goto(f"http://127.0.0.1:{server.port}/")
    status = page.locator("#status")
    sync_api.expect(status).to_contain_text("Add an image, use the camera, or choose an example.", timeout=60_000)

    transfer = page.evaluate_handle(
        """text => {
            const transfer = new DataTransfer(), bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0))
            transfer.items.add(new File([bytes], 'photo.png', {type: 'image/png'}))
            return transfer
        }""",
        dropped,
    )
    page.dispatch_event("#image button:has(input[type=file])", "drop", {"dataTransfer": transfer})
    sync_api.expect(status).to_contain_text("Most likely", timeout=60_000)

    page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
    sync_api.expect(status).to_contain_text("Add an image")
    page.set_input_files("#image input[type=file]", tmp_path / "letter.png")
    sync_api.expect(page.get_by_role("alert")).to_contain_text("not an image in a supported format", timeout=60_000)
    assert page.locator("#looked img").count() == 0
    page.screenshot(path=screenshot_folder(tmp_path) / "demo-390-dark-refused.png")

    page.get_by_label("Capture from camera").click()
    page.get_by_title("grant webcam access").click()
    page.get_by_label("capture photo").click(timeout=60_000)
    sync_api.expect(status).to_contain_text("Most likely", timeout=60_000)
    sync_api.expect(page.locator("#looked img")).to_be_visible()
    page.screenshot(path=screenshot_folder(tmp_path) / "demo-390-dark-camera.png")
    assert not elsewhere and not refused


# The guard: each attack succeeds against the page without it


def fetches_an_address(server: Server, secret: Path) -> bool:
    server.request("GET", "/gradio_api/file=http://proxied.invalid/x.png")
    return "lookup proxied.invalid" in server.notes.read_text()


def fetches_an_address_in_a_call(server: Server, secret: Path) -> bool:
    file = {"path": "http://fetched.invalid/x.png", "meta": {"_type": "gradio.FileData"}}
    status, session, _ = server.join(file)
    if status == 200:
        with contextlib.suppress(AssertionError):  # There is no such host.
            server.result(session)
    return "lookup fetched.invalid" in server.notes.read_text()


def reads_a_file_of_the_host(server: Server, secret: Path) -> bool:
    status, session, _ = server.join({"path": str(secret)})
    return status == 200 and "Most likely" in server.result(session)[1]


def sends_a_huge_call(server: Server, secret: Path) -> bool:
    return server.join({"path": "x" * 10**6})[0] == 200


def uploads_many_files_at_once(server: Server, secret: Path) -> bool:
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    part = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    body = b"".join(part + bytes(7 * 2**20) + b"\r\n" for _ in range(3)) + b"--edge--\r\n"
    return server.request("POST", "/gradio_api/upload", body, kind)[0] == 200


def uploads_without_saying_how_much(server: Server, secret: Path) -> bool:
    kind = {"Content-Type": "multipart/form-data; boundary=edge", "Transfer-Encoding": "chunked"}
    part = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\nx\r\n--edge--\r\n'
    return server.request("POST", "/gradio_api/upload", b"%x\r\n%b\r\n0\r\n\r\n" % (len(part), part), kind)[0] == 200


def leaves_files_outside_the_uploads(server: Server, secret: Path) -> bool:
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    body = b'--edge\r\nContent-Disposition: form-data; name="video"; filename="x.mp4"\r\n\r\nx\r\n--edge--\r\n'
    return server.request("POST", "/gradio_api/process_recording", body, kind)[0] == 200


@needs_gradio
def test_gradio_alone_lets_each_attack_through_and_the_guard_none(server: Server, model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "confidential.png"
    secret.write_bytes(png(photo()))
    attacks = (
        *(fetches_an_address, fetches_an_address_in_a_call, reads_a_file_of_the_host, sends_a_huge_call),
        *(uploads_many_files_at_once, uploads_without_saying_how_much, leaves_files_outside_the_uploads),
    )
    with serving(model, tmp_path, WITHOUT_GUARD="1") as unguarded:
        needless = [attack.__name__ for attack in attacks if not attack(unguarded, secret)]
        successful = [attack.__name__ for attack in attacks if attack(server, secret)]
    assert (needless, successful) == ([], []), "what Gradio refuses by itself needs no line of the guard"


@needs_gradio
def test_ctrl_c_ends_it_quietly_and_removes_every_upload(server: Server) -> None:
    """Keep it the last test of the server."""
    server.upload("photo.png", png(photo()))
    assert list(server.temporary.rglob("photo.png"))
    server.process.send_signal(signal.SIGINT)
    said, _ = server.process.communicate(timeout=60)
    assert server.process.returncode == 0 and "Traceback" not in said
    assert not list(server.temporary.glob("cifar100_tk-demo-*"))


# The guard by itself


def ask(uploads: Path, method: str, path: str, body: bytes, *sizes: int) -> tuple[int | None, bytes]:
    """Ask the guard to let a request through. Returns the status, 200 if it does, and what it passes on."""
    sent: list[Any] = []
    passed_on: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed_on.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    headers = [(b"content-length", str(size).encode()) for size in sizes]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(guard.Guard(app, uploads=uploads, max_kept=10**9)(scope, receive, send))
    return sent[0]["status"] if sent else None, b"".join(passed_on)


UPLOADED = b'{"data": [{"path": "FOLDER/photo.png"}]}'
TWICE = b'{"data": [{"path": "http://example.com", "path": "FOLDER/photo.png"}]}'


@needs_gradio
@pytest.mark.parametrize(
    ("method", "path", "body", "sizes", "status"),
    [
        pytest.param("POST", "/gradio_api/upload", b"", (21 * 2**20,), 413, id="many files in one upload"),
        pytest.param("POST", "/gradio_api/upload", b"", (9 * 2**20,), 200, id="none: an image"),
        pytest.param("POST", "/gradio_api/queue/join", b" " * 65537, (), 413, id="a call that fills the memory"),
        pytest.param("POST", "/gradio_api/queue/join", b"[" * 60_000, (), 400, id="JSON nested without an end"),
        pytest.param("POST", "/gradio_api/queue/join", TWICE[:29] + b'"}]}', (), 403, id="fetching an address"),
        pytest.param("POST", "/gradio_api/queue/join", TWICE, (), 200, id="a key twice, for two parsers"),
        pytest.param("POST", "/gradio_api/queue/join", UPLOADED, (), 200, id="none: a call of the page"),
    ],
)
def test_a_request_is_refused_or_passed_on_as_it_was_checked(
    method: str, path: str, body: bytes, sizes: tuple[int, ...], status: int, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(png(photo()))
    body = body.replace(b"FOLDER", bytes(tmp_path))
    found, passed_on = ask(tmp_path, method, path, body, *sizes)
    assert found == status and b"example.com" not in passed_on and bool(passed_on) == (status == 200 and bool(body))


@needs_gradio
def test_uploads_stop_when_the_folder_is_full_and_abandoned_ones_make_room(tmp_path: Path) -> None:
    def upload(size: int) -> int | None:
        return ask(tmp_path, "POST", "/gradio_api/upload", b"", size)[0]

    (tmp_path / "kept").mkdir()
    kept, unfinished = tmp_path / "kept/photo.png", tmp_path / "tmpabc"
    with kept.open("wb") as file:
        file.truncate(10**9 - 400)
    assert (upload(400), upload(401)) == (200, 503)
    kept.rename(unfinished)
    assert upload(401) == 503
    long_ago = time.time() - guard.ABANDONED_SECONDS - 1
    os.utime(unfinished, (long_ago, long_ago))
    assert upload(401) == 200 and not unfinished.exists()


# The answer by itself


def test_the_network_sees_the_very_pixels_of_an_image_of_its_size(model: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = answer(cifar100_tk.load(model), PIL.Image.fromarray(pixels))
    assert np.array_equal(np.asarray(found.seen)[::12, ::12], pixels)
    assert np.array_equal(np.asarray(found.seen), pixels.repeat(12, 0).repeat(12, 1))
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5) and len(found.probabilities) == 100
    assert found.looked is not None and found.looked.size == (384, 384)


def test_names_lose_their_underscores_unless_that_makes_two_alike() -> None:
    assert readable(("maple_tree", "sea")) == ("maple tree", "sea")
    assert readable(("maple_tree", "maple tree")) == ("0: maple_tree", "1: maple tree")


def test_examples_fit_the_classes(tmp_path: Path) -> None:
    drawn = examples(FINE_NAMES, None)
    assert len(drawn) == 10 and {name for _, name in drawn} < set(FINE_NAMES)
    assert all(image.mode == "RGB" and image.size == (256, 256) for image, _ in drawn)
    assert len({image.tobytes() for image, _ in drawn}) == 10
    shapes = examples(SHAPES.fine, None)
    assert len(shapes) == 10 and all(name.replace(" ", "_") in SHAPES.fine for _, name in shapes)
    assert len({name.split()[1] for _, name in shapes}) == 10
    assert examples(("mine", "yours"), None) == []
    photo().save(tmp_path / "my_dog.png")
    (tmp_path / "notes.txt").write_text("no image")
    (own,) = examples(FINE_NAMES, tmp_path)
    assert own[1] == "my dog" and own[0].size == (96, 64)
    (tmp_path / "my_dog.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"--examples .*my_dog.png is not an image"):
        examples(FINE_NAMES, tmp_path)
    (tmp_path / "my_dog.png").unlink()
    with pytest.raises(ConfigError, match=r"contains no images; add files such as"):
        examples(FINE_NAMES, tmp_path)


def test_a_card_without_figures_or_with_foolish_ones_is_not_quoted(model: Path, tmp_path: Path) -> None:
    assert about.measured(str(model)) == (
        "Measured on 10,000 images of CIFAR-100 (test): top-1 accuracy 30.32 %, top-5 accuracy 62.44 %."
    )
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    for card in (
        "# No front matter",
        "---\n- 1\n---\n",
        "---\nmodel-index: 5\n---\n",
        CARD.replace("0.3032", "81.2"),
        "",
    ):
        (copy / "README.md").write_text(card)
        assert about.measured(str(copy)) is None, card


def test_a_run_is_quoted_with_its_own_evaluation(tmp_path: Path) -> None:
    logits = torch.zeros(4, 100)
    logits[range(4), [0, 1, 50, 60]] = 1.0
    labels = torch.tensor(
        [0, 1, 2, 70]
    )  # Two first guesses are right; of two that tie for the rest, class 2 comes early.
    scores = Scores.of(logits, labels, FINE_NAMES, COARSE_NAMES, COARSE_OF_FINE)
    assert (scores.top1, scores.top5) == (0.5, 0.75)
    conditions = Conditions(
        model="a run",
        source="/data/mine",
        split="holdout",
        images="these are the CIFAR-100 training images",
        precision="float32",
        weights="raw",
        flip=False,
        images_per_second=1.0,
        num_parameters=1,
    )
    result = evaluation_files.result(conditions, scores)
    (tmp_path / "evaluation").mkdir()
    evaluation_files.write_json(tmp_path / "evaluation/holdout.json", result)
    rest = "top-1 accuracy 50.00 %, top-5 accuracy 75.00 %."
    assert about.measured(str(tmp_path)) == f"Measured on 4 held-out images of CIFAR-100: {rest}"
    result |= {"split": "test", "images": "not the published CIFAR-100 images"}
    evaluation_files.write_json(tmp_path / "evaluation/test.json", result)
    assert about.measured(str(tmp_path)) == f"Measured on 4 test images of mine: {rest}"


# The command by itself


def run(
    *arguments: str, program: str = "import runpy; runpy.run_module('cifar100_tk.demo', run_name='__main__')"
) -> Any:
    command = [sys.executable, "-c", f"import sys; sys.argv[0] = 'demo'; {program}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_help_and_wrong_arguments_load_neither_torch_nor_gradio(tmp_path: Path) -> None:
    watch = (
        "import atexit; atexit.register(lambda: print({'torch', 'timm', 'gradio'} & sys.modules.keys())); import runpy; "
        "runpy.run_module('cifar100_tk.demo', run_name='__main__')"
    )
    for arguments, code in (
        (["--help"], 0),
        (["x", "--port", "0"], 2),
        (["x", "--register", str(tmp_path / "no.py")], 2),
    ):
        done = run(*arguments, program=watch)
        assert done.returncode == code and done.stdout.endswith("set()\n"), done
    assert "no.py does not exist; give a Python file." in " ".join(done.stderr.replace("│", " ").split())


def test_without_gradio_a_sentence_says_what_to_install(model: Path) -> None:
    without = "sys.modules['gradio'] = None; import runpy; runpy.run_module('cifar100_tk.demo', run_name='__main__')"
    done = run(str(model), program=without)
    assert (done.returncode, done.stderr) == (
        2,
        'python -m cifar100_tk.demo: the demo needs Gradio, which is not installed; run pip install "gradio>=6.20"\n',
    )


@needs_gradio
def test_a_port_in_use_and_a_wrong_host_get_a_sentence(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(str(model), "--port", str(port))
    assert done.returncode == 2 and f"--port {port} is not available on 127.0.0.1" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run(str(model), "--host", "host.invalid")
    assert done.returncode == 2 and "--host host.invalid is not an address of this machine" in done.stderr


@needs_gradio
def test_a_model_that_is_none_gets_a_sentence(tmp_path: Path) -> None:
    done = run(str(tmp_path), "--port", str(free_port()))
    assert done.returncode == 3 and "is not a model" in done.stderr and "Traceback" not in done.stderr
