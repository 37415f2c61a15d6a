"""Files that carry what was measured, searched or fitted, read strictly."""
