"""The feature store on disk: Zarr arrays written in whole shards.

- `feature_store`: creating, writing and reading the arrays
- `shard_codec`: the bytes of a shard
- `records`: the attributes of a store and the record of each shard
- `record_digests`: the file of the digests of these records, read and written in parts
- `metadata`: the metadata of a store, and the copy from which it is restored
- `zarr_json`: comparing documents of metadata, apart from what other programs added
- `added_variables`: the variables that other programs added to a store
- `statistics`: mean and standard deviation of the training features
"""
