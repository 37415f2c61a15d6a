"""Proof: the same prompts and seeds with and without plugins, and what they say about each other.

`arms` reads what is to be compared, `run` makes the pictures, `tally` enters every call,
`comparison` is the outcome, and `text`, `sheet` and `page` show it.
"""
