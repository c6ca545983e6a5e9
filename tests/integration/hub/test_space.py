"""The folder of a Space is complete: the Hub reads its front matter, and its app.py serves the page from its own files."""

from __future__ import annotations

import configparser
import http.client
import importlib.metadata
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import timm
from cards import CARD
from hub_server import Hub, serving
from huggingface_hub import SpaceCard

from cifar100_tk.augment import Normalize
from cifar100_tk.data import FINE_NAMES
from cifar100_tk.errors import ConfigError, DataError, DiskError
from cifar100_tk.hub import space
from cifar100_tk.hub.__main__ import Space
from cifar100_tk.models import folder as model_folder

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs the extra demo")
ROOT = Path(__file__).parents[3]
ID = "someone/small-network"


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_the_page_its_package_and_what_to_install_and_nothing_else(tmp_path: Path) -> None:
    built = space.build(ID, tmp_path / "space")
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cifar100_tk").rglob("*.py")}
    package |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "cifar100_tk/demo/images").glob("*.png")}
    assert len(package) > 40
    expected = package | {"cifar100_tk/py.typed", "LICENSE", "app.py", "README.md", "requirements.txt"}
    assert built == tmp_path / "space" and contents(built) == expected
    assert os.listdir(tmp_path) == ["space"]


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    built = space.build(ID, tmp_path / "space", title="A small network", license="mit")
    front: Any = SpaceCard.load(built / "README.md").data
    assert (front.title, front.sdk, front.app_file, front.license) == ("A small network", "gradio", "app.py", "mit")
    assert front.sdk_version == importlib.metadata.version("gradio")
    assert front.python_version == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert front.models == [ID] and front.preload_from_hub == [f"{ID} config.json,model.safetensors,README.md"]
    assert 0 < len(front.short_description) <= 60
    assert f"gradio=={front.sdk_version}\n" in (built / "requirements.txt").read_text()
    commit = "0123456789abcdef0123456789abcdef01234567"
    pinned: Any = SpaceCard.load(space.build(ID, tmp_path / "pinned", revision=commit) / "README.md").data
    assert pinned.preload_from_hub == [f"{ID} config.json,model.safetensors,README.md {commit}"]
    branch: Any = SpaceCard.load(space.build(ID, tmp_path / "branch", revision="v1") / "README.md").data
    assert getattr(branch, "preload_from_hub", None) is None


def test_the_requirements_are_those_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = set(setup["options"]["install_requires"].split())
    assert len(space.REQUIREMENTS) > 5 and set(space.REQUIREMENTS) <= declared


def test_what_belongs_to_a_network_of_ones_own_comes_along(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("# registers a network\n")
    (tmp_path / "images").mkdir()
    PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images/night.png")
    (tmp_path / "images/.env").write_text("TOKEN=secret")
    built = space.build(
        ID, tmp_path / "space", revision="v1", register=tmp_path / "mine.py", examples=tmp_path / "images"
    )
    assert (built / "register.py").read_text() == "# registers a network\n"
    assert contents(built / "examples") == {"night.png"}
    (tmp_path / "images/token.png").write_text("TOKEN=secret")
    with pytest.raises(DataError, match=r"token.png is not an image in a supported format"):
        space.build(ID, tmp_path / "leaky", examples=tmp_path / "images")
    assert not (tmp_path / "leaky").exists()
    given = 'DemoOptions(model="someone/small-network", revision="v1", register=HERE / "register.py", examples=HERE / "examples")'
    assert given in (built / "app.py").read_text()


def test_wrong_wishes_get_a_sentence_and_leave_nothing(tmp_path: Path) -> None:
    for wrong in ("small-network", "../../etc", "a/b/c", 'a/b"); import os', ""):
        with pytest.raises(ConfigError, match=re.escape(f"{wrong} is not a Hub id; pass a published model such as")):
            space.build(wrong, tmp_path / "space")
    with pytest.raises(ConfigError, match=r"--register .*gone.py cannot be read \(No such file"):
        space.build(ID, tmp_path / "space", register=tmp_path / "gone.py")
    with pytest.raises(ConfigError, match=r"--register .*gone\.py does not exist; give a Python file"):
        Space(repo="someone/page", model=ID, register=tmp_path / "gone.py")
    assert not list(tmp_path.iterdir())
    (tmp_path / "space").mkdir()
    with pytest.raises(ConfigError, match=r"space already exists; choose another --to, or remove it first"):
        space.build(ID, tmp_path / "space")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"cannot write .*file/space"):
        space.build(ID, tmp_path / "file/space")
    assert sorted(os.listdir(tmp_path)) == ["file", "space"] and not list((tmp_path / "space").iterdir())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    """A Hub with the model."""
    network = timm.create_model("resnet10_cifar_w16", num_classes=100)
    model_folder.write(tmp_path / "model", network, FINE_NAMES, Normalize(), CARD)
    with serving() as server:
        files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        server.create(ID).add("main", files, "the model")
        yield server


def test_the_app_serves_the_page_of_a_model_of_the_hub_from_the_folder_and_what_it_lists_alone(
    server: Hub, tmp_path: Path
) -> None:
    built = space.build(ID, tmp_path / "space")
    with socket.create_server(("127.0.0.1", 0)) as trial:
        port = trial.getsockname()[1]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = {re.split("[<>=]", line)[0] for line in setup["options"]["install_requires"].split()}
    absent = sorted(required - {re.split("[<>=]", line)[0] for line in space.REQUIREMENTS})
    assert "accelerate" in absent and "datasets" in absent
    app = (
        f"import sys, runpy; sys.modules |= dict.fromkeys({absent}); import cifar100_tk; print(cifar100_tk.__file__); "
        f"from cifar100_tk.demo import server; server.FIRST_PORT = {port}; runpy.run_path('app.py', run_name='__main__')"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "GRADIO_SERVER_NAME": "127.0.0.1"}
    environment |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", app],
        cwd=built,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "page is at" in line:
                break
        assert said.startswith(str(built)) and f"http://127.0.0.1:{port}" in said, said
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        response = connection.getresponse()
        page = response.read()
        assert response.status == 200 and b"classifies 32x32 images into 100 classes" in page
        assert b"Measured on 10,000 images of CIFAR-100 (test): top-1 accuracy 30.32 %" in page
        assert {(ID, "info"), (ID, "readme"), (ID, "resolve")} <= server.asked.keys()
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert "Traceback" not in process.communicate(timeout=60)[0] and process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_a_space_that_cannot_reach_the_hub_ends_with_a_sentence(tmp_path: Path) -> None:
    built = space.build("user/model", tmp_path / "space")
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "app.py"]
    ended = subprocess.run(command, cwd=built, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 8 and "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(
        "app.py: there is no folder user/model, and it could not be fetched"
    )
