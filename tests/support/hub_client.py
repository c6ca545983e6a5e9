"""A process with huggingface_hub's own client in it, as a user's command has: it does what its input asks, a line each."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cifar100_tk.errors import CifarError
from cifar100_tk.hub.__main__ import main as hub
from cifar100_tk.hub.upload import do_not_wait_forever, upload


class Client:
    """The other end: starts such a process, asks it, and keeps everything that it said."""

    def __init__(self, environment: dict[str, str], timeout: float = 60.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(timeout)],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []

    def ask(self, question: Any) -> None:
        assert self.process.stdin is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.said.append(line)
        return json.loads(line)

    def command(self, *arguments: str, **environment: str | None) -> tuple[int, str]:
        """Run `python -m cifar100_tk.hub` with these arguments. Returns its exit code and what it printed."""
        self.ask({"arguments": arguments, "environment": environment})
        code, text = self.answer()
        return code, text

    def close(self) -> str:
        """End the process. Returns everything that it said."""
        _, errors = self.process.communicate()
        assert self.process.returncode == 0, errors
        return "".join(self.said) + errors

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind where a test fails."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def _command(arguments: list[str], environment: dict[str, str | None]) -> tuple[int, str]:
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    text = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            hub(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, text.getvalue()


def _upload(case: dict[str, Any]) -> dict[str, Any]:
    files = {name: Path(path) for name, path in case["files"].items()}

    def readme(theirs: str) -> str:
        # By the id the server knows whose card it validates.
        return f"{theirs.splitlines()[0]}\nnew hf-hub:{case['repo']}\n"

    try:
        return {"url": upload(files, case["repo"], readme=readme, message="new", timeout=float(sys.argv[1]))}
    except CifarError as error:
        return {"error": str(error), "code": error.exit_code}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    do_not_wait_forever(float(sys.argv[1]))  # Once, before there are threads.
    with ThreadPoolExecutor(100) as pool:
        for line in sys.stdin:
            question = json.loads(line)
            answer: Any = list(pool.map(_upload, question)) if isinstance(question, list) else _command(**question)
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
