"""Serves the page: sets Gradio's environment variables, installs the guard and shuts down cleanly."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import signal
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import tyro

from cifar100_tk.cli.arguments import ModelOptions
from cifar100_tk.errors import ConfigError

if TYPE_CHECKING:
    from cifar100_tk.demo.page import Words

# torch, timm and Gradio take seconds to import, so they are imported after the arguments are checked.

GRADIO: Final = "6.20"
"""The oldest supported version, without known vulnerabilities."""
FIRST_PORT: Final = 7860
NUM_PORTS: Final = 100


@dataclass(frozen=True, kw_only=True)
class DemoOptions(ModelOptions):
    """Serve a web page where visitors drop an image and see the model's prediction."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a Hub id USER/NAME."""
    host: str | None = None
    """Address to listen on; 0.0.0.0 opens the page to the whole network. Default: 127.0.0.1, this machine only."""
    port: int | None = None
    """Port to listen on. Default: the first free port from 7860."""
    examples: Path | None = None
    """Folder of example images, the first ten by name. Default: built-in images that match the classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_revision(self.model)
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ConfigError(f"--port must be from 1 to 65535, got {self.port}.")


def serve(options: DemoOptions) -> None:
    """Serve the page until Ctrl-C or SIGTERM. Raises ConfigError or DataError before anything listens."""
    gradio_version()
    # A Space sets this variable to the address it expects.
    host = options.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port = _free_port(host, options.port)
    # Let SIGTERM clean up like Ctrl-C; shells ignore SIGINT for background jobs, so restore that too.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cifar100_tk-demo-") as uploads, contextlib.suppress(KeyboardInterrupt):
        _settle(uploads)
        page, words = _page(options)
        _launch(page, host, port, Path(uploads))
        opened = "" if host in ("127.0.0.1", "localhost", "::1") else "; anyone who can reach this machine can use it"
        shown = f"[{host}]" if ":" in host else host
        lines = [words.about, *([words.measured] if words.measured else [])]
        print(
            "\n".join(lines),
            f"\nthe page is at http://{shown}:{port}{opened}; press Ctrl-C to stop",
            sep="",
            flush=True,
        )
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)


def gradio_version() -> str:
    """Return the version of Gradio. Raises ConfigError if it is missing or too old."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(f'the demo needs Gradio, which is not installed; run pip install "gradio>={GRADIO}"')
    version = importlib.metadata.version("gradio")
    if tuple(int(part) for part in version.split(".")[:2]) < tuple(int(part) for part in GRADIO.split(".")):
        raise ConfigError(f'Gradio {version} has known vulnerabilities; run pip install "gradio>={GRADIO}"')
    return version


def _page(options: DemoOptions) -> tuple[Any, Words]:
    """Load the model and build its page. Returns (page, description)."""
    from cifar100_tk.demo import about
    from cifar100_tk.demo.examples import examples
    from cifar100_tk.demo.page import Words, build
    from cifar100_tk.models import folder as model_folder

    options.run_registered()
    classifier = model_folder.load(options.model, revision=options.revision)
    words = Words(about.sentence(classifier), about.measured(options.model, revision=options.revision))
    return build(classifier, words, examples(classifier.class_names, options.examples)), words


def _settle(uploads: str) -> None:
    """Set Gradio's environment variables, before it is imported."""
    os.environ |= {
        # A private folder: the default one is shared by every Gradio program on this machine.
        "GRADIO_TEMP_DIR": uploads,
        "GRADIO_EXAMPLES_CACHE": f"{uploads}/examples",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Each would override an argument of `launch` below.
        "GRADIO_SHARE": "False",
        "GRADIO_ALLOWED_PATHS": "",
        "GRADIO_MCP_SERVER": "False",
    }


def _launch(page: Any, host: str, port: int, uploads: Path) -> None:
    """Start serving in a thread, with every feature the page does not need turned off."""
    import gradio as gr
    from starlette.middleware import Middleware

    from cifar100_tk.demo.guard import MAX_UPLOAD, Guard
    from cifar100_tk.demo.page import CSS

    # System fonts, so nothing is fetched from other hosts.
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        inbrowser=False,
        share=False,
        show_error=False,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        state_session_capacity=500,
        theme=theme,
        css=CSS,
        app_kwargs={"middleware": [Middleware(Guard, uploads=uploads)]},
    )


def _free_port(host: str, asked: int | None) -> int:
    """Return the requested port, or the first free one. Raises ConfigError if it is not available."""
    for port in [asked] if asked is not None else range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
        except socket.gaierror as error:
            raise ConfigError(
                f"--host {host} is not an address of this machine ({error.strerror}); omit it to use 127.0.0.1."
            ) from error
        except PermissionError as error:
            raise ConfigError(f"--port {port} requires administrator rights; use a port above 1023.") from error
        except OSError as error:
            if asked is not None:
                raise ConfigError(
                    f"--port {port} is not available on {host} ({error.strerror}); use another port, or omit --port for the "
                    "first free one."
                ) from error
            continue
        if asked is None and port != FIRST_PORT:
            print(f"port {FIRST_PORT} is in use; using {port}", flush=True)
        return port
    raise ConfigError(
        f"no port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} is free on {host}; choose one with --port."
    )
