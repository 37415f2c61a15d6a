"""Reconstruction from many views: which views' tokens meet which."""
