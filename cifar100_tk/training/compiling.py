"""torch.compile as a run needs it: as many shapes as it meets, and code that the next process finds compiled."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from cifar100_tk.data.store import cache_folder

MAX_GRAPHS = 256
"""Graphs of one forward function in a process; at torch's own 8, the next shape or network would run eagerly."""

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def compile_network(net: nn.Module) -> None:
    """Compile a network in place, so that its parameters keep their bare names; a graph for each shape."""
    allow_compiling()
    net.compile(dynamic=False)


def allow_compiling() -> None:
    """Prepare this process for compiling, whoever asks for it: us, or Accelerate by `--dynamo_backend`."""
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = MAX_GRAPHS
    # Importing torch._dynamo sets the variable to torch's own folder; any other is somebody's choice.
    if os.environ.get(_VARIABLE) in (None, os.path.abspath(default_cache_dir())):
        os.environ[_VARIABLE] = str(_code_folder())


def _code_folder() -> Path:
    """Return where compiled code is kept for the next process: a folder that nobody else can write to.

    torch reads pickles and machine code from it, and takes a fixed name under /tmp otherwise, which is lost with the
    container and which another user could have made first. For the same reason no code travels with a run folder, as
    `torch.compiler.save_cache_artifacts` would have it: those files are pickles too.
    """
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        ours = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
        if ours and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="cifar100_tk-compiled-"))
