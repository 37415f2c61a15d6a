"""How the page is served: every setting that matters for safety, said here and nowhere else.

gradio takes many settings from the environment when they are left out, and some defaults are those
of a demo: uploads without end, monitoring at a hidden address, statistics sent home. So each is
given. The server listens on the loopback interface; any other address, and `share`, need users.

    host header    on loopback only names of this machine: another name there is DNS rebinding
    content policy nothing is loaded from anywhere else, whatever the page holds
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from skipstep.pipelines.ui.limits import Limits
from skipstep.plugins.errors import PluginError

__all__ = [
    "Guard",
    "import_gradio",
    "is_loopback",
    "launch_settings",
    "queue_settings",
    "share_heaps",
]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LONGEST_QUEUE = 32
SESSIONS, THREADS = 64, 16
# The number of this setting in glibc's malloc.h.
M_ARENA_MAX = -8
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def import_gradio(folder: Path) -> Any:
    """Import gradio with its statistics off and its files in a folder of ours.

    Raises ImportError that says how to install it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "files")
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            'the web UI needs gradio, which is not installed: pip install "skipstep[app]"'
        ) from error
    return gradio


def is_loopback(address: str) -> bool:
    """Say whether an address can be reached from this machine only."""
    return address in LOOPBACK or address.startswith("127.")


def share_heaps() -> None:
    """Let all threads share two heaps of the C library, where it is glibc.

    Each request and each run may have a thread of its own; glibc would give up to eight heaps a
    core, none of which gives back what a picture took.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def queue_settings() -> dict[str, Any]:
    """Return what `Blocks.queue` is given: a line that has an end."""
    return {"max_size": LONGEST_QUEUE, "default_concurrency_limit": 1, "api_open": False}


def launch_settings(
    limits: Limits,
    *,
    address: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    users: Callable[[str, str], bool] | None = None,
) -> dict[str, Any]:
    """Return what `Blocks.launch` is given.

    Args:
        port: None takes the first free one from 7860 on.
        users: says whether a name and a password belong together.

    Raises PluginError for an open server without users.
    """
    is_open = share or not is_loopback(address)
    if is_open and users is None:
        raise PluginError(
            f"{'--share' if share else f'--listen {address}'} lets others in: name who may with "
            "--auth-file (make one with --add-user)"
        )
    hosts = None if is_open else (*LOOPBACK, "[::1]")
    return {
        "server_name": address,
        "server_port": port,
        "share": share,
        "auth": users,
        "allowed_paths": [],
        "blocked_paths": [],
        "root_path": "",
        "max_file_size": limits.upload_bytes,
        "max_threads": THREADS,
        "state_session_capacity": SESSIONS,
        "show_error": False,
        "strict_cors": True,
        "enable_monitoring": False,
        "run_history": False,
        "mcp_server": False,
        "ssr_mode": False,
        "pwa": False,
        "inbrowser": False,
        "footer_links": [],
        "app_kwargs": {"middleware": [middleware(hosts)]},
    }


def middleware(hosts: tuple[str, ...] | None) -> Any:
    """Return the guard in the form that FastAPI takes."""
    from starlette.middleware import Middleware

    return Middleware(Guard, hosts=hosts)


class Guard:
    """Stand between the network and the server: refuse foreign host names, add headers.

    Args:
        hosts: names that requests may be addressed to; None takes all.
    """

    def __init__(self, app: App, hosts: tuple[str, ...] | None = None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.hosts is not None and host_of(scope) not in self.hosts:
            start = {"type": "http.response.start", "status": 421, "headers": list(HEADERS)}
            await send(start)
            await send({"type": "http.response.body", "body": b"not addressed to this machine\n"})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def host_of(scope: Message) -> str:
    """Return the name in a request's Host header, without the port."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    name = host.decode("latin-1").lower()
    return name if name.endswith("]") else name.rpartition(":")[0] or name
