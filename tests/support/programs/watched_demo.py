"""The demo as from a shell's background; notes each address it connects to or looks up and each secret file it opens."""

import os
import runpy
import signal
import sys
from typing import Any

signal.signal(signal.SIGINT, signal.SIG_IGN)
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        os.write(log, f"connect {arguments[1]}\n".encode())
    elif event == "socket.getaddrinfo":
        os.write(log, f"lookup {arguments[0]}\n".encode())
    elif event == "open" and "confidential" in str(arguments[0]):
        os.write(log, f"open {arguments[0]}\n".encode())


sys.addaudithook(note)
sys.modules["uvloop"] = None  # type: ignore[assignment]  # It would look up and connect unseen.
if os.environ.get("WITHOUT_GUARD"):
    from starlette.types import Receive, Scope, Send

    from cifar100_tk.demo import guard

    class Open(guard.Guard):
        """A guard that lets everything pass."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, send)

    guard.Guard = Open  # type: ignore[misc]
sys.argv = ["demo", *sys.argv[2:]]
runpy.run_module("cifar100_tk.demo", run_name="__main__")
