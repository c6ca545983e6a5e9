"""What the Hub's client raises, as one sentence in which no token is: what is wrong, what helps, what is there now."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from huggingface_hub import get_token

from cifar100_tk.errors import CifarError, HubError, StoppedError


@dataclass
class Doing:
    """How far an upload is."""

    committing: bool = False


@contextlib.contextmanager
def in_a_sentence(repo_id: str) -> Iterator[Doing]:
    """Turn whatever the client raises into a HubError, and Ctrl-C into a StoppedError."""
    doing = Doing()
    try:
        yield doing
    except CifarError:
        raise
    except KeyboardInterrupt as error:
        raise StoppedError(f"stopped; {_what_is_there(repo_id, doing)}") from error
    except Exception as error:  # The client raises what its HTTP library, its storage and its YAML reader raise.
        why = " ".join(_reason(error, repo_id).replace(get_token() or "\0", "***").split())
        raise HubError(f"{why}; {_what_is_there(repo_id, doing)}") from error


def _what_is_there(repo_id: str, doing: Doing) -> str:
    if doing.committing:
        return f"{repo_id} holds the old revision or the whole new one, and the same command can be given again."
    return f"{repo_id} holds what it held before, and the same command can be given again."


def _reason(error: BaseException, repo_id: str) -> str:
    """Say what went wrong and what helps. The client wraps errors of its threads in others."""
    while not hasattr(error, "response") and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = getattr(error, "server_message", None) or (str(error).strip().splitlines() or [""])[0]
    if status is None and (found := re.search(r"HTTP status \w+ error \((\d{3}) ", message)):
        status = int(found[1])  # The storage library tells it in words only.
    remedies = {
        401: "the Hub does not accept the token (401); run hf auth login with one that may write",
        403: f"the token may not write to {repo_id} (403); ask for access, take a token that may, or try --create-pr",
        404: f"{repo_id} or what was asked of it is not there, or not for this token to see (404)",
        409: f"somebody else is changing {repo_id} just now (409)",
        412: f"somebody else changed {repo_id} in the meantime (412)",
        429: "the Hub asks to slow down (429); wait some minutes",
    }
    if status in remedies:
        return remedies[status]
    if status is not None and status >= 500:
        return f"the Hub has a fault of its own ({status}); try again later"
    if status is not None:
        return f"the Hub refuses this ({status}: {message})"
    return f"the Hub cannot be reached ({type(error).__name__}: {message})"
