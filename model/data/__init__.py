"""Reading a feature store in blocks.

- `store_reader`: blocks of sequences, in order or shuffled
- `array_reader`: one array, directly from the files of its shards
- `generator`: generators read by TensorFlow's threads
"""
