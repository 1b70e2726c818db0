"""Layouts: the ways in which a corpus folder names its recordings, their languages and their speakers.

- `protocol`: what a layout provides
- `files`: what a walk over a corpus folder finds; names of files and folders
- `traversal`: work that leads to further work, in threads
- `local_files`: the files below a folder of this machine
- `s3_files`: the files below a folder of S3
- `remote_files`: the files below a folder behind another URL
- `walk`: a walk over a corpus folder, wherever it is
- `folder_checks`: mistakes in a corpus of folders that would cost hours, or a language
- `folders`: LANGUAGE/[SPEAKER/]file
- `registry`: the table of layouts, and the choice of one
"""
