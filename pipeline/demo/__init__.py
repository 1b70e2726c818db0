"""The synthetic corpus of the demo.

- `synthesise`: the files of the corpus
- `speech`: the sounds of three invented languages
"""
