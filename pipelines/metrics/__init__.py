"""Measures of pictures: fidelity to the uncached run, distribution, agreement with the text."""
