"""Where the browser tests leave their screenshots."""

from __future__ import annotations

import os
from pathlib import Path


def screenshot_folder(tmp_path: Path) -> Path:
    """Return the folder that CIFAR100_TK_SCREENSHOTS names, made if missing, or else the test's own."""
    folder = Path(os.environ.get("CIFAR100_TK_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
