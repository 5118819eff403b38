"""Writes seeds with TensorFlow and Keras: `python -m tests.fuzz.write_seeds FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Write all seeds into FOLDER/seeds."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tests.builders.digits import save_keras
    from tests.builders.graph_mode import save_graph, v1
    from tests.builders.keras_models import functional

    top = folder / "seeds"
    for name in ("objects", "v1", "v2"):
        (top / name).mkdir(parents=True)
    model = functional(keras)
    model.compile("adam", "mse")
    model.fit(np.ones((4, 6, 6, 3)), np.ones((4, 2)), verbose=0)
    save_keras(model, top)
    model.save_weights(top / "functional.weights.h5")
    converted = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (top / "functional.tflite").write_bytes(converted)
    tf.train.Checkpoint(model=model).save(str(top / "objects" / "ckpt"))

    def build() -> None:
        x = v1.placeholder(tf.float32, (None, 3), "x")
        for name, parts in (("a/bn", None), ("b/bn", v1.fixed_size_partitioner(2))):
            with v1.variable_scope(name, partitioner=parts):
                roles = [v1.get_variable(role, (3,)) for role in ROLES]
            gamma, beta, mean, variance = map(tf.convert_to_tensor, roles)
            x = tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    for version, prefix in ((1, "v1/m.ckpt"), (2, "v2/m")):
        save_graph(top / prefix, build, step=7, write_version=version, write_meta_graph=True)


ROLES = ("gamma", "beta", "moving_mean", "moving_variance")

if __name__ == "__main__":
    main(Path(sys.argv[1]))
