"""Distillation of a whole pipeline: conditions, the teacher's paths, training, the student file."""
