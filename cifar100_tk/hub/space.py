"""Builds a Hugging Face Space for a published model: the page of `cifar100_tk.demo` in a self-contained folder."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Final

from cifar100_tk.demo.server import gradio_version
from cifar100_tk.errors import ConfigError
from cifar100_tk.storage import atomic

REQUIREMENTS: Final = (
    "torch>=2.10",
    "torchvision>=0.25",
    "timm>=1.0.31",
    "huggingface_hub>=1.0",
    "safetensors>=0.6",
    "tyro>=1.0",
    "jaxtyping>=0.3.3",
    "tqdm>=4.66.3",
    "wrapt>=1.16",
    "filelock>=3.15",
    "Pillow>=12.3",
    "numpy>=2.0",
)
"""Requirements of the page, with the package's minimum versions; training dependencies are left out."""
CPU_TORCH: Final = "https://download.pytorch.org/whl/cpu"
"""Index of torch builds without CUDA, which pip prefers and which are a tenth of the size."""
SHORT_DESCRIPTION: Final = "Drop an image and see how the network classifies it"
"""At most 60 characters, a limit of the Hub."""
HUB_ID: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def build(
    model_id: str,
    to: Path,
    *,
    revision: str | None = None,
    title: str | None = None,
    license: str = "apache-2.0",
    register: Path | None = None,
    examples: Path | None = None,
) -> Path:
    """Write the folder of a Space that serves the page of a published model, and return it.

    model_id: USER/MODEL on the Hub; nothing is fetched. to: a folder that does not exist yet. revision: branch, tag or commit of
    the model. title: of the Space; default: the name of the model. license: of the Space, as a Hub identifier. register:
    a Python file that registers a custom network with timm, copied into the Space. examples: a folder of example images,
    copied into the Space.

    The folder holds `app.py`, `README.md` with the front matter that the Hub reads, `requirements.txt`, and a copy of
    this package, which is not on PyPI and which the Hub could not install from the folder: it installs requirements
    before it copies the folder. `python app.py` in it serves the page as the Hub would. Raises ConfigError if the id is
    invalid, the folder exists or Gradio is missing; DataError if an example is not an image; DiskError, leaving nothing
    behind, if the folder cannot be written.
    """
    if HUB_ID.fullmatch(model_id) is None:
        raise ConfigError(f"{model_id} is not a Hub id; pass a published model such as USER/MODEL.")
    if to.exists() or to.is_symlink():
        raise ConfigError(f"{to} already exists; choose another --to, or remove it first.")
    gradio = gradio_version()
    files = _package() | {
        "app.py": _app(model_id, revision, register, examples).encode(),
        "README.md": _readme(model_id, revision, title, license, gradio).encode(),
        "requirements.txt": _requirements(gradio).encode(),
    }
    if register is not None:
        files["register.py"] = _content(register, "--register")
    if examples is not None:
        from cifar100_tk.data.image_files import open_image
        from cifar100_tk.demo.examples import images_in

        for path in images_in(examples):
            open_image(path)  # Rejects files that are not images despite their name.
            files[f"examples/{path.name}"] = path.read_bytes()
    atomic.write_folder(to, files)
    return to


def _app(model_id: str, revision: str | None, register: Path | None, examples: Path | None) -> str:
    given = [f"model={json.dumps(model_id)}"]
    given += [f"revision={json.dumps(revision)}"] if revision else []
    given += ['register=HERE / "register.py"'] if register else []
    given += ['examples=HERE / "examples"'] if examples else []
    return (
        f'"""The page of {model_id}: drop an image and see how the network classifies it."""\n\n'
        "from pathlib import Path\n\n"
        "from cifar100_tk.demo.server import DemoOptions, serve\n"
        "from cifar100_tk.errors import exit_on_error\n\n"
        "HERE = Path(__file__).parent\n\n"
        'if __name__ == "__main__":\n'
        '    with exit_on_error("app.py"):\n'
        f"        serve(DemoOptions({', '.join(given)}))\n"
    )


def _readme(model_id: str, revision: str | None, title: str | None, license: str, gradio: str) -> str:
    from huggingface_hub import SpaceCardData

    files = "config.json,model.safetensors,README.md"
    # Only commits can be preloaded; other revisions are downloaded when the page starts.
    pinned = revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None
    preload = [f"{model_id} {files}{f' {revision}' if pinned else ''}"] if pinned or revision is None else None
    name = title or model_id.split("/")[1]
    front = SpaceCardData(
        title=name,
        emoji="🔍",
        colorFrom="indigo",
        colorTo="pink",
        sdk="gradio",
        sdk_version=gradio,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license=license,
        short_description=SHORT_DESCRIPTION,
        models=[model_id],
        tags=["image-classification", "cifar100_tk"],
        preload_from_hub=preload,
    )
    body = (
        f"# {name}\n\nDrop an image and see how "
        f"[{model_id}](https://huggingface.co/{model_id}) classifies it: the network's input, the five most likely classes, "
        "and a class activation map.\n\nTo serve the same page locally, run `python app.py` after "
        "`pip install -r requirements.txt`.\n"
    )
    return f"---\n{front.to_yaml()}\n---\n\n{body}"


def _requirements(gradio: str) -> str:
    return "\n".join([f"--extra-index-url {CPU_TORCH}", f"gradio=={gradio}", *REQUIREMENTS]) + "\n"


def _package() -> dict[str, bytes]:
    """Return the files of this package for the Space, with its license if available."""
    root = Path(__file__).parents[1]
    paths = sorted(path for path in root.rglob("*.*") if path.suffix in (".py", ".png"))
    files = {f"{root.name}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in paths}
    files[f"{root.name}/py.typed"] = b""
    license = root.parent / "LICENSE"
    return files | ({"LICENSE": license.read_bytes()} if license.is_file() else {})


def _content(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read ({error.strerror or error}).") from error
