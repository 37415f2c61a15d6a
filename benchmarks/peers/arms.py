"""Who takes part in the comparison, with which settings, on which reference models: plain data.

A further reference model is one more row of MODELS, a further peer one more row of PEERS. A setting
is one line, `name:option=value,...`, read by the peer's driver; `grid` writes the lines of a sweep.
"""

from dataclasses import dataclass
from itertools import product

__all__ = ["MODELS", "OURS", "PEERS", "STEPS_ALONE", "Model", "Peer", "grid"]

OURS = "skipstep"
STEPS_ALONE = "fewer steps"


@dataclass(frozen=True)
class Model:
    """A reference model: the diffusers class it is, by which peers know pipelines (ours is a
    subclass), and the "module:function" that loads it by name.
    """

    stock_class: str
    loader: str = "skipstep.pipelines.reference.load:load_reference"


@dataclass(frozen=True)
class Peer:
    """One who takes part: "module:function" that switches a setting on, its settings, and fewer of
    them for a quick look.
    """

    driver: str
    package: str
    settings: tuple[str, ...]
    quick: tuple[str, ...]


def grid(line: str, **values: tuple[object, ...]) -> tuple[str, ...]:
    """Return `line` with every combination of the values in its %(name)s places.

    >>> grid("fora:interval=%(n)s", n=(2, 3))
    ('fora:interval=2', 'fora:interval=3')
    """
    combinations = product(*values.values())
    return tuple(line % dict(zip(values, each, strict=True)) for each in combinations)


MODELS = {
    "picture": Model("PixArtAlphaPipeline"),
    "unet": Model("StableDiffusionPipeline"),
    "joint": Model("FluxPipeline"),
    "picture256": Model("PixArtAlphaPipeline"),
}

# Planned for this model and number of steps, on prompts that are not measured.
PLANNED = "planned:share=%(n)s,forecaster=%(f)s,span=%(s)s"
HALF = "{type: damped, damping: 0.5}"
# Fewer steps of a solver fitted to where the pipeline's own ends, on the same other prompts.
FITTED = "fitted:share=%(n)s"
# cache-dit's own lists of computed steps, with a line of ours.
BY_HAND = "scheduled:steps=%(m)s,forecaster={type: lagrange, order: 2},span=output"

SHARES_QUICK = (0.68, 0.62, 0.57, 0.5, 0.43, 0.36, 0.32, 0.25)
SKIPSTEP_QUICK = (
    *grid(PLANNED, n=SHARES_QUICK, f=("fitted",), s=("output",)),
    *grid(PLANNED, n=(0.5, 0.25), f=(HALF,), s=("output",)),
    *grid(FITTED, n=(0.5, 0.36, 0.29, 0.21)),
    "abcache:interval=3",
    # What a UNet has instead of blocks; refused elsewhere.
    "deepcache:interval=3",
)
SKIPSTEP = (
    *SKIPSTEP_QUICK,
    *grid(PLANNED, n=(0.75, 0.29, 0.21), f=("fitted",), s=("output",)),
    *grid(PLANNED, n=(0.5, 0.36, 0.29), f=("fitted",), s=("residual",)),
    *grid(PLANNED, n=(0.62, 0.36, 0.21), f=(HALF,), s=("output",)),
    *grid(BY_HAND, m=("medium", "fast", "ultra")),
    *grid("abcache:interval=%(n)s", n=(2, 4, 6)),
    *grid("seacache:threshold=%(t)s", t=(0.25, 0.5, 0.8)),
    "taylorseer:interval=3",
    # Every other preset as it comes: what a user gets who turns nothing.
    "easycache",
    "speca",
    "spectrum",
    "foca",
    "hicache",
    "dbcache",
    "dicache",
    "fbcache",
    "deepcache",
)

