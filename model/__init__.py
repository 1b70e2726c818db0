"""Models on a feature store: loading, training, evaluation, prediction.

- `train`: the train stage
- `evaluate`: the evaluate stage
- `predict`: the command line `python -m model.predict`
- `loader`: tf.data datasets of sequences and frames
- `config`: settings of models, training and promotion
- `bundle`: a model's folder
- `checkpoint`: training state after each epoch
- `step_clock`: steps per second and time spent waiting for input
- `tensorflow_setup`: loading TensorFlow and Keras, their threads and settings
"""
