"""Distillation: recipes that turn a denoiser of many steps into a student of few."""
