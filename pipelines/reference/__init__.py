"""The reference model: a small text-to-image pipeline, trained here, to measure plugins on."""

from skipstep.pipelines.reference.load import load_reference

__all__ = ["load_reference"]
