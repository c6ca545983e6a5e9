"""TensorBoard shows the recipe and augmented images once, and compares runs by number and result."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from runs import Bell, cpu, lines, newest, ring_at, run, tiny
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer  # type: ignore[import-untyped]
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]
from tensorboard.context import RequestContext  # type: ignore[import-untyped]
from tensorboard.plugins.base_plugin import TBContext  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups  # type: ignore[import-untyped]

from cifar100_tk import report
from cifar100_tk.data import Cifar100
from cifar100_tk.errors import StoppedError
from cifar100_tk.optim import SGD
from cifar100_tk.recipe import flatten, to_json
from cifar100_tk.training.tensorboard import numbers_of

pytestmark = pytest.mark.usefixtures("on_cpu")

RECIPE = tiny(augment=(Bell(),))
HELD = Cifar100(source="shapes100", shapes100_rows=(200, 100), holdout=100)
AT_START = {"recipe/text_summary", "train/images", "_hparams_/session_start_info"}
AT_END = {"test/confusion", "result/top1", "result/top5", "result/loss", "_hparams_/session_end_info"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three runs: whole, other with half its learning rate, and held, which evaluates held-out images."""
    folder = tmp_path_factory.mktemp("runs")
    with cpu():
        run(folder / "whole", RECIPE)
        run(folder / "other", dataclasses.replace(RECIPE, optimizer=SGD(lr=0.1, weight_decay=5e-4)))
        run(folder / "held", dataclasses.replace(RECIPE, data=HELD))
    return folder


def shown(path: Path) -> EventAccumulator:
    """What TensorBoard makes of a run."""
    return EventAccumulator(str(path / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()


def written(path: Path) -> Counter[str]:
    """How often each name is in the files, the curves apart."""
    files = sorted((path / "tensorboard").iterdir())
    assert files and all(file.name.startswith("events") for file in files)
    events = (event for file in files for event in EventFileLoader(str(file)).Load())
    return Counter(value.tag for event in events for value in event.summary.value if value.tag in AT_START | AT_END)


def test_every_number_of_the_recipe_is_in_the_text(runs: Path) -> None:
    (event,) = shown(runs / "whole").Tensors("recipe/text_summary")
    said = event.tensor_proto.string_val[0].decode()
    numbers = {name: value for name, value in flatten(to_json(RECIPE)).items() if value is not None}
    head, rule, *rows = said.splitlines()
    assert head.count("|") == rule.count("|") == 3 and event.step == 0
    assert rows == [f"| {name} | {value} |" for name, value in numbers.items()] and len(rows) > 30
    assert "| optimizer.lr | 0.2 |" in rows
    mine = dataclasses.replace(RECIPE, data=Cifar100(source="/home/somebody/images"))
    assert numbers_of(mine)["data.source"] == "images" and numbers_of(RECIPE)["data.source"] == "shapes100"


def test_the_images_are_those_of_the_first_batch(runs: Path) -> None:
    events = shown(runs / "whole")
    assert set(events.Tags()["images"]) == {"train/images", "test/confusion"}
    (first,) = events.Images("train/images")
    assert first.step == 0
    sheet = np.asarray(PIL.Image.open(io.BytesIO(first.encoded_image_string)))
    assert sheet.shape[2] == 3 and len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000


def test_the_confusion_matrix_is_that_of_the_report(runs: Path, tmp_path: Path) -> None:
    (shown_image,) = shown(runs / "whole").Images("test/confusion")
    assert shown_image.step == 10 and shown_image.width >= 1000  # Names of 15 pixels are legible.
    report.build([runs / "whole"], tmp_path / "report")
    drawn = np.asarray(PIL.Image.open(tmp_path / "report" / "confusion.png"))
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(shown_image.encoded_image_string))), drawn)


def test_hparams_compares_runs_by_what_differs_and_by_their_last_figures(runs: Path) -> None:
    found = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(runs)).Reload()
    provider = data_provider.MultiplexerDataProvider(found, str(runs))
    context, request_context = backend_context.Context(TBContext(data_provider=provider)), RequestContext()
    experiment = context.experiment_from_metadata(
        request_context, "", True, context.hparams_metadata(request_context, ""), []
    )
    assert {info.name for info in experiment.hparam_infos if info.differs} == {
        "data.holdout",
        "data.shapes100_rows.0",
        "optimizer.lr",
    }
    assert {"seed", "batch_size", "mix.mixup_alpha"} < {info.name for info in experiment.hparam_infos}
    succeeded = [api_pb2.STATUS_SUCCESS]
    request = api_pb2.ListSessionGroupsRequest(slice_size=9, allowed_statuses=succeeded, include_metrics=True)
    for info in experiment.metric_infos:
        request.col_params.add(metric=info.name)
    groups = list_session_groups.Handler(request_context, context, "", request).run().session_groups
    values = {
        group.name: (
            group.hparams["optimizer.lr"].number_value,
            {value.name.tag: value.value for value in group.metric_values},
        )
        for group in groups
    }
    assert values.keys() == {"whole/tensorboard", "other/tensorboard", "held/tensorboard"}
    for name, lr, split in (("whole", 0.2, "test"), ("other", 0.1, "test"), ("held", 0.2, "holdout")):
        given, figures = values[f"{name}/tensorboard"]
        last = lines(runs / name)[-1]
        assert given == lr
        assert figures["train/loss"] == pytest.approx(last["train/loss"])
        for figure in ("top1", "top5", "loss"):
            assert (
                figures[f"{split}/{figure}"] == figures[f"result/{figure}"] == pytest.approx(last[f"{split}/{figure}"])
            )


@pytest.mark.parametrize("batch", [1, 7, 10])
def test_a_run_that_goes_on_shows_each_once(batch: int, runs: Path, tmp_path: Path) -> None:
    ring_at[:] = [batch]
    with pytest.raises(StoppedError):
        run(tmp_path, RECIPE)
    # What was shown before the stop is not lost with the process.
    assert set(written(tmp_path)) == AT_START
    run(tmp_path, RECIPE)
    assert written(tmp_path) == written(runs / "whole") == dict.fromkeys(AT_START | AT_END, 1)


def test_a_run_that_begins_again_shows_only_what_is_new(runs: Path, tmp_path: Path) -> None:
    # Killed before its first checkpoint.
    shutil.copytree(runs / "whole" / "tensorboard", tmp_path / "tensorboard")
    shutil.copy(runs / "whole" / "recipe.json", tmp_path)
    run(tmp_path, RECIPE)
    assert newest(tmp_path).step == 10 and written(tmp_path) == dict.fromkeys(AT_START | AT_END, 1)
    assert [event.step for event in shown(tmp_path).Scalars("train/loss")] == [5, 10]
