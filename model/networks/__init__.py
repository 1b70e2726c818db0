"""Networks: a class per kind of model.

- `kinds`: the kinds of models, and how to add one
- `basic`: the kinds `ann` and `lstm`
- `build`: building, compiling and running a network
- `lstm_cpu`: a faster LSTM for CPUs
"""
