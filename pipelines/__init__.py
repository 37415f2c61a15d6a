"""Flows built on diffusers pipelines: the reference model, metrics, generation."""
