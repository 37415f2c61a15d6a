"""Write one .html file that shows a scene without a network: viewer, splats and all.

The page holds the scene as .spz and the viewer Spark with three.js (both MIT; notices at the top of
viewer/bundle.js, which is part of every page). The bundle is made from viewer/main.js by
  npm install @sparkjsdev/spark@2.2.0 three@0.187.0 esbuild@0.25
  esbuild main.js --bundle --minify --format=iife --target=es2022 --outfile=bundle.js
It has 3 MB. A wheel with it is 1 MB larger; loading it from a CDN instead would end "offline".
"""

import base64
import html
import json
import math
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.spz_file import write_spz

__all__ = ["write_html"]

# Browsers keep a page this large open without trouble; base64 adds a third.
MOST_BYTES = 60_000_000


def write_html(
    gaussians: Gaussians,
    path: Path,
    *,
    camera: Cameras | None = None,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    title: str = "3D Gaussians",
) -> None:
    """Write the page; it opens with the first view of `camera`, by default one that sees all.

    Raises ValueError when the scene is too large for a page.
    """
    with TemporaryDirectory() as folder:
        packed = Path(folder) / "scene.spz"
        write_spz(gaussians, packed)
        data = packed.read_bytes()
    if len(data) > MOST_BYTES:
        raise ValueError(
            f"{len(data) / 1e6:.0f} MB of splats are too many for one page "
            f"(at most {MOST_BYTES / 1e6:.0f} MB): keep fewer splats or save a .spz"
        )
    values = {
        "title": html.escape(title),
        "note": f"{len(gaussians):,} Gaussians. Drag to turn, scroll to zoom.",
        "css": "#" + "".join(f"{round(255 * part):02x}" for part in background),
        "ink": "#333" if sum(background) > 1.5 else "#ccc",
        "settings": json.dumps({**view_of(gaussians, camera), "background": background}),
        "splats": base64.b64encode(data).decode(),
        "bundle": viewer_file("bundle.js"),
    }
    page = viewer_file("page.html")
    for name, value in values.items():
        page = page.replace("{{" + name + "}}", value, 1)
    path.write_text(page, encoding="utf-8")


def viewer_file(name: str) -> str:
    """Read a file of the viewer."""
    folder = resources.files("skipstep.pipelines").joinpath("splat/viewer")
    return folder.joinpath(name).read_text(encoding="utf-8")


def view_of(gaussians: Gaussians, camera: Cameras | None) -> dict[str, object]:
    """Return where the viewer's camera stands, in its y-up world: y and z change their sign."""
    middle, reach = gaussians.extent()
    if camera is None:
        position = Cameras.orbit(1, radius=3.2 * reach, target=middle).centres[0]
        target, up, fov = middle, torch.tensor([0.0, -1.0, 0.0]), 49.1
    else:
        first = camera[0].to("cpu")
        position, forward = first.centres[0], first.w2c[0, 2, :3]
        # The point in front of the camera at the scene's depth.
        ahead = max(float(((middle - position) * forward).sum()), reach / 10)
        target, up = position + forward * ahead, -first.w2c[0, 1, :3]
        fov = math.degrees(2 * math.atan(first.height / 2 / float(first.K[0, 1, 1])))
    flip = torch.tensor([1.0, -1.0, -1.0])
    return {
        "position": (position * flip).tolist(),
        "target": (target * flip).tolist(),
        "up": (up * flip).tolist(),
        "fov": fov,
        "near": max(reach / 500, 1e-4),
        "far": max(1000 * reach, 10.0),
    }
