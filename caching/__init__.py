"""Caches of diffusion models: gates (when), forecasters (what instead) and spans (of what).

The contract is `skipstep.caching.base`; each paper's cache is one module of this package and a
preset of the product `skipstep.caching.product`. Nothing here knows diffusers.
"""
