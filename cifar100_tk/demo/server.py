"""Serving the page: settings that Gradio reads from its environment, the guard in front of it, and a quiet end."""

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

# torch, timm and Gradio take seconds to import; they are imported when the arguments are known to be good.

GRADIO: Final = "6.20"
"""The first version that the page is known to be safe with."""
FIRST_PORT: Final = 7860
NUM_PORTS: Final = 100


@dataclass(frozen=True, kw_only=True)
class DemoOptions(ModelOptions):
    """Serve a page on which people drop an image and see what a model makes of it."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a Hub id USER/NAME."""
    host: str | None = None
    """The address to listen on: 127.0.0.1, this machine alone, if not given; 0.0.0.0 opens the page to the whole network."""
    port: int | None = None
    """The port; if not given the first free one from 7860 on."""
    examples: Path | None = None
    """A folder of images to offer, the first ten by name; if not given built-in ones that fit the classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_revision(self.model)
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port} is no port; give a number from 1 to 65535.")


def serve(options: DemoOptions) -> None:
    """Serve the page until Ctrl-C or SIGTERM. Raises ConfigError or DataError before anything listens."""
    gradio_version()
    # On a Space this says where the platform wants the page.
    host = options.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    port = _free_port(host, options.port)
    # The signal that ends a service shall clean up like Ctrl-C, which a shell has ignored where it starts us in the background.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cifar100_tk-demo-") as uploads, contextlib.suppress(KeyboardInterrupt):
        _settle(uploads)
        page, words = _page(options)
        _launch(page, host, port, Path(uploads))
        opened = "" if host in ("127.0.0.1", "localhost", "::1") else "; everybody who reaches this machine can use it"
        shown = f"[{host}]" if ":" in host else host
        lines = [words.about, *([words.measured] if words.measured else [])]
        print("\n".join(lines), f"\nthe page is at http://{shown}:{port}{opened}; Ctrl-C ends it", sep="", flush=True)
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)


def gradio_version() -> str:
    """Return the version of Gradio. Raises ConfigError where it is missing or too old."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(f'this needs Gradio, which is not installed: pip install "gradio>={GRADIO}"')
    version = importlib.metadata.version("gradio")
    if tuple(int(part) for part in version.split(".")[:2]) < tuple(int(part) for part in GRADIO.split(".")):
        raise ConfigError(f'Gradio {version} is installed, whose holes are known: pip install "gradio>={GRADIO}"')
    return version


def _page(options: DemoOptions) -> tuple[Any, Words]:
    """Load the model and build its page. Returns (page, what it says)."""
    from cifar100_tk.demo import about
    from cifar100_tk.demo.examples import examples
    from cifar100_tk.demo.page import Words, build
    from cifar100_tk.models import folder as model_folder

    options.run_registered()
    classifier = model_folder.load(options.model, revision=options.revision)
    words = Words(about.sentence(classifier), about.measured(options.model, revision=options.revision))
    return build(classifier, words, examples(classifier.class_names, options.examples)), words


def _settle(uploads: str) -> None:
    """Set what Gradio takes from the environment, before it is imported."""
    os.environ |= {
        # A folder of our own: in the common one lie the uploads of every other Gradio program of this machine.
        "GRADIO_TEMP_DIR": uploads,
        "GRADIO_EXAMPLES_CACHE": f"{uploads}/examples",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Each would open what is closed below.
        "GRADIO_SHARE": "False",
        "GRADIO_ALLOWED_PATHS": "",
        "GRADIO_MCP_SERVER": "False",
    }


def _launch(page: Any, host: str, port: int, uploads: Path) -> None:
    """Start serving in a thread, with everything off that the page does not need."""
    import gradio as gr
    from starlette.middleware import Middleware

    from cifar100_tk.demo.guard import MAX_UPLOAD, Guard
    from cifar100_tk.demo.page import CSS

    # System fonts: nothing is fetched from elsewhere.
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
    """Return the port asked for, or the first free one. Raises ConfigError where there is none."""
    for port in [asked] if asked is not None else range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
        except socket.gaierror as error:
            raise ConfigError(
                f"--host {host} is no address of this machine ({error.strerror}); leave it out."
            ) from error
        except PermissionError as error:
            raise ConfigError(f"--port {port} needs the rights of an administrator; give one above 1023.") from error
        except OSError as error:
            if asked is not None:
                raise ConfigError(
                    f"--port {port} cannot be used on {host} ({error.strerror}); give another, or leave it out for the next "
                    "free one."
                ) from error
            continue
        if asked is None and port != FIRST_PORT:
            print(f"port {FIRST_PORT} is in use; taking {port}", flush=True)
        return port
    raise ConfigError(f"no port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} is free on {host}; give --port.")
