"""Which model is in service, and why.

- `registry`: registry/ and its file of decisions
- `history`: decisions, as pure functions of their history
- `promotion`: the rule that compares two models
"""
