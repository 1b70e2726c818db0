"""The feature store on disk: Zarr arrays written in whole shards.

- `feature_store`: creating, writing and reading the arrays
- `shard_codec`: the bytes of a shard
- `records`: the attributes of a store and the record of each shard
- `statistics`: mean and standard deviation of the training features
"""
