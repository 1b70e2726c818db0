"""The corpus: its recordings, what their headers say, and the manifest made of both.

How a corpus folder names its recordings, their languages and their speakers is in the package `layouts`.

- `listing`: the table of the recordings of a corpus
- `sources`: where the samples of the rows of a table are, and which rows share a file
- `database`: sorts, joins and distinct counts over more rows than fit into memory
- `splits`: the split of each recording
- `manifest`: the table of recordings with their splits and their places in the store
- `manifest_file`: the manifest as a file of row groups, of which a reader holds a few
- `manifest_summary`: what follows from all rows of a manifest, read one row group after the other
- `speakers`: the speakers of a manifest, counted and numbered
- `diff`: the differences between a corpus and its manifest
- `scan`: the scan stage, from corpus to manifest
"""
