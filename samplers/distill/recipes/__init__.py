"""Recipes, one file each: what the student is taught at a draw of noise, time and teacher."""
