"""Models on a feature store: loading, training, evaluation, prediction.

- `train`: the train stage
- `evaluate`: the evaluate stage
- `predict`: the command line `python -m model.predict`
- `loader`: tf.data datasets of sequences and frames
- `config`: settings of models, training and promotion
- `bundle`: a model's folder
- `archive`: .keras files, with a digest of their own
- `checkpoint`: training state after each epoch
- `training_history`: the epochs of a training
- `step_clock`: steps per second and time spent waiting for input
- `tensorflow_setup`: loading TensorFlow and Keras, their threads and settings
"""