# F front and B back blocks, W warm-up steps, I their interval, R threshold, MC most skips in a row,
# as cache-dit's documentation abbreviates them; `mask` is its preset of steps, or our rhythm
# "every N after W", always with its policy "static".
DBCACHE = "dbcache:F=%(F)s,B=%(B)s,W=%(W)s,R=%(R)s,MC=%(MC)s,calibrator=%(c)s"
MASKED = "dbcache:F=1,mask=%(m)s,calibrator=%(c)s"
CACHE_DIT_QUICK = (
    *grid(MASKED, m=("slow", "medium", "fast", "ultra"), c=("taylor1",)),
    *grid(MASKED, m=("every2w3", "every3w3", "every4w3", "every6w3"), c=("taylor1",)),
    *grid(MASKED, m=("medium", "every3w3"), c=("taylor2",)),
    *grid(DBCACHE, F=(1,), B=(0,), W=(4,), R=(0.12,), MC=(3,), c=("taylor1",)),
    "dbcache:F=4,W=4,R=0.24,MC=4,calibrator=taylor1",
)
CACHE_DIT = (
    *CACHE_DIT_QUICK,
    *grid(MASKED, m=("slow", "medium", "fast", "ultra"), c=("none",)),
    *grid(DBCACHE, F=(1,), B=(0,), W=(4,), R=(0.12,), MC=(3,), c=("none",)),
    "dbcache:F=1,W=6,R=0.24,MC=6,calibrator=taylor1",
    "dbcache:F=1,W=8,I=4,R=0.8,MC=10,calibrator=taylor1",
    "dbcache:F=8,W=8,R=0.08",
    "dbcache:F=1,W=8,I=2,R=0.8,MC=8,calibrator=taylor1",
    "dbcache:F=1,B=2,W=4,R=0.24,MC=3,calibrator=taylor1",
    *grid(DBCACHE, F=(1,), B=(0,), W=(4,), R=(0.05, 0.24), MC=(3,), c=("none", "taylor1")),
    *grid(MASKED, m=("slow", "fast", "ultra", "every2w3", "every4w3", "every6w3"), c=("taylor2",)),
    *grid(
        DBCACHE, F=(1,), B=(0,), W=(2, 8), R=(0.08, 0.16, 0.35, 0.5), MC=(3,), c=("none", "taylor1")
    ),
    *grid(
        DBCACHE, F=(4,), B=(0,), W=(4,), R=(0.08, 0.12, 0.35, 0.8), MC=(4,), c=("none", "taylor1")
    ),
    *grid(DBCACHE, F=(8,), B=(0,), W=(4,), R=(0.08, 0.24, 0.8), MC=(4,), c=("none", "taylor1")),
    *grid(DBCACHE, F=(1, 4), B=(2,), W=(4,), R=(0.12, 0.35), MC=(4,), c=("none", "taylor1")),
    "dbcache:F=4,W=4,MC=4,R=0.24",
    "dbcache:F=1,W=6,R=0.24,MC=6",
    *grid(MASKED, m=("slow", "medium", "ultra"), c=("dmd", "foca")),
    *grid(MASKED, m=("fast",), c=("dmd", "foca")),
    *grid(MASKED, m=("every3w3", "every4w3", "every5w3", "every3w5", "every5w5"), c=("none",)),
    *grid(MASKED, m=("every5w3", "every3w5", "every5w5"), c=("taylor1", "taylor2")),
)

DIFFUSERS_QUICK = (
    "seacache:threshold=0.25,most=2",
    "seacache:threshold=0.5,most=4",
    "taylorseer:interval=3,order=1",
    *grid("taylorseer:interval=%(n)s,order=1,is_lite=true", n=(2, 3, 4, 5)),
)
DIFFUSERS = (
    *DIFFUSERS_QUICK,
    *grid("seacache:threshold=%(t)s,most=%(m)s", t=(0.15, 0.35, 0.7), m=(2, 4)),
    "seacache:threshold=0.25,most=4",
    "seacache:threshold=0.5,most=2",
    *grid("seacache:threshold=%(t)s,most=%(m)s", t=(1.0, 1.5), m=(4, 6)),
    *grid("taylorseer:interval=%(n)s,order=1", n=(2, 4, 5)),
    *grid("taylorseer:interval=%(n)s,order=2", n=(2, 3, 4, 5)),
    "taylorseer:interval=6,order=1,is_lite=true",
    *grid("taylorseer:interval=%(n)s,order=2,is_lite=true", n=(2, 3, 4, 5, 6)),
    *grid("first_block:threshold=%(t)s", t=(0.05, 0.08, 0.12, 0.18, 0.25, 0.35)),
    *grid("magcache:threshold=%(t)s,most=%(m)s", t=(0.06, 0.12, 0.5), m=(3, 5)),
    "magcache:threshold=0.24",
    "pab:spatial=2,cross=4",
    *grid("pab:spatial=%(s)s,cross=%(c)s", s=(2, 3), c=(5, 6)),
    "fastercache:spatial=2,unconditional=5",
)

SHARES = (0.75, 0.67, 0.57, 0.5, 0.43, 0.36, 0.33, 0.25, 0.18)
# Whoever takes fewer steps may take a better solver too.
SOLVED = "steps:share=%(s)s,solver=%(p)s"

PEERS = {
    OURS: Peer("skipstep.benchmarks.peers.drivers:skipstep", "skipstep", SKIPSTEP, SKIPSTEP_QUICK),
    "cache-dit": Peer(
        "skipstep.benchmarks.peers.drivers:cache_dit", "cache-dit", CACHE_DIT, CACHE_DIT_QUICK
    ),
    "diffusers": Peer(
        "skipstep.benchmarks.peers.drivers:diffusers", "diffusers", DIFFUSERS, DIFFUSERS_QUICK
    ),
    "DeepCache": Peer(
        "skipstep.benchmarks.peers.drivers:deepcache",
        "DeepCache",
        grid("interval:interval=%(n)s", n=(2, 3, 5)),
        ("interval:interval=3",),
    ),
    STEPS_ALONE: Peer(
        "skipstep.benchmarks.peers.drivers:fewer_steps",
        "skipstep",
        (
            *grid("steps:share=%(s)s", s=SHARES),
            *grid(SOLVED, s=(0.67, 0.5, 0.36), p=("unipc", "dpm++2m")),
        ),
        (*grid("steps:share=%(s)s", s=SHARES[1::2]), *grid(SOLVED, s=(0.5, 0.36), p=("unipc",))),
    ),
}
