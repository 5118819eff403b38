"""What Keras saves: .h5, .weights.h5, .keras, and their configs."""
