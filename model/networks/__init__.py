"""The networks.

- `build`: building and compiling a network
- `lstm_cpu`: a faster LSTM for CPUs
"""
