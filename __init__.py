"""Accelerate diffusers pipelines and prove what it cost."""
