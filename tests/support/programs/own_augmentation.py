"""A recipe with an augmentation of its own, which fails in a loader worker in the way that OWN says."""

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import PIL.Image
from runs import TINY
from torch.utils.data import get_worker_info

from cifar100_tk.augment import Augmentation
from cifar100_tk.draws import ImageDraws
from cifar100_tk.train import main

HOW = os.environ["OWN"]


@final
@dataclass(frozen=True, kw_only=True)
class Own(Augmentation):
    """Changes nothing, or fails."""

    def draw(self, draws: ImageDraws) -> Any:
        Path("workers", str(os.getpid())).touch()
        if HOW == "draws an array":
            return draws.uniform(1)
        if HOW == "raises while another is stuck":
            worker = get_worker_info()
            assert worker is not None
            if worker.id:
                Path("stuck").touch()
                time.sleep(600)
            while not Path("stuck").exists():
                time.sleep(0.01)
            raise KeyError("a bug in one worker")
        return {}

    def apply(self, image: PIL.Image.Image, row: Any) -> PIL.Image.Image:
        if HOW == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return image.resize((16, 32)) if HOW == "resizes" else image


if __name__ == "__main__":
    main(replace(TINY, augment=(Own(),)))
