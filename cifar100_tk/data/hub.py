"""Reads uoft-cs/cifar100 and uoft-cs/cifar10 from the Hub or from the cache of `datasets`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from cifar100_tk.data.published import CIFAR100, Published
from cifar100_tk.data.rows import SPLITS, Names, RawBatch, Source
from cifar100_tk.data.table import check_columns, decoded, names_in
from cifar100_tk.errors import DataError, HubError

if TYPE_CHECKING:
    from datasets import Dataset

_PATIENCE: Final = 10.0
"""Seconds to wait for the Hub's first response."""


@final
class Hub(Source):
    """One split of a published data set. Once written, the store is opened without contacting the Hub."""

    def __init__(self, split: str, published: Published) -> None:
        assert split in SPLITS
        self.where = f"{published.repository} ({split})"
        self._split, self._published = split, published
        self._loaded: Dataset | None = None

    def key(self) -> str:
        return f"hub-{self._published.repository.replace('/', '-')}-{self._published.revision[:12]}-{self._split}"

    def num_rows(self) -> int:
        return len(self._dataset())

    def names(self) -> Names:
        return names_in(self._dataset().features.arrow_schema, self.where, self._published)

    def unknown(self) -> str:
        published = self._published
        # The cache of `datasets` keeps each commit in a folder of its name.
        folders = [Path(file["filename"]).parts for file in self._dataset().cache_files]
        pinned = bool(folders) and all(published.revision in parts for parts in folders)
        return published.sentences.get(self._split, published.unknown) if pinned else published.unknown

    def blocks(self) -> Iterator[RawBatch]:
        table = self._dataset().with_format("arrow")
        columns = self._published.columns
        check_columns(self._dataset().features.arrow_schema, self.where, columns)
        batches = (batch for part in table.iter(1000) for batch in part.select(list(columns)).to_batches())
        yield from decoded(batches, self.where, columns)

    def _dataset(self) -> Dataset:
        if self._loaded is None:
            self._loaded = load(self._split, self._published)
        return self._loaded


def load(split: str, published: Published) -> Dataset:
    """Load a split through `datasets`: from the Hub, or without a network from its own cache.

    The Hub gives the pinned revision. The cache of `datasets` is used whatever its revision; the identity names the
    images at every start. Raises HubError with what was tried and three alternatives.
    """
    # Takes over a second to import, and an already decoded store does not need it.
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            f"{published.repository} requires the package datasets, which cannot be imported ({error}); pip install datasets, or "
            "use a local copy with --data.source PATH."
        ) from None

    repository, unreachable = published.repository, _unreachable(published)
    try:
        with _quietly(datasets, offline=unreachable is not None):
            if unreachable is None:
                print(f"Loading {repository} ({split}) from the Hub ...", file=sys.stderr, flush=True)
            return datasets.load_dataset(repository, revision=published.revision, split=split)
    except Exception as error:  # errors of several libraries, and every kind of network failure.
        reason = unreachable or f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
        raise HubError(_ways_on(reason, published)) from error


def _unreachable(published: Published) -> str | None:
    """Contact the Hub once, without a download's minute of retries. Returns the reason it cannot be used, or None."""
    from huggingface_hub import HfApi, constants

    try:
        HfApi().dataset_info(published.repository, timeout=_PATIENCE)
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


def _ways_on(reason: str, published: Published) -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    ways = [
        f"On a machine with a network run `{published.preparing}`, copy FOLDER here, and use --data.source FOLDER.",
        "Set the environment variable HF_ENDPOINT to a mirror of the Hub that this machine reaches.",
    ]
    if published is CIFAR100:
        ways.append("Try everything on the built-in images with --data.source shapes100.")
    return (
        f"{published.repository} could not be loaded. Tried the decoded images in the cache (none), {endpoint} ({reason}) and "
        f"the cache of datasets (nothing usable). {('Two', 'Three')[len(ways) - 2]} alternatives:\n"
        + "\n".join(f"  {number}. {way}" for number, way in enumerate(ways, 1))
    )
