"""The content of recipe.json, and what of it must be unchanged for a run to resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cifar100_tk.data import Split
from cifar100_tk.errors import ConfigError
from cifar100_tk.models.pretrained import Pretrained
from cifar100_tk.recipe import Recipe, flatten, to_json
from cifar100_tk.runs.files import read_recipe
from cifar100_tk.runs.lengths import Earlier, extends, read_earlier, record
from cifar100_tk.storage.json_files import Json

ABSENT = "absent"

RESUME_KEYS = frozenset(
    {
        *("type", "data", "model", "augment", "normalize", "cutout", "mix", "loss", "optimizer", "schedule"),
        *("resize", "whitening", "sam", "lookahead", "image_size", "finetune", "pretrained"),
        *("distillation", "teacher", "extended"),
        *("batch_size", "epochs", "clip_grad_norm", "ema", "seed", "limit_train_batches", "images"),
    }
)
"""Recipe fields and run options in recipe.json, including nested ones, that must be unchanged for a run to resume.

`images` is the identity of the images by split, `teacher` that of the network learned from and `pretrained` that of the weights
that training starts from, each independent of where they are. `extended` lists the lengths that
the run had before --extend-to.
"""
RUNTIME_KEYS = frozenset(
    {
        *("output_dir", "resume", "dry_run", "contact_sheet", "limit_eval_batches", "pipeline", "workers", "threads"),
        *("micro_batch", "compile", "sync_batchnorm", "timeout_minutes", "eval_every", "checkpoint_every", "keep"),
        *("log_every", "log_with", "project_name", "quiet"),
        *("deterministic", "precision", "data.source", "seeds", "reference"),
        *("distillation.teacher", "distillation.revision", "extend_to", "keep_best"),
        "model.pretrained",
    }
)
"""Fields that may change when a run resumes, because they do not affect what is learned."""


def image_fingerprints(*splits: Split) -> Json:
    """Return the `images` of recipe.json: the identity of each split; a held-out part counts as train."""
    return {"train" if split.name == "holdout" else split.name: vars(split.identity) for split in splits}


def run_config(
    recipe: Recipe,
    options: Any,
    *splits: Split,
    teacher: Json | None = None,
    pretrained: Pretrained | None = None,
    earlier: tuple[Earlier, ...] = (),
) -> Json:
    """Return the content of recipe.json for a run.

    options: the run options. splits: the splits, if they are open. teacher: the identity of the network that is learned
    from, and pretrained: the weights that training starts from, if they are loaded. earlier: the lengths that the run had before
    it was extended.
    """
    written: Json = to_json(recipe) | {name: value for name, value in vars(options).items() if name in RESUME_KEYS}
    opened = {"images": image_fingerprints(*splits)} if splits else {}
    opened |= {} if pretrained is None else {"pretrained": pretrained.record}
    return written | opened | ({"teacher": teacher} if teacher else {}) | record(earlier)


def refuse_other_recipe(path: Path, recipe: Json) -> None:
    """Raise ConfigError unless a folder holds a run of this recipe, or one that it extends."""
    recorded = read_recipe(path)
    length = {name: recipe[name] for name in ("epochs", "extended")} if extends(recipe, recorded) else {}
    old, new = flatten(recorded | length), flatten(recipe)
    unread = new.get("model.pretrained") is not None and "pretrained" not in recipe
    different = [
        f"{name} was {old.get(name, ABSENT)!r} and is {new.get(name, ABSENT)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and name not in RUNTIME_KEYS
        and not name.startswith(("images.", "teacher.", "extended."))
        and not (name.startswith("pretrained.") and (unread or name != "pretrained.sha256"))
    ]
    if different:
        more = _more_epochs(recorded, recipe) if len(different) == 1 else ""
        raise ConfigError(
            f"{path} holds a run of another recipe: {'; '.join(different)}. {more}Choose another --output-dir."
        )
    for split in recipe.get("images", {}):
        _refuse_other_images(path, split, old, new)
    if "teacher" in recipe:
        _refuse_other_teacher(path, old, new)


def _more_epochs(recorded: Json, recipe: Json) -> str:
    """Return the sentence on --extend-to for a run of another length, or ""."""
    was, now = recorded.get("epochs"), recipe.get("epochs")
    if not isinstance(was, int) or not isinstance(now, int) or was == now:
        return ""
    if now > was:
        return f"--extend-to {now} continues it to {now} epochs. "
    return f"--extend-to {was} resumes it at its length of {was} epochs. " if read_earlier(recorded) else ""


def _refuse_other_images(path: Path, split: str, old: Json, new: Json) -> None:
    """Raise ConfigError for other images. old, new: flattened recipes. The order counts: a run batches and draws by row."""
    count, sha256, rows_sha256 = (f"images.{split}.{name}" for name in ("count", "sha256", "rows_sha256"))
    if old.get(rows_sha256) != new[rows_sha256]:
        was, now = (
            f"{flat.get(count, ABSENT)} of {flat.get('data.source', ABSENT)} (sha256 {str(flat.get(sha256, ABSENT))[:16]})"
            for flat in (old, new)
        )
        order = ", the same in another order" * (old.get(sha256) == new[sha256])
        raise ConfigError(
            f"{path} holds a run with other {split} images: they were {was} and are {now}{order}. "
            "Give the --data.source with the original images, or choose another --output-dir."
        )


def _refuse_other_teacher(path: Path, old: Json, new: Json) -> None:
    """Raise ConfigError for another teacher, by its weights, architecture and preprocessing. old, new: flattened recipes."""
    names = [name for name in new if name.startswith("teacher.") and name != "teacher.name"]
    if any(old.get(name) != new[name] for name in names):
        was, now = (
            f"{flat.get('distillation.teacher')} ({flat.get('teacher.architecture', ABSENT)}, sha256 "
            f"{str(flat.get('teacher.sha256', ABSENT))[:16]})"
            for flat in (old, new)
        )
        raise ConfigError(
            f"{path} holds a run with another teacher: it was {was} and is {now}. Give the --distillation.teacher with the "
            "original weights, or choose another --output-dir."
        )
