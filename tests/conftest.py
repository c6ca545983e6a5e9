"""What every test stands on: no network, no file outside temporary folders, no GPU test where there is no GPU."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# Set before anything imports the Hugging Face libraries, which read these once. Subprocesses inherit them.
_CACHE = tempfile.mkdtemp(prefix="cifar100_tk-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{_CACHE}/huggingface", "XDG_CACHE_HOME": _CACHE}


@pytest.fixture(scope="session", autouse=True)
def _remove_the_cache() -> Iterator[None]:
    yield
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wants_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not wants_gpu:
        return
    import torch  # Takes seconds, so only when a GPU test has been collected.

    if not torch.cuda.is_available():
        for item in wants_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
