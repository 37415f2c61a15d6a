"""Batch generation: a file of prompts becomes a folder of pictures, also across crashes.

`rows` and `files` read and check the prompts, `plan` cuts them into shards once, `runner` makes one
shard after the other, and `manifests` is what makes a shard done. `engines` runs it in this process
or in several.
"""
