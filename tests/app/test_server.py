"""How the page is served: every setting said, nobody let in by accident."""

import asyncio
import inspect
import sys
from collections.abc import MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skipstep.app import main
from skipstep.pipelines.ui.limits import Limits
from skipstep.pipelines.ui.server import (
    Guard,
    import_gradio,
    is_loopback,
    launch_settings,
    share_heaps,
)
from skipstep.pipelines.ui.users import add_user, read_users
from skipstep.plugins.errors import PluginError


def test_it_listens_on_this_machine_and_leaves_nothing_to_the_environment() -> None:
    found = launch_settings(Limits())
    assert found["server_name"] == "127.0.0.1" and found["share"] is False
    assert found["allowed_paths"] == [] and found["max_file_size"] == Limits().upload_bytes
    for name in ("show_error", "enable_monitoring", "run_history", "mcp_server", "ssr_mode", "pwa"):
        assert found[name] is False
    assert found["strict_cors"] is True and found["footer_links"] == []


@pytest.mark.parametrize(("given", "asked"), [(None, [(-8, 2)]), ("4", [])])
def test_threads_share_two_heaps_unless_the_environment_says_how_many(
    monkeypatch: pytest.MonkeyPatch, given: str | None, asked: list[tuple[int, int]]
) -> None:
    calls: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *what: calls.append(what))
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if given is not None:
        monkeypatch.setenv("MALLOC_ARENA_MAX", given)
    share_heaps()
    assert calls == asked


def test_every_setting_is_one_of_gradios(tmp_path: Path) -> None:
    known = inspect.signature(import_gradio(tmp_path).Blocks.launch).parameters
    assert set(launch_settings(Limits())) <= set(known)


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_an_open_server_wants_users(address: str) -> None:
    with pytest.raises(PluginError, match=f"--listen {address} lets others in.*--auth-file"):
        launch_settings(Limits(), address=address)
    settings = launch_settings(Limits(), address=address, users=lambda name, password: True)
    assert settings["auth"] is not None


def test_sharing_wants_users() -> None:
    with pytest.raises(PluginError, match="--share lets others in"):
        launch_settings(Limits(), share=True)


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "localhost", "::1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "", "::", "10.0.0.1", "localhost.example.org"]))


def answer(host: str, hosts: tuple[str, ...] | None) -> tuple[int, dict[bytes, bytes]]:
    """Send one request through the guard; return status and headers."""
    sent: list[MutableMapping[str, Any]] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"hello"})

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {}

    scope = {"type": "http", "headers": [(b"host", host.encode())]}
    asyncio.run(Guard(inner, hosts)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:7860", 200),
        ("evil.example:7860", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_other_names_for_this_machine_are_refused(host: str, status: int) -> None:
    found, headers = answer(host, ("127.0.0.1", "localhost", "::1", "[::1]"))
    assert found == status
    assert b"frame-ancestors 'self'" in headers[b"content-security-policy"]


def test_an_open_server_takes_any_name() -> None:
    assert answer("pictures.example", None)[0] == 200


def test_users_come_in_with_their_password_alone(tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    add_user(file, "ann", "correct horse")
    add_user(file, "bob", "battery staple")
    add_user(file, "ann", "another horse")
    is_user = read_users(file)
    assert is_user("ann", "another horse") and is_user("bob", "battery staple")
    assert not is_user("ann", "correct horse")
    assert not is_user("eve", "another horse") and not is_user("", "")
    assert "horse" not in file.read_text() and file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "names nobody"), ("ann:secret", "line 1 is no name"), ("\u00e4", "no file of users")],
)
def test_a_wrong_file_of_users_is_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "users.txt"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(PluginError, match=words):
        read_users(file)


def test_wrong_users_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="user 'a:b' is not allowed"):
        add_user(tmp_path / "users.txt", "a:b", "long enough")
    with pytest.raises(PluginError, match="the password has 3 characters"):
        add_user(tmp_path / "users.txt", "ann", "abc")
    with pytest.raises(PluginError, match="no such file"):
        read_users(tmp_path / "nobody.txt")


def test_without_gradio_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'pip install "skipstep\[app\]"'):
        import_gradio(tmp_path)


def test_a_mistake_on_the_command_line_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["skipstep-app", "--listen", "0.0.0.0"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("skipstep-app: --listen 0.0.0.0 lets others in")
