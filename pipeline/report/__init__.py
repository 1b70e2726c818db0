"""The report, its pictures, and the status command.

- `page`: report/index.html
- `results`: what an output folder holds for the page
- `corpus_section`: the page's sections on the corpus and on failures
- `ledger_counts`: what is counted in the ledger
- `model_section`: the page's sections on trained models
- `champion`: the page's section on the model in service
- `plots`: pictures
- `picture`: figures as PNG, in one style, with a font for every script
- `status`: the status command
"""
