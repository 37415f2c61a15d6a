"""What every test needs: one thread, no network, and a root that is not a test package."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

ROOT = Path(__file__).resolve().parents[1]

# Before anything imports Hugging Face's libraries, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# Before triton is imported, by whomever: without a GPU, kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# mypy takes an int for a float (the numeric tower of PEP 484); beartype does when it is told.
check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments of a function when it is called, if its annotations can be checked.

    Some cannot, such as protocols of pydantic's that do not support isinstance.
    """
    try:
        return check_types(function)
    except BeartypeDecorHintException:
        return function


# While tests run, every function of skipstep checks its annotations, shapes too. It is done here
# and not with `--jaxtyping-packages`, which takes neither of the two exceptions above.
jaxtyping.install_import_hook("skipstep", f"{__name__}.checked")

# A shared machine can be slow at any moment: no test fails for the time that it takes.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


class RootIsNoTestPackage:
    """Keep pytest from importing the root's __init__.py a second time under another name.

    The repository root is a Python package, so pytest would collect it as one.
    """

    def pytest_collect_directory(
        self, path: Path, parent: pytest.Collector
    ) -> pytest.Collector | None:
        """Collect the root as a plain folder and leave every other folder to pytest."""
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    """Register the rule above and give torch one thread: tiny networks lose time with more."""
    config.pluginmanager.register(RootIsNoTestPackage())
    torch.set_num_threads(1)


@pytest.fixture
def as_users_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the checks of annotations off, as they are outside of tests.

    For tests of our own messages about arguments that the annotations already forbid.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
