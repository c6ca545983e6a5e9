"""Opening a run: its folder, the checkpoint that it resumes from, and the lines printed about both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cifar100_tk.distributed.environment import environment
from cifar100_tk.recipe import flatten
from cifar100_tk.runs.run_folder import RunFolder, open_run
from cifar100_tk.storage.json_files import Json
from cifar100_tk.training import tensorboard
from cifar100_tk.training.open_run import on_main
from cifar100_tk.training.plan import Plan
from cifar100_tk.training.state import TrainState
from cifar100_tk.training.trackers import TENSORBOARD, RunTracker


def resume(plan: Plan, path: Path, recipe: dict[str, Any], state: TrainState) -> RunFolder | None:
    """Open a new or an unfinished run, and restore its newest checkpoint on every process. Every rank takes part.

    recipe: the content of recipe.json. Returns the open, locked folder on the main process, None on the others. Raises a
    CifarError, on every process, where the folder must not or cannot be written to.
    """
    run: RunFolder | None = None

    def opened() -> None:
        nonlocal run
        run = open_run(path, recipe, plan.options.resume)
        _restore(plan, run, state)

    try:
        on_main(plan.accelerator, opened)
        state.share()
    except BaseException:
        if run is not None:
            run.lock.release()
        raise
    return run


def _restore(plan: Plan, run: RunFolder, state: TrainState) -> None:
    """Restore the run's checkpoint on the main process, and truncate the run's files to it."""
    now = environment(plan.accelerator, compiled=plan.compiles)
    run.set_environment(now)
    for complaint in run.complaints:
        print(f"  skipped        {complaint}", flush=True)
    if found := run.checkpoint:
        state.restore(found.step, found.tensors, found.facts)
        if not plan.options.quiet:
            print(f"  resumes from   step {found.step:,}, {found.path}", flush=True)
        _print_changed_environment(found.facts.get("environment", {}), now)
    # An epoch that has ended and has not been reported yet will be.
    unreported = state.epoch_loss and plan.ends_epoch(state.step - 1)
    reported = state.step - 1 if unreported else state.step
    if damaged := run.forget_after(reported):
        files = "metrics.jsonl or steps.jsonl"
        print(f"  note           dropped {damaged} unreadable line{'s' * (damaged > 1)} of {files}")
    if not state.step:
        run.begin()
    for tracker in plan.accelerator.log_with:
        if isinstance(tracker, RunTracker):
            tracker.attach(run.path, plan.options.project_name, tensorboard.numbers_of(plan.recipe))
    # TensorBoard's files are in the folder of this name; the others have their project from above.
    plan.accelerator.init_trackers(TENSORBOARD, init_kwargs={TENSORBOARD: {"purge_step": reported + 1}})
    if not state.step and TENSORBOARD in plan.options.log_with:
        tensorboard.show_recipe(tensorboard.writer(plan.accelerator), plan)
    run.set_status("running", step=state.step)


def _print_changed_environment(before: Json, now: Json) -> None:
    # The index of a device does not matter, its name includes the threads, and the platform does not affect the numbers.
    old, new = (flatten(facts | {"device": re.sub(r":\d+", "", str(facts.get("device")))}) for facts in (before, now))
    compared = sorted((old.keys() & new.keys()) - {"threads", "platform"} if before else [])
    if changed := [f"{name} was {old[name]} and is {new[name]}" for name in compared if old[name] != new[name]]:
        print(
            f"  note           {'; '.join(changed)}: batches and learning rates stay the same, but sums are rounded differently, "
            "so the weights will not match those of an unchanged run bit for bit"
        )
