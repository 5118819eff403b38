"""Each kind of model as a program: on disk, in memory, of Keras."""
