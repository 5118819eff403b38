"""Writes seeds with TensorFlow and Keras: `python write_seeds.py FOLDER` fills FOLDER/seeds."""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Write all seeds below a folder."""
    import keras
    import numpy as np
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    top = folder / "seeds"
    top.mkdir()
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 1, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="bn1")(x)
    x = keras.layers.TimeDistributed(keras.layers.BatchNormalization(scale=False), name="td")(x)
    inner = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.BatchNormalization(name="bn2")])
    model = keras.Model(inputs, inner(x))
    model.compile("adam", "mse")
    model.fit(np.ones((4, 4, 4, 2)), np.ones((4, 4, 4, 3)), verbose=0)
    model.save(top / "functional.keras")
    model.save(top / "functional.h5")
    model.save_weights(top / "functional.weights.h5")
    model.export(str(top / "exported"), verbose=False)
    tf.saved_model.save(model, str(top / "saved"))
    converted = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (top / "functional.tflite").write_bytes(converted)
    tf.train.Checkpoint(model=model).save(str(top / "objects" / "ckpt"))

    one = tf.compat.v1
    with tf.Graph().as_default(), one.Session() as session:
        data = one.placeholder(tf.float32, (None, 3), "x")
        for name in ("a/bn", "b/bn"):
            partitioner = one.fixed_size_partitioner(2) if name[0] == "b" else None
            with one.variable_scope(name, partitioner=partitioner):
                role = [one.get_variable(each, (3,)) for each in ROLES]
            gamma, beta, mean, variance = map(tf.convert_to_tensor, role)
            data = tf.nn.batch_normalization(data, mean, variance, beta, gamma, 1e-3)
        tf.identity(data, "y")
        session.run(one.global_variables_initializer())
        for version, prefix in ((1, "v1/m.ckpt"), (2, "v2/m")):
            (top / prefix).parent.mkdir()
            one.train.Saver(write_version=version).save(session, str(top / prefix), global_step=7)
        frozen = one.graph_util.convert_variables_to_constants(
            session, session.graph_def, [data.op.name]
        )
        (top / "frozen.pb").write_bytes(frozen.SerializeToString())


ROLES = ("gamma", "beta", "moving_mean", "moving_variance")

if __name__ == "__main__":
    main(Path(sys.argv[1]))
