"""The recipe of fine-tuning, from the weights that are named first."""

import sys
from pathlib import Path

from components import fine_tuned

from cifar100_tk.train import main

main(fine_tuned(Path(sys.argv.pop(1))))
