"""The corpus: which recordings there are, what their headers say, and the manifest made of both.

- `listing`: the recordings of a corpus folder
- `scan`: the scan stage: corpus to manifest
- `manifest`: the table of recordings with splits and places in the store
- `diff`: how a corpus differs from its manifest
"""
