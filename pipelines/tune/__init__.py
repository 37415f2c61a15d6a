"""Fitting to one model: calibrations, planned schedules, and `autotune`, which looks for a target.

`calibrate` and `calibrate_solver` measure numbers that a cache or a solver needs, `plan` makes
schedules from one run a prompt, `polish` and `ecad` evolve them on real runs, and `autotune` tries
all of it and plain fewer steps.
"""
