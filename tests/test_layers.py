"""Imports run one way: files, kernels <- caching, samplers <- plugins <- pipelines <- app."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

BELOW_PLUGINS = {"files", "kernels", "caching", "samplers"}
MAY_IMPORT = {
    "files": {"files"},
    "kernels": {"kernels"},
    "caching": {"files", "kernels", "caching"},
    "samplers": {"files", "kernels", "samplers"},
    "plugins": BELOW_PLUGINS | {"plugins"},
    "testing": BELOW_PLUGINS | {"plugins", "testing"},
    "pipelines": BELOW_PLUGINS | {"plugins", "pipelines"},
    "__init__": BELOW_PLUGINS | {"plugins", "pipelines"},
    "app": BELOW_PLUGINS | {"plugins", "pipelines", "skipstep"},
}
# The lowest layers know tensors, not pipelines.
NO_PIPELINE_LIBRARIES = {"files", "kernels", "caching"}
PIPELINE_LIBRARIES = {"diffusers", "transformers", "accelerate"}
# One method, one file, of tensors alone: what the plugin around it does is none of its business.
METHODS = ROOT / "plugins" / "attention" / "methods"
METHODS_MAY_IMPORT = ("skipstep.kernels.", "skipstep.plugins.attention.methods.")
# Extras: imported inside the function that needs them, so that the package imports without them.
OPTIONAL = {
    "av",
    "gradio",
    "lpips",
    "matplotlib",
    "optuna",
    "peft",
    "pyarrow",
    "ray",
    "resvg_py",
    "triton",
}


def source_files() -> list[Path]:
    """List the files of the package: those of the layers, and the two at the root."""
    folders = [layer for layer in MAY_IMPORT if (ROOT / layer).is_dir()]
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return files + sorted(ROOT.glob("*.py"))


def layer_of(path: Path) -> str:
    """Name the layer of a file: its first folder, or its own name at the root."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """List every module that is imported anywhere in a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "skipstep":
                yield from (f"skipstep.{alias.name}" for alias in node.names)


def top_level_modules(tree: ast.Module) -> Iterator[str]:
    """List modules imported when the file is imported; imports inside functions do not count."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported_modules(node)
        waiting.extend(ast.iter_child_nodes(node))


def upward_imports(layer: str, tree: ast.AST) -> list[str]:
    """List imports that a layer must not make."""
    found = []
    for module in imported_modules(tree):
        first, *rest = module.split(".")
        if first == "skipstep":
            target = rest[0] if rest else "skipstep"
            known = target in MAY_IMPORT or target == "skipstep"
            if known and target not in MAY_IMPORT[layer]:
                found.append(module)
        elif layer in NO_PIPELINE_LIBRARIES and first in PIPELINE_LIBRARIES:
            found.append(module)
    return found


def early_extras(stem: str, tree: ast.Module) -> list[str]:
    """List extras that a file imports at its top.

    Triton's compiler wants kernels at the top of a module, beside `triton.language`: files whose
    name ends in `_triton` hold them and count as extras themselves.
    """
    holds_kernels = stem.endswith("_triton")
    found = []
    for module in top_level_modules(tree):
        first = module.split(".")[0]
        extra = first in OPTIONAL or any(name.endswith("_triton") for name in module.split("."))
        if extra and not (holds_kernels and (first == "triton" or first == "skipstep")):
            found.append(module)
    return sorted(found)


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    layer = layer_of(path)
    wrong = upward_imports(layer, ast.parse(path.read_text(encoding="utf-8")))
    assert not wrong, f"{layer} may import {sorted(MAY_IMPORT[layer])}, not {wrong}"


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_extras_are_imported_inside_functions(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    early = early_extras(path.stem, tree)
    assert not early, f"import {early} inside the function that needs it"


@pytest.mark.parametrize("path", sorted(METHODS.glob("*.py")), ids=lambda path: path.stem)
def test_methods_of_attention_know_tensors_and_kernels_alone(path: Path) -> None:
    modules = set(imported_modules(ast.parse(path.read_text(encoding="utf-8"))))
    ours = [name for name in modules if name.split(".")[0] == "skipstep"]
    assert not [name for name in ours if not name.startswith(METHODS_MAY_IMPORT)]
    assert not {name.split(".")[0] for name in modules} & PIPELINE_LIBRARIES


def test_the_check_sees_an_upward_import() -> None:
    assert upward_imports("caching", ast.parse("from skipstep.plugins.errors import PluginError"))
    assert upward_imports("caching", ast.parse("def f():\n    import diffusers"))
    assert upward_imports("plugins", ast.parse("from skipstep import pipelines"))
    assert upward_imports("plugins", ast.parse("import skipstep"))
    assert not upward_imports("plugins", ast.parse("from skipstep.caching.base import Gate"))


def test_the_check_sees_an_early_import() -> None:
    assert "triton" in top_level_modules(ast.parse("try:\n    import triton\nexcept: pass"))
    assert "triton" not in top_level_modules(ast.parse("def f():\n    import triton"))


def test_only_kernel_files_import_triton_and_each_other_early() -> None:
    kernels = ast.parse("import triton\nfrom skipstep.kernels.glu_triton import glu_kernel")
    assert early_extras("glu", kernels) == ["skipstep.kernels.glu_triton", "triton"]
    assert early_extras("glu_triton", kernels) == []
    assert early_extras("glu_triton", ast.parse("import gradio")) == ["gradio"]


def test_the_root_holds_two_python_files() -> None:
    names = {path.name for path in ROOT.glob("*.py")}
    assert names <= {"__init__.py", "app.py"}, (
        f"every Python file at the root ships inside the package: {sorted(names)}"
    )


def test_kernels_is_a_namespace_folder() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), (
        "with kernels/__init__.py, `python app.py` hides Hugging Face's package `kernels`, "
        "which diffusers imports, and no Flux pipeline loads"
    )


def test_file_names_say_what_is_inside() -> None:
    vague = {"utils", "common", "helpers", "misc"}
    libraries = {"diffusers", "numpy", "tokenizers", "torch", "transformers", "triton", "yaml"}
    # `python plugins/x.py` puts the folder first on sys.path, where such a file hides the library.
    # Nothing but the standard profiler itself misses `profile`.
    clashes = libraries | (set(sys.stdlib_module_names) - {"profile"})
    assert not [path for path in source_files() if path.stem in vague | clashes]
