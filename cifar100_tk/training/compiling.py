"""torch.compile for a run: one graph per input shape, and a cache of compiled code that later processes reuse."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from cifar100_tk.data.store import cache_folder

MAX_GRAPHS = 256
"""Graphs per forward function in a process; beyond torch's default of 8, further shapes or networks would run eagerly."""

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def compile_network(net: nn.Module) -> None:
    """Compile a network in place, so that its parameters keep their names; one graph per input shape."""
    allow_compiling()
    net.compile(dynamic=False)


def allow_compiling() -> None:
    """Prepare this process for compiling, whether by us or by Accelerate's `--dynamo_backend`."""
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = MAX_GRAPHS
    # Importing torch._dynamo sets the variable to torch's own folder; any other value was set by the user.
    if os.environ.get(_VARIABLE) in (None, os.path.abspath(default_cache_dir())):
        os.environ[_VARIABLE] = str(_code_folder())


def _code_folder() -> Path:
    """Return the folder that caches compiled code for later processes; nobody else can write to it.

    torch reads pickles and machine code from it. Its default is a fixed name under /tmp, which is lost with the container
    and which another user could have created first. For the same reason a run folder does not include compiled code
    (`torch.compiler.save_cache_artifacts`): those files are pickles too.
    """
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="cifar100_tk-compiled-"))
