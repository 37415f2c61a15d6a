"""The published members of the exponential Adams family, as data.

Each line is the update of a paper in this package's terms; tests compare every one with the
published formula. On a flow the eps kernel becomes the v kernel: both are dx / dsigma in the path's
own coordinates, which is what implementations of these methods for flows integrate.
"""

from dataclasses import replace
from typing import Literal

from skipstep.samplers.solvers.adams import Formula
from skipstep.samplers.solvers.paths import PathKind

__all__ = ["PRESETS", "PresetName", "formula_of"]

PresetName = Literal[
    "ddim",
    "pndm",
    "s-pndm",
    "plms",
    "ipndm",
    "deis",
    "deis3",
    "dpm++2m",
    "dpm++3m",
    "unipc",
    "unipc3",
    "accelerated",
    "ab2",
    "ab3",
    "ab4",
    "exact2",
    "exact3",
    "exact4",
]

PRESETS: dict[str, Formula] = {
    # Song et al. 2021, arXiv:2010.02502, Eq. (12), sigma = 0: Euler on a flow.
    "ddim": Formula("x0", "lambda", 1),
    # Liu et al. 2022, arXiv:2202.09778: F-PNDM with its pseudo Runge-Kutta start, and S-PNDM.
    "pndm": Formula("eps", "index", 4, start_up="pndm", taper_below=0),
    "s-pndm": Formula("eps", "index", 2, start_up="heun", taper_below=0),
    # The same without the start: orders 1, 2, 3, 4 as history fills. "plms" is the name that
    # Stable Diffusion gave it, "ipndm" Zhang and Chen's (2023, arXiv:2204.13902).
    "plms": Formula("eps", "index", 4, taper_below=0),
    "ipndm": Formula("eps", "index", 4, taper_below=0),
    # Zhang and Chen 2023, arXiv:2204.13902: rho-AB in ln rho.
    "deis": Formula("eps", "lambda", 2),
    "deis3": Formula("eps", "lambda", 3),
    # Lu et al. 2022, arXiv:2211.01095: the midpoint form of diffusers and of the authors.
    "dpm++2m": Formula("x0", "lambda", 2, rule="dpmpp"),
    "dpm++3m": Formula("x0", "lambda", 3, rule="dpmpp", taper_below=15),
    # Zhao et al. 2023, arXiv:2302.04867: B(h) = exp(h) - 1 ("bh2").
    "unipc": Formula("x0", "lambda", 2, corrector=True, rule="midpoint"),
    "unipc3": Formula("x0", "lambda", 3, corrector=True, rule="midpoint"),
    # Li et al. 2024, arXiv:2403.03852: eps linear in alpha-bar between two steps.
    "accelerated": Formula("eps", "alpha_bar", 2),
    # Adams-Bashforth on the flow with the true step sizes.
    "ab2": Formula("v", "flow", 2, taper_below=0),
    "ab3": Formula("v", "flow", 3, taper_below=0),
    "ab4": Formula("v", "flow", 4, taper_below=0),
    # Nobody's but the family's: exact integrals, a corrector, and from order 3 a start of order 4.
    "exact2": Formula("x0", "lambda", 2, corrector=True),
    "exact3": Formula("x0", "lambda", 3, start_up="rk4"),
    "exact4": Formula("x0", "lambda", 4, start_up="rk4"),
}


def formula_of(name: str, kind: PathKind) -> Formula:
    """Return a preset's formula on a kind of path.

    Raises ValueError for a name that is none.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} is unknown: choose one of {', '.join(PRESETS)}")
    formula = PRESETS[name]
    return replace(formula, kernel="v") if kind == "flow" and formula.kernel == "eps" else formula
