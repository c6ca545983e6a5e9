"""The card says of each figure what it is of, the Hub's own reader takes its front matter, and what people wrote stays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from cifar100_tk.errors import DataError
from cifar100_tk.evaluation.scores import counted, plain
from cifar100_tk.hub import card
from cifar100_tk.hub.card_data import CardData, installed_from, of_folder, trained_on

TEST_IMAGES = "these are the CIFAR-100 test images"
TRAIN_IMAGES = "these are the CIFAR-100 training images"


def recipe(source: str = "hub", holdout: int = 0) -> dict[str, Any]:
    return {
        "type": "Recipe",
        "data": {
            "type": "Cifar100",
            "source": source,
            "holdout": holdout,
            "holdout_seed": 3,
            "shapes100_rows": [50_000, 10_000],
        },
        "model": {"type": "TimmModel", "name": "resnet50_cifar"},
        "augment": [{"type": "RandomResizedCrop", "scale": [0.8, 1.0]}, {"type": "Flip", "p": 0.5}],
        "optimizer": {"type": "SGD", "lr": 0.1, "nesterov": True},
        "ema": None,
        "epochs": 200,
        "seed": 7,
        "images": {},
    }


def measured(images: str = TEST_IMAGES, num_images: int = 10_000, **others: Any) -> dict[str, Any]:
    """What is measured of a network of two classes."""
    confusion = [[4645, 355], [376, 3500]]
    scores = counted(torch.tensor(confusion), [5000, 5000], ("apple", "aquarium_fish"), ("fruit", "fruit"))
    result = {
        "model": "resnet50",
        "source": "hub",
        "split": "test",
        "images_per_second": 1000.0,
        "images": images,
        "num_parameters": 23_705_252,
        "precision": "bf16",
        "weights": "raw",
        "flip": False,
        "top5": 0.957,
        "loss": 0.8012345678,
        "ece": 0.0412,
        **dict.fromkeys(("temperature", "temperature_fitted_on", "loss_scaled", "ece_scaled")),
        "confusion": confusion,
    }
    derived = {name: plain(value) for name, value in scores.items()}
    return result | derived | {"num_images": num_images} | others


def facts(recipe: dict[str, Any] | None = None, **evaluations: dict[str, Any]) -> CardData:
    return CardData(
        architecture="resnet50_cifar",
        recipe=recipe or globals()["recipe"](),
        evaluations=evaluations or {"test": measured()},
        environment={
            "versions": {"torch": "2.15.0"},
            "device": "cuda:0 (H200)",
            "num_processes": 2,
            "precision": "bf16",
        },
        seconds=444.0,
        images=("report/confusion.png", "report/curves.png"),
        checked="Measured again: 8,145 of 10,000.",
    )


def results(text: str) -> list[EvalResult]:
    """The figures as the Hub reads them."""
    name, found = model_index_to_eval_results(front(text)["model-index"])
    assert name == "resnet50_cifar" and found
    return found


def front(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    data: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return data


def test_the_hubs_reader_takes_the_front_matter_and_finds_each_figure_with_its_conditions() -> None:
    text = card.write(facts())
    data = ModelCard(text).data
    assert [data[key] for key in ("license", "library_name", "pipeline_tag")] == [
        "apache-2.0",
        "timm",
        "image-classification",
    ]
    assert data["datasets"] == ["uoft-cs/cifar100"] and data["metrics"] == ["accuracy"]
    assert data["tags"] == ["image-classification", "timm", "cifar100_tk", "cifar100"]
    found = results(text)
    assert {(r.metric_name, r.metric_type, r.metric_value) for r in found} == {
        ("top-1 accuracy", "accuracy", 0.8145),
        ("top-5 accuracy", "accuracy", 0.957),
        ("top-1 accuracy of the 20 super-classes", "accuracy", 0.8876),
        ("expected calibration error, 15 bins", "expected_calibration_error", 0.0412),
        ("cross-entropy in nats", "cross_entropy", 0.801235),
    }
    for result in found:
        assert (result.dataset_type, result.dataset_name, result.dataset_split) == (
            "uoft-cs/cifar100",
            "CIFAR-100",
            "test",
        )
        assert result.metric_args == {
            "num_images": 10_000,
            "epoch": 200,
            "seed": 7,
            "weights": "raw",
            "precision": "bf16",
            "flip": False,
        }


@pytest.mark.parametrize(
    ("source", "split", "images", "kind", "name", "listed"),
    [
        (
            "hub",
            "holdout",
            TRAIN_IMAGES,
            "uoft-cs/cifar100",
            "CIFAR-100, 5,000 training images held out (not test)",
            True,
        ),
        ("shapes100", "test", "shapes100, built in", "shapes100", "shapes100, drawn images (not CIFAR-100)", False),
        (
            "mine",
            "test",
            "not the published CIFAR-100 images",
            "other",
            "mine, images that are not the published CIFAR-100",
            False,
        ),
        ("m|ne", "test", TRAIN_IMAGES, "other", "m|ne, images that are not the published CIFAR-100", False),
    ],
)
def test_a_figure_of_other_images_never_passes_for_one_of_cifar100s_test(
    source: str, split: str, images: str, kind: str, name: str, listed: bool
) -> None:
    text = card.write(facts(recipe(source, holdout=5000), **{split: measured(images, num_images=5000)}))
    for result in results(text):
        assert (result.dataset_type, result.dataset_name) == (kind, name)
        assert (result.dataset_type, result.dataset_split) != ("uoft-cs/cifar100", "test")
    if split == "holdout":
        assert {r.dataset_split for r in results(text)} == {"train"}
        assert results(text)[0].dataset_args == {"holdout": 5000, "holdout_seed": 3}
        assert "Not evaluated on test" in text
    escaped = name.replace("|", "\\|")
    assert f"| | {escaped} |" in text
    assert (front(text).get("datasets") == ["uoft-cs/cifar100"]) == listed
    assert ("@techreport" in text) == listed


def test_what_was_trained_on_is_known_by_its_images_not_by_its_name() -> None:
    by_digest = recipe("my-copy") | {"images": {"train": {"sentence": TRAIN_IMAGES}}}
    assert trained_on(by_digest) == "cifar100"
    assert trained_on(recipe("my-copy")) == "other"
    forged = recipe("hub") | {"images": {"train": {"sentence": "not the published CIFAR-100 images"}}}
    assert trained_on(forged) == "other"
    on_test = recipe("hub") | {"images": {"train": {"sentence": TEST_IMAGES}}}
    assert trained_on(on_test) == "other"


def test_two_figures_measured_in_different_ways_each_say_how() -> None:
    text = card.write(
        facts(test=measured(flip=True, weights="ema"), holdout=measured(TRAIN_IMAGES, precision="float32"))
    )
    assert "- Measured on test: averaged (EMA) weights, bf16, averaged over each image and its mirror image.\n" in text
    assert "- Measured on holdout: raw weights, float32, single view.\n" in text


def test_names_that_come_with_the_data_are_text_and_nothing_else() -> None:
    name = f"<b>[x](y)\n{card.END}"
    result = measured("not the published CIFAR-100 images", classes=[{"name": name, "accuracy": 0.5}])
    result["most_confused"] = [{"true": name, "predicted": "`a`", "num_images": 1}]
    text = card.write(facts(recipe("my images"), test=result), "me/net")
    assert text.count(card.END) == 1 and "<b>" not in text and "[x]" not in text
    assert r"&lt;b&gt;\[x\](y) &lt;!-- cifar100 tk: end --&gt; mistaken for \`a\` (1 image)" in text
    assert "python -m cifar100_tk.eval me/net --data.source 'my images'\n" in text


def test_the_body_tells_a_reader_what_it_is_and_under_what_conditions() -> None:
    text = card.write(facts(), "me/net")
    for sentence in (
        "# resnet50_cifar on CIFAR-100",
        "It has 23,705,252 parameters.",
        "| top-1 | 81.45 % |",
        "| super-class top-1 | 88.76 % |",
        "| calibration error (ECE, 15 bins) | 4.12 % |",
        "One run, seed 7; after the last epoch, 200 of 200.",
        "Measured on test: raw weights, bf16, single view.",
        "Trained in 7 min 24 s on cuda:0 (H200), 2 processes, bf16.",
        "Measured again: 8,145 of 10,000.",
        "Weakest classes: aquarium fish (70.00 %), apple (92.90 %).",
        "aquarium fish mistaken for apple (376 images)",
        "| optimizer | `SGD(lr=0.1, nesterov=True)` |",
        "| augment | `RandomResizedCrop(scale=(0.8, 1.0))`, `Flip(p=0.5)` |",
        'classifier = cifar100_tk.load("me/net")',
        'timm.create_model("hf-hub:me/net", pretrained=True)',
        "python -m cifar100_tk.eval me/net\n",
        "| torch | 2.15.0 |",
    ):
        assert sentence in text
    assert text.index("```python\nimport cifar100_tk") < text.index("timm.create_model")
    assert text.index("report/curves.png") < text.index("report/confusion.png")


def test_the_card_says_how_to_install_the_package_and_links_to_it_if_it_was_installed_from_a_public_place() -> None:
    there = dataclasses.replace(facts(), project="https://example.org/us/cifar100_tk", commit="0123abc")
    text = card.write(there, "me/net")
    assert "with [cifar100_tk](https://example.org/us/cifar100_tk) and is a [timm]" in text
    assert '```sh\npip install "cifar100_tk @ git+https://example.org/us/cifar100_tk@0123abc"\n```\n' in text
    assert text.index("pip install") < text.index("import cifar100_tk")
    local = card.write(facts(), "me/net")
    assert "from random weights with cifar100_tk and is a [timm]" in local
    assert "```sh\npip install -e .  # in a clone of cifar100_tk\n```\n" in local


@pytest.mark.parametrize(
    ("direct_url", "expected"),
    [
        ({"url": "https://example.org/us/tk.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}}, "the address"),
        ({"url": "https://me:token@example.org/us/tk", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}}, None),
        ({"url": "ssh://git@inside.example.org/us/tk", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}}, None),
        ({"url": "file:///home/me/tk", "dir_info": {"editable": True}}, None),
        (None, None),
    ],
)
def test_only_a_public_address_without_a_secret_is_published(
    direct_url: dict[str, Any] | None, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "cifar100_tk-9.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: cifar100_tk\nVersion: 9\n")
    if direct_url is not None:
        (installed / "direct_url.json").write_text(json.dumps(direct_url))
    monkeypatch.syspath_prepend(tmp_path)
    found = ("https://example.org/us/tk.git", "0a1b") if expected else (None, None)
    assert installed_from() == found


def test_the_command_that_measures_again_takes_the_same_images() -> None:
    shapes = card.write(facts(recipe("shapes100"), test=measured("shapes100, built in")), "me/net")
    assert "python -m cifar100_tk.eval me/net --data.source shapes100 --data.shapes100-rows 50000 10000\n" in shapes
    local = card.write(facts(recipe("real"), test=measured(), holdout=measured(TRAIN_IMAGES)), "me/net")
    assert "python -m cifar100_tk.eval me/net\n" in local and "--data.source" not in local
    aside = card.write(facts(recipe(holdout=5000), holdout=measured(TRAIN_IMAGES)), "me/net")
    assert "python -m cifar100_tk.eval me/net --split holdout --data.holdout 5000 --data.holdout-seed 3\n" in aside


HAND = "## How we use it\n\nOn our robot.\n\n```\nblank\n\nline\n```"


def test_what_people_wrote_stays_and_figures_are_written_anew() -> None:
    old = card.write(facts(test=measured(top1=0.5)), "me/net")
    edited = old.replace("license: apache-2.0", "license: mit\nlanguage: en\nthumbnail:\nbase_model: me/base")
    edited = edited.replace("- cifar100\n", "- cifar100\n- robots\n") + f"\n{HAND}\n"
    edited = edited.replace(card.BEGIN, f"A robot's eye.\n\n{card.BEGIN}")
    new = card.write(facts(), "me/net", existing=[edited])
    data = front(new)
    assert [data[key] for key in ("license", "language", "thumbnail", "base_model")] == ["mit", "en", None, "me/base"]
    assert data["tags"] == ["image-classification", "timm", "cifar100_tk", "cifar100", "robots"]
    assert {r.metric_value for r in results(new) if r.metric_name == "top-1 accuracy"} == {0.8145}
    before, rest = new.split("---\n", 2)[2].split(card.BEGIN)
    generated, after = rest.split(card.END)
    assert before.strip() == "A robot's eye." and after.strip() == HAND
    assert "81.45 %" in generated and "50.00 %" not in new
    assert card.write(facts(), "me/net", existing=[new]) == new
    assert card.write(facts(), "me/net", existing=[new, new]) == new
    assert front(card.write(facts(), license="cc0-1.0", existing=[new]))["license"] == "cc0-1.0"


def test_two_hand_written_texts_are_both_kept_once() -> None:
    plain = card.write(facts())
    new = card.write(facts(), existing=[f"{plain}\nfrom the Hub\n", f"{plain}\nfrom the Hub\n\nfrom the folder\n"])
    assert new.count("from the Hub") == new.count("from the folder") == 1
    new = card.write(facts(), existing=[f"{plain}\nfrom the Hub\n", f"{plain}\nfrom the folder\n"])
    assert new.count("from the Hub") == new.count("from the folder") == 1


@pytest.mark.parametrize(
    "existing",
    [
        "# Mine\n\nNo front matter.\n",
        "---\nlicense: mit\n---\n# Mine\r\n\r\nNo front matter.\n",
        "\ufeff---\r\nlicense: mit\r\n---\r\n\r\n# Mine\r\n\r\nNo front matter.\r\n",
        "---\n---\n# Mine\n\nNo front matter.\n",
        "---\n---\n# Mine\n\nNo front matter.\n\n---\nbelow: a rule\n",
        f"{card.BEGIN}\n# Mine\n\nNo front matter.\n",
        f"# Mine\n\nNo front matter.\n{card.END}\n",
        f"{card.BEGIN}\n1\n{card.END}\n# Mine\n\n{card.BEGIN}\n2\n{card.END}\nNo front matter.",
    ],
)
def test_a_card_that_somebody_else_wrote_or_damaged_stands_below_ours(existing: str) -> None:
    new = card.write(facts(), existing=[existing])
    assert new.count(card.BEGIN) == new.count(card.END) == 1
    after = new.split(card.END)[1]
    assert "# Mine" in after and "No front matter." in after
    assert front(new)["license"] == ("mit" if "mit" in existing else "apache-2.0")
    assert card.write(facts(), existing=[new]) == new


@pytest.mark.parametrize("front_matter", ["a: [", "just text", "- a\n- list"])
def test_front_matter_that_cannot_be_kept_is_not_thrown_away(front_matter: str) -> None:
    with pytest.raises(DataError, match=r"the front matter of the existing README.md .*; fix it first\."):
        card.write(facts(), existing=[f"---\n{front_matter}\n---\n# Mine\n"])


def test_what_an_older_card_said_it_was_trained_on_does_not_stay() -> None:
    old = card.write(facts()).replace("- uoft-cs/cifar100\n", "- uoft-cs/cifar100\n- me/photos\n")
    new = front(card.write(facts(recipe("shapes100"), test=measured("shapes100, built in")), existing=[old]))
    assert new["datasets"] == ["me/photos"] and "cifar100" not in new["tags"]


def test_a_figure_that_nobody_measured_is_left_out() -> None:
    bare = {key: measured()[key] for key in ("images", "num_images", "top1", "top5", "loss")}
    text = card.write(facts(test=bare | {"ece": None}))
    assert {r.metric_name for r in results(text)} == {"top-1 accuracy", "top-5 accuracy", "cross-entropy in nats"}
    assert "super-class" not in text and "calibration" not in text


def test_a_cell_of_the_recipe_cannot_break_the_table() -> None:
    name = {"type": "TimmModel", "name": "a|b`c\nd"}
    text = card.write(facts(recipe() | {"model": name}))
    (row,) = (line for line in text.splitlines() if line.startswith("| model |"))
    assert row == "| model | `` TimmModel(name='a\\|b`c\\nd') `` |"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A built folder, as far as a card is written from it."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "curves.png").write_bytes(b"")
    for name, content in {
        "config.json": {"architecture": "resnet50_cifar"},
        "recipe.json": recipe(),
        "environment.json": {"device": "cpu", "seconds": 12.5},
        "evaluation/test.json": measured(),
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def test_a_folder_is_read_for_its_card(folder: Path) -> None:
    found = of_folder(folder, "not checked")
    assert (found.architecture, found.seconds, found.environment) == ("resnet50_cifar", 12.5, {"device": "cpu"})
    assert found.images == ("report/curves.png",) and found.evaluations == {"test": measured()}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.json", "{", r"recipe.json cannot be read as JSON \(.*\); build the folder again from its run\.$"),
        ("recipe.json", "[]", "recipe.json must hold a JSON object, not a list; build the folder again"),
        (
            "recipe.json",
            recipe() | {"data": 7},
            "recipe.json does not say which data the run used .*; build the folder",
        ),
        (
            "recipe.json",
            recipe() | {"epochs": "200"},
            "recipe.json: epochs is '200', expected int; build the folder again",
        ),
        ("recipe.json", recipe() | {"seed": None}, "recipe.json: seed is None, expected int; build the folder again"),
        ("recipe.json", recipe() | {"images": []}, r"recipe.json: images is \[\], expected dict"),
        ("recipe.json", recipe() | {"images": {"test": 3}}, "recipe.json: test is 3, expected dict"),
        ("recipe.json", recipe() | {"images": {"test": {"sentence": 3}}}, "recipe.json: sentence is 3, expected str"),
        (
            "recipe.json",
            recipe() | {"pretrained": {"sha256": "../../etc", "taken": 1, "new": []}},
            r"recipe.json: pretrained is .*\.\./etc.*, which training does not write; build the folder again",
        ),
        ("config.json", {}, "config.json: architecture is None, expected str"),
        ("environment.json", {"seconds": "9"}, "environment.json: seconds is '9', expected int or float"),
        *(
            (
                "environment.json",
                f'{{"seconds": {seconds}}}',
                rf"environment.json: seconds is {shown}, expected a time from 0",
            )
            for seconds, shown in (
                ("Infinity", "inf"),
                ("NaN", "nan"),
                ("1e400", "inf"),
                ("-1", "-1"),
                (f"1{'0' * 400}", f"1{'0' * 59}"),
            )
        ),
        ("environment.json", {"num_processes": None}, "environment.json: num_processes is None, expected int"),
        ("environment.json", {"versions": "2.15"}, "environment.json: versions is '2.15', expected dict"),
        ("evaluation/test.json", measured(classes=None), "test.json: classes is None; expected a list"),
    ],
)
def test_a_folder_that_somebody_damaged_is_a_sentence(folder: Path, name: str, content: Any, message: str) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        of_folder(folder, "not checked")


def test_a_folder_without_a_figure_has_no_card(folder: Path) -> None:
    (folder / "evaluation" / "test.json").unlink()
    with pytest.raises(DataError, match=r"has no evaluation/test.json; build the folder again"):
        of_folder(folder, "not checked")


def test_the_card_names_the_teacher_the_extension_and_the_choice_of_the_epoch() -> None:
    teacher = {"name": "resnet101", "architecture": "resnet101_cifar", "sha256": "0123456789abcdef" * 4}
    text = card.write(
        facts(recipe() | {"epochs": 300, "extended": [{"epochs": 200, "step": 4800}], "teacher": teacher})
    )
    assert "- One run, seed 7; after the last epoch, 300 of 300, extended from 200 epochs after step 4,800.\n" in text
    named = "it also learned from the logits of resnet101 (resnet101_cifar, weights with SHA-256 0123456789abcdef).\n"
    assert f"- Distilled: {named}" in text and "| teacher |" not in text and "| extended |" not in text
    best = {"metric": "holdout/top1", "value": 0.8, "epoch": 150}
    text = card.write(facts(recipe(holdout=5000) | {"best": best}))
    assert "- One run, seed 7; after epoch 150 of 200, chosen by holdout/top1.\n" in text
    assert {result.metric_args["epoch"] for result in results(text) if result.metric_args} == {150}
