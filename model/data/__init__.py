"""Reading a feature store in blocks.

- `store_reader`: blocks of sequences, in order or shuffled
- `array_reader`: one array, straight from its shards
- `generator`: generators read by TensorFlow's threads
"""
