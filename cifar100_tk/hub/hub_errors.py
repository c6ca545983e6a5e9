"""Turns exceptions of the Hub client into one sentence without the token: the cause, the remedy, the state of the repository."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from huggingface_hub import get_token

from cifar100_tk.errors import CifarError, HubError, StoppedError


@dataclass
class Doing:
    """Progress of an upload."""

    committing: bool = False


@contextlib.contextmanager
def in_a_sentence(repo_id: str) -> Iterator[Doing]:
    """Convert any exception of the client to a HubError, and Ctrl-C to a StoppedError."""
    doing = Doing()
    try:
        yield doing
    except CifarError:
        raise
    except KeyboardInterrupt as error:
        raise StoppedError(f"stopped; {_what_is_there(repo_id, doing)}") from error
    except Exception as error:  # The client passes on exceptions of its HTTP, storage and YAML libraries.
        why = " ".join(_reason(error, repo_id).replace(get_token() or "\0", "***").split())
        raise HubError(f"{why}; {_what_is_there(repo_id, doing)}") from error


def _what_is_there(repo_id: str, doing: Doing) -> str:
    if doing.committing:
        return (
            f"{repo_id} has either the old revision or the complete new one; it is safe to run the same command again."
        )
    return f"{repo_id} is unchanged; it is safe to run the same command again."


def _reason(error: BaseException, repo_id: str) -> str:
    """Return the cause and the remedy. The client wraps errors of its threads in others."""
    while not hasattr(error, "response") and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = getattr(error, "server_message", None) or (str(error).strip().splitlines() or [""])[0]
    if status is None and (found := re.search(r"HTTP status \w+ error \((\d{3}) ", message)):
        status = int(found[1])  # The storage library has the status only in its message.
    remedies = {
        401: "the Hub rejected the token (401); run hf auth login with a write token",
        403: f"the token has no write access to {repo_id} (403); ask for access, use another token, or try --create-pr",
        404: f"{repo_id} or the requested revision does not exist, or this token cannot read it (404)",
        409: f"someone else is changing {repo_id} right now (409)",
        412: f"someone else changed {repo_id} in the meantime (412)",
        429: "the Hub is rate limiting this token (429); wait a few minutes",
    }
    if status in remedies:
        return remedies[status]
    if status is not None and status >= 500:
        return f"the Hub has an internal error ({status}); try again later"
    if status is not None:
        return f"the Hub refused the request ({status}: {message})"
    return f"the Hub cannot be reached ({type(error).__name__}: {message})"
