"""What every test needs: one thread, no network, and a root that is not a test package."""

import os
from pathlib import Path

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]

# Before anything imports Hugging Face's libraries, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


# While tests run, every function of skipstep checks its annotations, shapes too. mypy takes an int
# for a float (the numeric tower of PEP 484); `--jaxtyping-packages` cannot ask beartype to agree.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook("skipstep", f"{__name__}.checked")


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
    import torch

    config.pluginmanager.register(RootIsNoTestPackage())
    torch.set_num_threads(1)
