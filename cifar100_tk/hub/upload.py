"""Uploads files to a Hub repository as one commit; a failure leaves the previous revision intact."""

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
"""Files of an earlier push, removed by the same commit unless the new push has them too."""
TIMEOUT_SECONDS: Final = 60.0
"""Seconds without a response after which the Hub counts as unreachable."""
MAX_CARD_BYTES: Final = 1_000_000
"""Size limit of an existing README.md, which is merged."""


def check_id(repo_id: str) -> None:
    """Raise ConfigError unless the Hub accepts the id as USER/NAME."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"{repo_id} is not a repository id: {error}") from error
    if repo_id.count("/") != 1:
        raise ConfigError(f"{repo_id} is not a repository id; pass USER/NAME or ORGANIZATION/NAME.")


def check_token() -> None:
    """Raise ConfigError if the Hub token is missing or malformed; the token is never printed."""
    token = get_token()
    if token is None:
        raise ConfigError(
            "no Hub token found; run hf auth login, or set HF_TOKEN to a write token "
            "(https://huggingface.co/settings/tokens)."
        )
    # The error of the HTTP library would print an invalid header, and with it the token.
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("the Hub token contains invalid characters; run hf auth login again.")


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
    """Upload files, keyed by their path in the repository, as one commit, and return its URL.

    readme: makes README.md from the existing one, or from ""; if not given, README.md is one of the files.
    stale: pattern of existing files that the commit removes unless they are uploaded again.
    timeout: seconds to wait for the Hub. Raises HubError, StoppedError, or DataError if README.md cannot be read; the
    previous revision stays intact, and the call can be repeated.
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
            # Do not overwrite a concurrent commit.
            parent_commit=there.sha,
        )
    if commit.oid == there.sha:
        print(f"{repo_id} is already up to date: {commit.commit_url}", flush=True)
    else:
        print(f"pushed: {commit.pr_url or commit.commit_url}", flush=True)
    return str(commit.pr_url or commit.commit_url)


def _opened(
    api: HfApi, repo_id: str, repo_type: RepoType, private: bool, revision: str | None, timeout: float
) -> ModelInfo | SpaceInfo:
    """Return the repository info, creating repository and branch if necessary. See `upload` for the arguments."""
    sdk = "gradio" if repo_type == "space" else None
    api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, space_sdk=sdk)
    info = api.space_info if repo_type == "space" else api.model_info
    there = info(repo_id, timeout=timeout, files_metadata=True)
    if private and there.private is False:
        raise HubError(
            f"{repo_id} is public, and --private does not change that; make it private in its settings, then push again."
        )
    if revision is None:
        return there
    if not revision.startswith("refs/"):  # A pull request ref cannot be created.
        api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    return info(repo_id, revision=revision, timeout=timeout, files_metadata=True)


def _card_of(api: HfApi, repo_id: str, repo_type: RepoType, there: ModelInfo | SpaceInfo) -> str:
    """Download README.md; "" if there is none. Raises DataError if it is too large or not text."""
    sizes = {sibling.rfilename: sibling.size for sibling in there.siblings or []}
    if "README.md" not in sizes:
        return ""
    if (size := sizes["README.md"] or 0) > MAX_CARD_BYTES:
        raise DataError(
            f"the existing README.md of {repo_id} has {size:,} bytes; the limit is {MAX_CARD_BYTES:,}; shorten it first."
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
    """Set a timeout for the client, which otherwise waits forever."""
    session = get_session()
    kind, hooks = type(session), session.event_hooks
    set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=timeout))
