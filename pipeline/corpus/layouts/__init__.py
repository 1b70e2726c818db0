"""Layouts: the ways in which a corpus folder names its recordings, their languages and their speakers.

- `protocol`: what a layout provides
- `walk`: the files below a folder, without those of systems and programs
- `folder_checks`: mistakes in a corpus of folders that would cost hours, or a language
- `folders`: LANGUAGE/[SPEAKER/]file
- `registry`: the table of layouts, and the choice of one
"""
