"""Files to a repository of the Hub as one commit: whatever happens, the revision that was there stays whole."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    SpaceInfo,
    get_session,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from cifar100_tk import __version__
from cifar100_tk.errors import ConfigError, DataError, HubError
from cifar100_tk.hub import card
from cifar100_tk.hub.hub_errors import in_a_sentence

RepoType = Literal["model", "space"]

STALE: Final = re.compile(r"(?:evaluation|report|tensorboard)/.+")
"""What an older push of ours may have left: removed by the same commit where the new one has it not."""
TIMEOUT_SECONDS: Final = 60.0
"""How long the Hub may be silent before it counts as not reachable."""
MAX_CARD_BYTES: Final = 1_000_000
"""A README.md beyond this size is not downloaded."""


def check_id(repo_id: str) -> None:
    """Refuse what the Hub would not take as USER/NAME."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{repo_id} is no id of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise ConfigError(f"{repo_id} is no id of a repository; give USER/NAME, or ORGANIZATION/NAME.")


def check_token() -> None:
    """Refuse to start without a token that could be one; what it says is never repeated."""
    token = get_token()
    if token is None:
        raise ConfigError(
            "there is no token of the Hub here; run hf auth login, or set HF_TOKEN to one that may write "
            "(https://huggingface.co/settings/tokens)."
        )
    # The HTTP library would repeat an impossible header, and the token with it, in its complaint.
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("the token of the Hub has characters in it that no token has; run hf auth login again.")


def upload(
    files: Mapping[str, Path],
    repo_id: str,
    *,
    readme: Callable[[str], str] | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str,
    repo_type: RepoType = "model",
    stale: re.Pattern[str] = STALE,
    timeout: float = TIMEOUT_SECONDS,
) -> str:
    """Upload files, by their names there, as one commit, and return its address.

    readme: makes README.md from the one that is there, "" where there is none; if not given it is one of the files.
    stale: names that the commit removes where they are there and not among the files.
    timeout: seconds that the Hub may be silent. Raises HubError, StoppedError, DataError for a README.md that cannot be
    read; the revision that was there stays whole, and the same call can be made again.
    """
    do_not_wait_forever(timeout)
    api = HfApi(library_name="cifar100_tk", library_version=__version__)
    with in_a_sentence(repo_id) as doing:
        there = _opened(api, repo_id, repo_type, private, revision, timeout)
        contents: dict[str, Path | bytes] = dict(files)
        if readme is not None:
            contents["README.md"] = readme(_card_of(api, repo_id, repo_type, there)).encode()
        changes = _changes(there, contents, stale)
        size = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in contents.values())
        print(f"uploading {len(contents)} files, {size / 1e6:.1f} MB, to {repo_id}", flush=True)
        doing.committing = True
        commit = api.create_commit(
            repo_id,
            changes,
            repo_type=repo_type,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            # Whoever commits in the meantime must not be overwritten.
            parent_commit=there.sha,
        )
    if commit.oid == there.sha:
        print(f"{repo_id} holds exactly this already: {commit.commit_url}", flush=True)
    else:
        print(f"pushed: {commit.pr_url or commit.commit_url}", flush=True)
    return str(commit.pr_url or commit.commit_url)


def _opened(
    api: HfApi, repo_id: str, repo_type: RepoType, private: bool, revision: str | None, timeout: float
) -> ModelInfo | SpaceInfo:
    """Return what is there, making the repository and the branch where they are not. See `upload` for the arguments."""
    sdk = "gradio" if repo_type == "space" else None
    api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, space_sdk=sdk)
    info = api.space_info if repo_type == "space" else api.model_info
    there = info(repo_id, timeout=timeout, files_metadata=True)
    if private and there.private is False:
        raise HubError(f"{repo_id} is public, and --private does not hide it; change it in its settings, then push.")
    if revision is None:
        return there
    if not revision.startswith("refs/"):  # A pull request is there or not.
        api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    return info(repo_id, revision=revision, timeout=timeout, files_metadata=True)


def _card_of(api: HfApi, repo_id: str, repo_type: RepoType, there: ModelInfo | SpaceInfo) -> str:
    """Download README.md, "" where there is none. Raises DataError for one that is too large, or no text."""
    sizes = {sibling.rfilename: sibling.size for sibling in there.siblings or []}
    if "README.md" not in sizes:
        return ""
    if (size := sizes["README.md"] or 0) > MAX_CARD_BYTES:
        raise DataError(
            f"the existing README.md of {repo_id} has {size:,} bytes, and at most {MAX_CARD_BYTES:,} are read; shorten it "
            "first."
        )
    with tempfile.TemporaryDirectory() as scratch:
        api.hf_hub_download(repo_id, "README.md", repo_type=repo_type, revision=there.sha, local_dir=scratch)
        return card.read(Path(scratch))


def _changes(
    there: ModelInfo | SpaceInfo, contents: Mapping[str, Path | bytes], stale: re.Pattern[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    names = {sibling.rfilename for sibling in there.siblings or []}
    gone = [CommitOperationDelete(name) for name in sorted(names - contents.keys()) if stale.fullmatch(name)]
    return [*gone, *(CommitOperationAdd(name, content) for name, content in sorted(contents.items()))]


@functools.cache
def do_not_wait_forever(timeout: float) -> None:
    """Let the client give up on a Hub that says nothing; by itself it waits without end."""
    session = get_session()
    kind, hooks = type(session), session.event_hooks
    set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=timeout))
