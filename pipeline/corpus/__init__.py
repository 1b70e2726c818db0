"""The corpus: its recordings, what their headers say, and the manifest made of both.

How a corpus folder names its recordings, their languages and their speakers is in the package `layouts`.

- `database`: tables that may be larger than memory
- `listing`: the table of the recordings of a corpus
- `headers`: the table of the headers of their files
- `header_task`: reading headers, on a worker
- `sources`: where the samples of the rows of a table are, and which rows share a container
- `splits`: the split of each recording
- `new_rows`: the rows that recordings get in the manifest, and their order
- `manifest`: the table of recordings with their splits and their places in the store
- `manifest_file`: the manifest as a file of row groups, of which a reader holds a few
- `manifest_writer`: writing the manifest
- `manifest_table`: the manifest as a table of a database
- `manifest_summary`: what follows from all rows of a manifest, read one row group after the other
- `speakers`: the speakers of a manifest, counted and numbered
- `diff`: the differences between a corpus and its manifest
- `scan`: the scan stage, from corpus to manifest
- `scan_log`: what a scan logs of a corpus
"""
