"""One vocabulary: words that were replaced do not come back, in code, documents or help."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted(path for place in ("cifar100_tk", "recipes", "benchmarks") for path in (ROOT / place).rglob("*.py"))
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "cifar100_tk").rglob("*.html")])

RETIRED = {
    "Pictures": "RawImages",
    "noted": "run_config",
    "MUST_MATCH": "RESUME_KEYS",
    "MAY_CHANGE": "RUNTIME_KEYS",
    "outlook": "describe_resume",
    "check_run": "validate_run_dir",
    "Agreement": "RankSync, or Comparison of an export",
    "Flags": "StepStatus",
    "Loaded": "LoadedModel",
    "Subject": "EvalTarget",
    "Corrupted": "Cifar100C",
    "Facts": "CardData",
    "body_of": "render_card",
    "Moves": "Affine",
    "Recodes": "LookupTable",
    "Filters": "Filter",
    "Crop": "RandomResizedCrop",
    "Origin": "Source",
    "Stored": "DecodedSplit",
    "largest_piece": "find_micro_batch",
    "end_recipes_with_sentence": "install_excepthook",
    "exit_with_sentence": "exit_on_error",
    "raise_everywhere": "raise_on_all_ranks",
}
"""Names of the package that nothing may have again, with what they are called now."""


def names_in(path: Path) -> set[str]:
    """Every name in a file's code, without what stands in strings and comments."""
    with path.open("rb") as file:
        return {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}


def test_there_is_something_to_look_through() -> None:
    assert len(CODE) > 80 and len(TESTS) > 60 and len(DOCUMENTS) > 8
    assert {"Path", "tokenize"} <= names_in(Path(__file__))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_retired_name_is_in_the_code(path: Path) -> None:
    assert {name: RETIRED[name] for name in names_in(path) & RETIRED.keys()} == {}


@pytest.mark.parametrize("path", [*CODE, *TESTS, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_an_image_is_called_an_image(path: Path) -> None:
    text = io.StringIO(path.read_text())
    lines = [line for line in text if re.search("pictur", line, re.IGNORECASE)]
    if path.name == "CHANGELOG.md":  # Which says what the word was.
        lines = [line for line in lines if '"picture"' not in line]
    assert lines == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_or_comment_opens_with_a_verb_or_a_noun(path: Path) -> None:
    opening = re.compile(r'^ *(r?"""|#) ?(What|Whether|How|Which|Where|Who) ', re.MULTILINE)
    assert opening.search('    """What a thing does."""') and not opening.search('    """Return what it does."""')
    assert [match[0] for match in opening.finditer(path.read_text())] == []
