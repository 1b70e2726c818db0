"""The demo's synthetic corpus.

- `synthesise`: writing the corpus
- `speech`: the sounds of three invented languages
"""
