"""The doctor names what is there, what is missing and what to do, and breaks on nothing."""

from importlib import metadata

import pytest

from skipstep.pipelines.cli import doctor
from skipstep.plugins import catalog


def findings() -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine()}


def test_versions_are_those_that_are_installed() -> None:
    found = findings()
    for name in ("torch", "diffusers"):
        assert (found[name].state, found[name].detail) == ("ok", metadata.version(name))
    assert found["cpu"].state == "ok"


def test_the_seam_is_tested_and_not_only_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.seam().state == "ok"
    monkeypatch.setattr("skipstep.plugins.seam.call_slot_works", lambda: False)
    assert "wrap forward() instead" in doctor.seam().detail


def test_a_missing_distribution_comes_with_its_cure() -> None:
    missing = doctor.version("no-such-distribution", needed=True)
    assert (missing.state, missing.detail) == ("broken", "pip install no-such-distribution")


def test_extras_are_those_the_package_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = [
        "torch>=2",
        'no-such-distribution>=1 ; extra == "splat"',
        "torch ; sys_platform == 'linux' and extra == 'kernels'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: declared)
    found = {finding.what: finding for finding in doctor.extras()}
    assert found["extra splat"].state == "absent"
    assert found["extra splat"].detail == (
        'pip install "skipstep[splat]" (missing: no-such-distribution)'
    )
    assert found["extra kernels"].state == "ok"
    assert set(found) == {"extra splat", "extra kernels"}


def test_a_broken_plugin_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.BUILTIN, "nowhere", "skipstep.caching.nowhere:Nowhere")
    found = doctor.catalogue()
    assert found.state == "broken" and "'nowhere'" in found.detail


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WEIGHTS", ("text", "nowhere"))
    found = doctor.reference()
    assert found.state == "broken" and "weights missing: nowhere;" in found.detail
