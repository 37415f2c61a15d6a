"""What a run's token reduction did, counted, and put into words."""

from dataclasses import dataclass, field

from skipstep.plugins.tokens.base import TokenPlugin

__all__ = ["Tally"]


@dataclass
class Tally:
    """Count the picture tokens of all self-attention calls of a run, and FLOPs where known.

    Args:
        modules: self-attention modules of the denoiser.
        reduced: which of them worked on fewer tokens at least once.
        unlike: those that do not treat their tokens alike, or hold text among them.
        tokens: picture tokens that came to modules which could reduce them.
        kept: slots that these attended on.
        longest: most picture tokens in one call.
        flops_done: of the denoiser's calls whose count is known.
        flops_full: of the same calls without reduction.
        calls: calls of the denoiser, and how many of them are counted.
    """

    modules: int
    reduced: set[str] = field(default_factory=set)
    unlike: set[str] = field(default_factory=set)
    tokens: int = 0
    kept: int = 0
    longest: int = 0
    flops_done: float = 0.0
    flops_full: float = 0.0
    calls: int = 0
    counted: int = 0

    def words(self, plugin: TokenPlugin, denoiser: str) -> tuple[list[str], list[str]]:
        """Return notes and warnings for the report."""
        notes, warnings = [], []
        if self.reduced:
            saved = ""
            if self.flops_full:
                saved = (
                    f" and saved {1 - self.flops_done / self.flops_full:.1%} of the denoiser's "
                    "FLOPs"
                )
                if self.counted < self.calls:
                    saved += f" (counted on {self.counted} of {self.calls} calls)"
            notes.append(
                f"{plugin.name} kept {self.kept / self.tokens:.0%} of the picture tokens in "
                f"{len(self.reduced)} of {self.modules} self-attentions of {denoiser}{saved}."
            )
            if self.flops_full and self.flops_done >= self.flops_full:
                warnings.append(
                    f"{plugin.name} costs more than it saves on {denoiser}: measuring which tokens "
                    "matter takes more than attention on fewer of them gives back. Use larger "
                    "pictures, raise min_tokens, or measure less often (renew)."
                )
        elif not plugin.keeps_all:
            why = (
                f"its sequences have at most {self.longest} picture tokens and min_tokens is "
                f"{plugin.min_tokens}: lower min_tokens, or use larger pictures"
                if 0 < self.longest < plugin.min_tokens
                else "no step was left to it, or no token could be spared: lower dense_steps or "
                "reduce more"
            )
            warnings.append(f"{plugin.name} reduced nothing on {denoiser}: {why}.")
        if self.unlike:
            notes.append(
                f"{len(self.unlike)} of {self.modules} self-attentions of {denoiser} kept all "
                "tokens: they mix text and picture in an order that could not be proved, or do "
                "not treat all tokens alike."
            )
        return notes, warnings
