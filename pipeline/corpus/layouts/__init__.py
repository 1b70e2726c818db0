"""Layouts: the ways in which a corpus folder names its recordings, their languages and their speakers.

- `protocol`: what a layout provides
- `folders`: LANGUAGE/[SPEAKER/]file
- `registry`: the table of layouts, and the choice of one
"""
