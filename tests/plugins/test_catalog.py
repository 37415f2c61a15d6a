"""The catalogue: our table joined with what other distributions declare."""

import dataclasses
import importlib
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pydantic
import pytest
from pydantic import ConfigDict

from skipstep.plugins import catalog
from skipstep.plugins.errors import PluginError, UnknownPlugin

PLUGIN = """
    from typing import ClassVar
    import pydantic
    from pydantic import ConfigDict

    @pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
    class Fade:
        name: ClassVar[str] = "fade"
        kind: ClassVar[str] = "custom"
        summary: ClassVar[str] = "Fade."
        paper: ClassVar[str] = ""
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that puts a distribution with entry points, and a module, on sys.path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(distribution: str, entry_points: str, module: str = "", code: str = PLUGIN) -> None:
        folder = tmp_path / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\n")
        (folder / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        if module:
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
            monkeypatch.delitem(sys.modules, module, raising=False)
            importlib.invalidate_caches()

    return put


def test_names_are_sorted_and_lower_case() -> None:
    names = catalog.names()
    assert names == sorted(names)
    assert set(catalog.BUILTIN) <= set(names)
    assert all(catalog.NAME.fullmatch(name) for name in names)
    assert all(catalog.TARGET.fullmatch(target) for target in catalog.BUILTIN.values())


@pytest.mark.parametrize("name", catalog.BUILTIN)
def test_every_plugin_of_ours_loads_and_has_defaults(name: str) -> None:
    plugin = catalog.load(name)
    assert plugin.summary.endswith(".") and "\n" not in plugin.summary
    assert plugin() == plugin()


def test_another_distribution_adds_a_plugin(install: Install) -> None:
    install("fader", "[skipstep.plugins]\nfade = fader_plugin : Fade\n", "fader_plugin")
    assert "fade" in catalog.names()
    assert "fader_plugin" not in sys.modules
    assert catalog.load("fade").__name__ == "Fade"


def test_a_plugin_installed_meanwhile_is_found(install: Install) -> None:
    with pytest.raises(UnknownPlugin):
        catalog.load("fade")
    install("fader", "[skipstep.plugins]\nfade = fader_plugin:Fade\n", "fader_plugin")
    assert catalog.load("fade").__name__ == "Fade"


def test_a_name_given_twice_names_both_owners(install: Install) -> None:
    install("fader", "[skipstep.plugins]\nfade = fader_plugin:Fade\n", "fader_plugin")
    install("greyer", "[skipstep.plugins]\nfade = greyer_plugin:Fade\n")
    with pytest.raises(PluginError) as caught:
        catalog.load("fade")
    message = str(caught.value)
    assert message.startswith("plugin 'fade' is declared by '")
    assert "'fader'" in message and "'greyer'" in message and "Uninstall one of them" in message


def test_a_name_of_ours_cannot_be_taken_over(install: Install) -> None:
    install("thief", "[skipstep.plugins]\neasycache = thief_plugin:Fade\n")
    with pytest.raises(PluginError, match="plugin 'easycache' is declared by 'skipstep' and 'thie"):
        catalog.load("easycache")


def test_the_second_copy_of_a_distribution_does_not_count(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("fader", "[skipstep.plugins]\nfade = fader_plugin:Fade\n", "fader_plugin")
    older = tmp_path / "older" / "Fader-0.9.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: Fader\n")
    (older / "entry_points.txt").write_text("[skipstep.plugins]\nfade = old_plugin:Fade\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.parent)])
    assert catalog.load("fade").__module__ == "fader_plugin"


@pytest.mark.parametrize(
    ("entry_points", "problem"),
    [
        ("[skipstep.plugins]\nfade\n", "its entry points cannot be read"),
        ("[skipstep.plugins]\nFade-Out = m:Fade\n", "plugin 'Fade-Out': a name is lower-case"),
        ("[skipstep.plugins]\nfade = m.Fade\n", "plugin 'fade': 'm.Fade' is not 'module:Class'"),
    ],
)
def test_a_broken_declaration_is_a_warning_that_names_the_distribution(
    install: Install, entry_points: str, problem: str
) -> None:
    install("careless", entry_points)
    with pytest.warns(UserWarning, match="distribution 'careless'.*Update or uninst") as caught:
        names = catalog.names()
    assert problem in str(caught[0].message)
    assert set(catalog.BUILTIN) <= set(names)


def test_listing_does_not_warn_without_a_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        catalog.names()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("", "AttributeError"),
    ],
)
def test_a_plugin_that_does_not_load_names_its_distribution(
    install: Install, code: str, reason: str
) -> None:
    install(
        "careless", "[skipstep.plugins]\nfade = careless_plugin:Fade\n", "careless_plugin", code
    )
    with pytest.raises(PluginError) as caught:
        catalog.load("fade")
    message = str(caught.value)
    assert message.startswith("plugin 'fade' of distribution 'careless' does not load from carele")
    assert reason in message and message.endswith("Update or uninstall careless")


def test_a_plugin_under_another_name_is_refused(install: Install) -> None:
    install("fader", "[skipstep.plugins]\ndim = fader_plugin:Fade\n", "fader_plugin")
    with pytest.raises(PluginError, match="plugin 'dim' .* calls itself 'fade'"):
        catalog.load("dim")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownPlugin, match=r"unknown plugin 'eazycache': did you mean 'easycach"):
        catalog.load("eazycache")


def test_a_class_says_what_it_lacks() -> None:
    @pydantic.dataclasses.dataclass(config=ConfigDict(extra="forbid"))
    class Thawed:
        name: ClassVar[str] = "thawed"

    @pydantic.dataclasses.dataclass(frozen=True)
    class Short:
        name: ClassVar[str] = "short"
        kind: ClassVar[str] = "custom"
        summary: str = ""

    @pydantic.dataclasses.dataclass(frozen=True)
    class Loud:
        name: ClassVar[str] = "LOUD"
        kind: ClassVar[str] = "custom"
        summary: ClassVar[str] = ""
        paper: ClassVar[str] = ""

    @dataclasses.dataclass(frozen=True)
    class Plain:
        name: ClassVar[str] = "plain"

    for lacking, words in [
        (Thawed, "Thawed is not a frozen pydantic dataclass: decorate it with @pydantic"),
        (Plain, "Plain is not a frozen pydantic dataclass"),
        (Short, "Short has no class variable 'summary': add `summary: ClassVar[str] = ...`"),
        (Loud, "Loud is named 'LOUD': a name is lower-case letters, digits and _"),
        (3, "3 is not a class: a plugin is a frozen pydantic dataclass"),
    ]:
        with pytest.raises(PluginError) as caught:
            catalog.check_class(lacking)
        assert words in str(caught.value)


def test_a_class_imported_from_the_root_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, toys: Any
) -> None:
    program = importlib.util.spec_from_file_location(
        "plugins.errors", catalog.ROOT / "plugins" / "errors.py"
    )
    assert program is not None
    monkeypatch.setitem(sys.modules, "plugins.errors", importlib.util.module_from_spec(program))
    stranger = type("Stranger", (), {"__module__": "plugins.errors"})
    with pytest.raises(PluginError) as caught:
        catalog.check_class(stranger)
    assert str(caught.value) == (
        "plugins.errors.Stranger was imported under a second name: its name is "
        "skipstep.plugins.errors.Stranger. Is the repository root on sys.path? "
        "Import from skipstep instead"
    )
    assert catalog.check_class(toys.Toy) is toys.Toy


def test_public_names_are_imported_when_used() -> None:
    import skipstep.plugins

    for name in skipstep.plugins.__all__:
        assert getattr(skipstep.plugins, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'enable'"):
        _ = skipstep.plugins.enable


def test_the_lazy_table_and_the_public_names_agree() -> None:
    import skipstep.plugins

    lazy = [name for names in skipstep.plugins.HOMES.values() for name in names]
    assert sorted(lazy) == sorted(skipstep.plugins.__all__)
