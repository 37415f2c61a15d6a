"""Streaming reconstruction of a place: one posed photograph at a time, no network.

For each new view (ARTDECO, Li et al. 2025, arXiv:2510.08551, and SurfelNeRF, Gao et al. 2023,
arXiv:2304.08971):
1. Depth by plane sweep against the views nearest to it that came before; it counts where one of
   their own depths agrees.
2. Fusion. A Gaussian whose centre falls on a trusted pixel within one plane of its depth z is the
   same surface: its mean and colour become running means with weight W, W <- W + 1.
3. Insertion. A pixel gets a new Gaussian with the chance
     p = clip(LoG(picture) - LoG(rendering), 0, 1) + floor,    and for sure where nothing is yet
   where LoG is the blurred magnitude of the Laplacian: detail that the scene lacks. Its size is
   z / f times clip(1 / sqrt(p), 1, LARGEST): few large ones on plain walls.
4. A few steps of refinement on the newest and on drawn earlier views.

Differs from the papers' code: ARTDECO takes poses and depth from a feed-forward SLAM front end and
keeps levels of detail; SurfelNeRF fuses features by a learned gate. Here poses are given, depth is
swept, and colours are averaged.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skipstep.pipelines.splat.capture import Capture
from skipstep.pipelines.splat.cost_volume import sweep
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.plane_sweep import agreement, neighbours
from skipstep.pipelines.splat.refine import refine
from skipstep.pipelines.splat.scene import mean_colour

__all__ = ["StreamingReconstructor", "insertion_chance", "laplacian"]

PLANES, NEIGHBOURS = 64, 4
# Colour difference of a trusted depth.
TRUSTED = 0.06
# Alpha below which nothing is there yet; chance of a new Gaussian where nothing is missing.
EMPTY, FLOOR = 0.3, 0.02
# Of a new Gaussian: one alone fills its pixel to more than EMPTY.
OPACITY = 0.7
LARGEST = 4.0
WEIGHT = "times seen"


@dataclass
class StreamingReconstructor:
    """Add views one by one; `scene` is what there is so far.

    Attributes:
        near: Smallest depth of anything, in units of the cameras' world.
        far: Largest depth.
        steps: Steps of refinement after each view.
        views_per_step: Views of each step; the newest is one of them.
        seed: Of insertion and of the views drawn.
    """

    near: float
    far: float
    steps: int = 10
    views_per_step: int = 2
    seed: int = 0
    scene: Gaussians | None = None
    views: list[Capture] = field(default_factory=list)
    depths: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.near < self.far:
            raise ValueError(f"near={self.near} and far={self.far}: depths must be 0 < near < far")
        self.generator = torch.Generator().manual_seed(self.seed)

    @property
    def between(self) -> float:
        """Return the difference of 1 / z between two planes: what a depth is known to."""
        return (1 / self.near - 1 / self.far) / (PLANES - 1)

    def add(self, view: Capture) -> dict[str, int]:
        """Add one view and return how many Gaussians were fused and inserted.

        The first view waits for the second. All views have one size.

        Raises ValueError for more or fewer views than one, and for another size.
        """
        if len(view) != 1:
            raise ValueError(f"{len(view)} views were given: add them one by one")
        size = view.pictures.shape[-2:]
        if self.views and self.views[0].pictures.shape[-2:] != size:
            raise ValueError("the view differs in size from those before: resize the capture")
        self.views.append(view)
        if len(self.views) == 1:
            return {"fused": 0, "inserted": 0}
        if len(self.views) == 2:
            self.depths = [self.sweep(0)]
        self.depths.append(self.sweep(len(self.views) - 1))
        counts = self.extend(len(self.views) - 1)
        if len(self.views) == 2:
            first = self.extend(0)
            counts = {name: counts[name] + first[name] for name in counts}
        self.settle()
        return counts

    @torch.no_grad()
    def extend(self, newest: int) -> dict[str, int]:
        """Fuse and insert what one view shows."""
        depth, is_trusted = self.depth_of(newest)
        view = self.views[newest]
        fused = 0
        if self.scene is None:
            chance = torch.ones_like(depth)
        else:
            self.scene, fused = fuse(self.scene, view, depth, is_trusted, self.between)
            rendering = self.scene.render(view.cameras)
            chance = insertion_chance(view.pictures[0, :3], rendering.rgb[0].permute(2, 0, 1))
            chance = torch.where(rendering.alpha[0] < EMPTY, 1.0, chance)
        drawn = torch.rand(depth.shape, generator=self.generator) < chance
        made = new_gaussians(view, depth, drawn & is_trusted, chance)
        self.scene = made if self.scene is None else Gaussians.cat([self.scene, made])
        return {"fused": fused, "inserted": len(made)}

    def group(self, view: int) -> list[int]:
        """Return a view and its nearest others."""
        cameras = joined(self.views).cameras
        return neighbours(cameras, min(NEIGHBOURS, len(self.views) - 1))[view]

    @torch.no_grad()
    def sweep(self, newest: int) -> Float[Tensor, "2 height width"]:
        """Return one view's depth by sweeping it against its nearest others, and the difference."""
        group = joined([self.views[view] for view in self.group(newest)])
        z = 1 / torch.linspace(1 / self.near, 1 / self.far, PLANES)
        pictures = group.pictures[:, :3]
        opaque = torch.cat([pictures, torch.ones_like(pictures[:, :1])], 1)
        # View 0 is swept against each of the others; what they are swept against is not used.
        others = [[other, *[0] * (len(group) - 1)] for other in range(1, len(group))]
        _, dif = sweep(
            opaque[None], group.cameras.w2c[None], group.cameras.K[None], z, others=others
        )
        best = torch.nn.functional.avg_pool2d(dif[0, :1], 3, 1, 1)[0].min(0)
        return torch.stack([z[best.indices], best.values])

    def depth_of(
        self, newest: int
    ) -> tuple[Float[Tensor, "height width"], Bool[Tensor, "height width"]]:
        """Return one view's depth and where it can be trusted: another view agrees."""
        chosen = self.group(newest)
        cameras = joined([self.views[view] for view in chosen]).cameras
        depths = torch.stack([self.depths[view][0] for view in chosen])
        depth, difference = self.depths[newest]
        return depth, (difference < TRUSTED) & (agreement(depths, cameras)[0] >= 1)

    def settle(self) -> None:
        """Refine on the newest view and on earlier ones."""
        if not self.steps or self.scene is None or not len(self.scene):
            return
        count = min(self.views_per_step - 1, len(self.views) - 1) * self.steps
        drawn = torch.randint(len(self.views) - 1, (count,), generator=self.generator).tolist()
        capture = joined([self.views[-1], *(self.views[view] for view in sorted(set(drawn)))])
        seen = self.scene.features[WEIGHT]
        refined = refine(
            replace(self.scene, features={}),
            capture.pictures[:, :3],
            capture.cameras,
            steps=self.steps,
            views_per_step=min(self.views_per_step, len(capture)),
            background=mean_colour(capture),
            seed=self.seed + len(self.views),
        )
        self.scene = replace(refined, features={WEIGHT: seen})


