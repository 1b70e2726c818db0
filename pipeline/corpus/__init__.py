"""The corpus: its recordings, what their headers say, and the manifest made of both.

How a corpus folder names its recordings, their languages and their speakers is in the package `layouts`.

- `listing`: the table of the recordings of a corpus
- `sources`: where the samples of the rows of a table are, and which rows share a file
- `splits`: the split of each recording
- `manifest`: the table of recordings with their splits and their places in the store
- `manifest_file`: the manifest as a file of row groups, of which a reader holds a few
- `diff`: the differences between a corpus and its manifest
- `scan`: the scan stage, from corpus to manifest
"""
