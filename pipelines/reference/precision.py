"""In which precision training passes run: bfloat16 only where the hardware multiplies it."""

import torch

__all__ = ["half_precision", "precision"]


def precision() -> str:
    """Return "bf16" if the hardware multiplies bfloat16, else "no": emulated it is slow."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "no"


def half_precision(device: torch.device) -> torch.autocast:
    """Return a context in which passes run in bfloat16 if `precision` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision() == "bf16")
