"""The report on an output folder, and its status on the terminal.

- `page`: report/index.html
- `plots`: the pictures
- `champion`: the section on the model in service
- `status`: the status command
"""
