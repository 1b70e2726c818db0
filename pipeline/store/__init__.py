"""The feature store on disk: Zarr arrays written in whole shards.

- `feature_store`: creating, writing and reading the arrays
- `shard_codec`: a shard's bytes
- `records`: store attributes and the completion record of each shard
- `statistics`: training mean and deviation
"""
