"""Extraction: the plan, the work on a shard, and the stages that write, verify and compact a store.

- `segments`: the units of work: segments, shards and tasks
- `plan`: which frames land in which shard
- `planned_rows`: rows of the manifest as arrays, of which the plan makes segments
- `task_size`: how many shards are a task
- `task`: the work of one task: decode, compute, write
- `shard`: the arrays and the record of one shard
- `recording_reader`: the features of the recordings of a task, from as few decodings as possible
- `retry`: which failed recordings may be readable now
- `lifecycle`: creating, extending and finishing a store
- `pending`: the shards that are still to be written, and the recordings that are tried again
- `record_ranges`: the records of all shards, read by the driver or by workers
- `outcomes`: the outcomes of recordings in many shards, as arrays
- `ledger`: the outcome of every recording
- `poison`: finding recordings that end the workers that read them
- `extract`: the extract stage
- `verify`: the verify stage
- `repair`: which damaged shards can be made again
- `moves`: where the old store has the sequences of each shard of a compacted one
- `compact`: the compact command
"""
