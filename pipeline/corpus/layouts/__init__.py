"""Layouts: the ways in which a corpus folder names its recordings, their languages and their speakers.

- `protocol`: what a layout provides
- `folders`: LANGUAGE/[SPEAKER/]file
- `registry`: all layouts; a new one is a module here and a line there
"""