def joined(views: list[Capture]) -> Capture:
    """Put single views together."""
    first = views[0]
    cameras = replace(
        first.cameras,
        w2c=torch.cat([view.cameras.w2c for view in views]),
        K=torch.cat([view.cameras.K for view in views]),
    )
    names = [name for view in views for name in view.names]
    return Capture(torch.cat([view.pictures for view in views]), cameras, names)


def laplacian(picture: Float[Tensor, "3 height width"]) -> Float[Tensor, "height width"]:
    """Return the blurred magnitude of the Laplacian of the grey picture."""
    grey = picture.mean(0)[None, None]
    kernel = picture.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    edges = torch.nn.functional.conv2d(padded, kernel).abs()
    return torch.nn.functional.avg_pool2d(edges, 3, 1, 1)[0, 0]


def insertion_chance(
    picture: Float[Tensor, "3 height width"], rendering: Float[Tensor, "3 height width"]
) -> Float[Tensor, "height width"]:
    """Return the chance of a new Gaussian per pixel: the detail that the rendering lacks."""
    return (laplacian(picture) - laplacian(rendering)).clamp(0, 1) + FLOOR


def new_gaussians(
    view: Capture,
    depth: Float[Tensor, "height width"],
    chosen: Bool[Tensor, "height width"],
    chance: Float[Tensor, "height width"],
) -> Gaussians:
    """Return a Gaussian for every chosen pixel, larger where few are drawn."""
    cameras = view.cameras
    points = cameras.centres[0] + cameras.rays()[0] * depth[..., None]
    larger = chance.rsqrt().clamp(1, LARGEST)
    size = (0.7 * depth / cameras.K[0, 0, 0] * larger)[chosen]
    made = Gaussians.from_colours(
        points[chosen],
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(size), 1),
        size[:, None].repeat(1, 3),
        torch.full_like(size, OPACITY),
        view.pictures[0, :3].permute(1, 2, 0)[chosen],
    )
    return replace(made, features={WEIGHT: torch.ones(len(size), 1)})


def fuse(
    scene: Gaussians,
    view: Capture,
    depth: Float[Tensor, "height width"],
    is_trusted: Bool[Tensor, "height width"],
    between: float,
) -> tuple[Gaussians, int]:
    """Move Gaussians that a view sees again towards where it sees them; return how many.

    The same surface is what differs by at most `between` in 1 / z.
    """
    cameras = view.cameras
    at = scene.means @ cameras.w2c[0, :3, :3].T + cameras.w2c[0, :3, 3]
    z = at[:, 2]
    pixel = (at @ cameras.K[0].T)[:, :2] / z.clamp_min(1e-6)[:, None]
    column, row = pixel.floor().long().unbind(-1)
    inside = (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
    inside &= z > 0
    index = row.clamp(0, cameras.height - 1), column.clamp(0, cameras.width - 1)
    seen = depth[index]
    is_same = inside & is_trusted[index] & ((1 / seen - 1 / z).abs() < between)
    weight = scene.features[WEIGHT]
    share = torch.where(is_same[:, None], 1 / (weight + 1), 0.0)
    # Along the ray: the view knows the depth, not where in its pixel the centre lies.
    centre = cameras.centres[0]
    there = centre + (scene.means - centre) * (seen / z.clamp_min(1e-6))[:, None]
    colours = Gaussians.from_colours(
        *(scene.means, scene.quats, scene.scales, scene.opacities),
        view.pictures[0, :3].permute(1, 2, 0)[index],
    )
    base = scene.sh[:, :1].lerp(colours.sh, share[..., None])
    fused = replace(
        scene,
        means=scene.means.lerp(there, share),
        sh=torch.cat([base, scene.sh[:, 1:]], 1),
        features={WEIGHT: weight + is_same[:, None]},
    )
    return fused, int(is_same.sum())
