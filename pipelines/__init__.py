"""Flows built on diffusers pipelines.

`compare` proves, `tune` fits, `batch` makes many, `ui` is the web UI and `cli` the command line;
`reference` and `splat` are pipelines of our own, `metrics` judges, `distill` trains students.
"""
