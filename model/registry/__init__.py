"""The registry of models that are or were in service.

- `registry`: the folder registry/ and its file of decisions
- `digests`: what the other files of the folder must be
- `history`: the decisions, and what follows from them, as pure functions
- `promotion`: the rule that compares two models
"""
