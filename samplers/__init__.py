"""Samplers: how a pipeline walks from noise to picture in fewer steps."""
