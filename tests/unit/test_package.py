"""What `import cifar100_tk` does and does not do, and that the test run itself checks shapes."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import cifar100_tk
from cifar100_tk.optim import CrossEntropy


def run_python(program: str) -> str:
    """Run a program in a fresh interpreter that treats warnings as this test run does; returns what it printed."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_import_is_light() -> None:
    # `--help` of every command pays for whatever this loads; importing timm alone takes seconds.
    heavy = "{'torch', 'timm', 'numpy', 'datasets', 'accelerate', 'tyro'}"
    assert run_python(f"import sys, cifar100_tk; print(sorted({heavy} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize(("repo", "said"), [("a/b/c", "a/b/c is not a repository id"), ("a/b", "no Hub token found")])
def test_a_push_that_cannot_be_is_refused_before_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repo: str, said: str
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    heavy = "{'torch', 'timm', 'accelerate'}"
    program = (
        "import contextlib, io, sys; from cifar100_tk.hub.__main__ import main; said = io.StringIO()\n"
        f"with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit): main(['push', 'runs/a', {repo!r}])\n"
        f"print({said!r} in said.getvalue(), sorted({heavy} & set(sys.modules)))"
    )
    assert run_python(program) == "True []"


@pytest.mark.parametrize(
    "imports",
    [
        "import cifar100_tk, timm; create_model = timm.create_model",
        "import timm, cifar100_tk; create_model = timm.create_model",
        "import cifar100_tk.models; from timm import create_model",
    ],
)
def test_timm_knows_our_architectures_whichever_is_imported_first(imports: str) -> None:
    assert run_python(f"{imports}\nprint(create_model('resnet10_cifar_w16').num_classes)") == "100"


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cifar100_tk' has no attribute 'laod'"):
        getattr(cifar100_tk, "laod")  # noqa: B009  # `cifar100_tk.laod` is what mypy and ruff would both stop.


def test_version_is_the_installed_one() -> None:
    try:
        installed = version("cifar100_tk")
    except PackageNotFoundError:
        pytest.skip("needs the package installed, as by pip install -e .")
    assert installed == cifar100_tk.__version__


def test_shapes_are_checked_while_the_tests_run() -> None:
    # If this fails, nothing checks the annotations: see --jaxtyping-packages in setup.cfg.
    loss = CrossEntropy(smoothing=0)  # An int where a float is annotated passes, as it does for mypy.
    with pytest.raises(TypeCheckError, match="targets"):
        loss(torch.zeros(2, 100), torch.zeros(3, 100))


def test_the_tree_in_the_readme_names_every_module_and_no_other() -> None:
    root = Path(__file__).parents[2]
    tree = (root / "README.md").read_text().split("## The tree")[1].split("```")[1]
    package = tree.split("cifar100_tk/\n")[1].split("accelerate_configs/")[0]
    found = {path.name for path in (root / "cifar100_tk").glob("*.py")} - {"__init__.py"}
    found |= {f"{path.parent.name}/" for path in (root / "cifar100_tk").glob("*/__init__.py")}
    assert len(found) > 20 and set(re.findall(r"(?<![\w/])\w+(?:\.py|/(?= ))", package)) == found
    recipes = {path.name for path in (root / "recipes").glob("*.py")}
    assert recipes and set(re.findall(r"\w+\.py", tree.split("cifar100_tk/\n")[0])) == recipes
