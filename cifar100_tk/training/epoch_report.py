"""The report of an epoch: one line on the console, one in metrics.jsonl and the same figures in the trackers."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cifar100_tk.evaluation.metrics import Metrics
from cifar100_tk.progress import BOLD, GREEN, Progress, percent, style
from cifar100_tk.runs.run_folder import RunFolder
from cifar100_tk.training.plan import Plan
from cifar100_tk.training.state import TrainState

SPOKEN = {"top1": "top-1", "top5": "top-5"}
"""The figures of an evaluation that are printed, with their labels."""


@dataclass(frozen=True)
class EpochReport:
    """An epoch that has ended and is not yet reported."""

    step: int
    """Steps done at its end."""
    figures: dict[str, float]
    """The measured values, by their names in metrics.jsonl."""
    remark: str | None
    """A line to print."""

    def record(self, plan: Plan, state: TrainState, seconds: float) -> dict[str, float]:
        """Return all figures of the epoch. seconds: the run's wall time now."""
        steps_per_epoch = plan.pipeline.order.steps_per_epoch
        images = steps_per_epoch * plan.recipe.batch_size
        return {
            "train/loss": state.epoch_loss / steps_per_epoch,
            "train/lr": plan.lr(self.step - 1),
            "images_per_second": state.images_per_second,
            "images_per_second_overall": images / (seconds - state.reported_seconds),
        } | self.figures

    def write(
        self, folder: RunFolder, plan: Plan, progress: Progress, record: dict[str, float], seconds: float
    ) -> dict[str, float]:
        """Write a record to the console, metrics.jsonl and the trackers. Called on the main process only.

        Returns the line of metrics.jsonl.
        """
        epoch, epochs = plan.epochs_done(self.step), plan.recipe.epochs
        line = {"epoch": epoch, "step": self.step, "seconds": seconds} | record
        folder.log(line)
        plan.accelerator.log(record, step=self.step)
        figures = "".join(
            f"  {name.replace('/', ' ').replace(key, word)} {percent(value)}"
            for name, value in record.items()
            for key, word in SPOKEN.items()
            if name.endswith(key)
        )
        head = style(f"epoch {epoch:>{len(str(epochs))}}/{epochs}", BOLD)
        rates = f"loss {record['train/loss']:.4f}  lr {record['train/lr']:.3g}"
        figures = style(figures, GREEN) if figures else ""
        progress.line(f"{head}  {rates}  {record['images_per_second']:,.0f} images/s{figures}", self.step)
        return line


def named_figures(metrics: dict[str, Metrics], split: str) -> dict[str, float]:
    """Name figures as metrics.jsonl and TensorBoard do: test/top1 for the raw weights, test/ema_top1 for the average."""
    return {
        f"{split}/{'' if which == 'raw' else 'ema_'}{key}": value
        for which, measured in metrics.items()
        for key, value in asdict(measured).items()
        if key != "num_images"
    }
