"""A recipe of the tests in two seeds, as a recipe file runs it."""

import sys

from runs import TWICE

from cifar100_tk.train import main

sys.argv[1:] = ["--seeds", "2", "--epochs", "1", "--output-dir", sys.argv[1]]
main(TWICE)
