"""What the wheel holds: every package folder and every data file.

A folder that pyproject.toml does not list works in an editable install and misses in the wheel.
"""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_PACKAGES = {
    "benchmarks",
    "build",
    "dist",
    "docs",
    "examples",
    "notebooks",
    "out",
    "tests",
    "zoo",
}
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]


def folder_of(package: str) -> Path:
    """Find the folder of a package: the root is `skipstep`."""
    return ROOT.joinpath(*package.split(".")[1:])


def package_of(folder: Path) -> str:
    """Name the package of a folder."""
    return ".".join(["skipstep", *folder.relative_to(ROOT).parts])


def package_files() -> list[Path]:
    """List the files below the package folders, caches and hidden files left out."""
    found = []
    for folder in sorted(ROOT.iterdir()):
        hidden = folder.name.startswith(".") or folder.name.endswith(".egg-info")
        if folder.is_dir() and not hidden and folder.name not in NOT_PACKAGES:
            found += [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in found if "__pycache__" not in path.parts]


def owner_and_pattern_path(path: Path) -> tuple[str, str]:
    """Find the nearest listed package above a data file, and the file's path inside it."""
    folder = path.parent
    while package_of(folder) not in SETUPTOOLS["packages"] and folder != ROOT:
        folder = folder.parent
    return package_of(folder), path.relative_to(folder).as_posix()


def test_every_folder_with_python_files_is_a_listed_package() -> None:
    folders = {path.parent for path in package_files() if path.suffix == ".py"}
    missing = {package_of(folder) for folder in folders} - set(SETUPTOOLS["packages"])
    assert not missing, f"add to packages in pyproject.toml: {sorted(missing)}"


def test_every_listed_package_exists() -> None:
    gone = [name for name in SETUPTOOLS["packages"] if not list(folder_of(name).glob("*.py"))]
    assert not gone, f"remove from packages in pyproject.toml: {gone}"


def test_every_data_file_is_shipped() -> None:
    unmatched = []
    for path in package_files():
        if path.suffix == ".py":
            continue
        package, inside = owner_and_pattern_path(path)
        patterns = SETUPTOOLS["package-data"].get(package, [])
        if not any(fnmatch(inside, pattern) for pattern in patterns):
            unmatched.append(f"{package}: {inside}")
    assert not unmatched, f"add to package-data in pyproject.toml: {unmatched}"


def test_every_data_pattern_matches_a_file() -> None:
    empty = [
        f"{package}: {pattern}"
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        if not list(folder_of(package).glob(pattern))
    ]
    assert not empty, f"remove from package-data in pyproject.toml: {empty}"


def test_the_package_is_marked_as_typed() -> None:
    assert "py.typed" in SETUPTOOLS["package-data"]["skipstep"]
    assert (ROOT / "py.typed").is_file()
