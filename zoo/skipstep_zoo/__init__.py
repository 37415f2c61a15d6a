"""Weights of skipstep's reference models beside the default: `skipstep.load_reference(name)`."""
