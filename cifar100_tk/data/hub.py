"""Reads uoft-cs/cifar100 from the Hub or from the cache of `datasets`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, final

from cifar100_tk.data.rows import SPLITS, Names, RawBatch, Source
from cifar100_tk.data.table import COLUMNS, check_columns, decoded, names_in
from cifar100_tk.errors import DataError, HubError

if TYPE_CHECKING:
    from datasets import Dataset

REPOSITORY: Final = "uoft-cs/cifar100"
REVISION: Final = "aadb3af77e9048adbea6b47c21a81e47dd092ae5"
"""The pinned commit, so that later changes to the repository do not change a run's data."""
_PATIENCE: Final = 10.0
"""Seconds to wait for the Hub's first response."""


@final
class Hub(Source):
    """One split of `uoft-cs/cifar100`. Once written, the store is opened without contacting the Hub."""

    def __init__(self, split: str) -> None:
        assert split in SPLITS
        self.where = f"{REPOSITORY} ({split})"
        self._split = split
        self._loaded: Dataset | None = None

    def key(self) -> str:
        return f"hub-{REPOSITORY.replace('/', '-')}-{REVISION[:12]}-{self._split}"

    def num_rows(self) -> int:
        return len(self._dataset())

    def names(self) -> Names:
        return names_in(self._dataset().features.arrow_schema, self.where)

    def blocks(self) -> Iterator[RawBatch]:
        table = self._dataset().with_format("arrow")
        check_columns(self._dataset().features.arrow_schema, self.where)
        batches = (batch for part in table.iter(1000) for batch in part.select(list(COLUMNS)).to_batches())
        yield from decoded(batches, self.where)

    def _dataset(self) -> Dataset:
        if self._loaded is None:
            self._loaded = load(self._split)
        return self._loaded


def load(split: str) -> Dataset:
    """Load a split through `datasets`: from the Hub, or without a network from its own cache.

    The Hub gives the pinned revision. The cache of `datasets` is used whatever its revision; the identity names the
    images at every start. Raises HubError with what was tried and three alternatives.
    """
    # Takes over a second to import, and an already decoded store does not need it.
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            f"{REPOSITORY} requires the package datasets, which cannot be imported ({error}); pip install datasets, or "
            "use a local copy with --data.source PATH."
        ) from None

    unreachable = _unreachable()
    try:
        with _quietly(datasets, offline=unreachable is not None):
            if unreachable is None:
                print(f"Loading {REPOSITORY} ({split}) from the Hub ...", file=sys.stderr, flush=True)
            return datasets.load_dataset(REPOSITORY, revision=REVISION, split=split)
    except Exception as error:  # errors of several libraries, and every kind of network failure.
        reason = unreachable or f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
        raise HubError(_ways_on(reason)) from error


def _unreachable() -> str | None:
    """Contact the Hub once, without a download's minute of retries. Returns the reason it cannot be used, or None."""
    from huggingface_hub import HfApi, constants

    try:
        HfApi().dataset_info(REPOSITORY, timeout=_PATIENCE)
    except Exception as error:
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


@contextmanager
def _quietly(datasets: Any, *, offline: bool) -> Iterator[None]:
    """Hide the progress bars of `datasets` and, if `offline`, restrict it to its cache; restore its settings afterwards."""
    bars, level = datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    was_offline = datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_HUB_OFFLINE = offline or was_offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _ways_on(reason: str) -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return (
        f"{REPOSITORY} could not be loaded. Tried the decoded images in the cache (none), {endpoint} ({reason}) and "
        "the cache of datasets (nothing usable). Three alternatives:\n"
        "  1. On a machine with a network run `python -m cifar100_tk.data prepare --to FOLDER`, copy FOLDER here, and "
        "use --data.source FOLDER.\n"
        "  2. Set the environment variable HF_ENDPOINT to a mirror of the Hub that this machine reaches.\n"
        "  3. Try everything on the built-in images with --data.source shapes100."
    )
