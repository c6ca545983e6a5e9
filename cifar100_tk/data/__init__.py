"""CIFAR-100 and CIFAR-10 from the Hub or a local copy, and built-in images, decoded once into arrays that all processes share."""

from cifar100_tk.data.dataset import Cifar10, Cifar100, Data, Split, SplitName, data_of_classes, eval_split, source_name
from cifar100_tk.data.fingerprint import Fingerprint
from cifar100_tk.data.labels import COARSE_NAMES, COARSE_OF_FINE, FINE_NAMES

__all__ = [
    "COARSE_NAMES",
    "COARSE_OF_FINE",
    "FINE_NAMES",
    "Cifar10",
    "Cifar100",
    "Data",
    "Fingerprint",
    "Split",
    "SplitName",
    "data_of_classes",
    "eval_split",
    "source_name",
]
