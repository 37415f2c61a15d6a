"""Spans name the part of a model that is skipped and replaced."""
