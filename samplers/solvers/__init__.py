"""Solvers: how far a pipeline gets from noise to picture with a given number of evaluations."""
