"""Writes what Flax and Haiku save of small networks: run it in an environment that has both.

    python -m pip install flax dm-haiku
    python tests/data/jax/make_jax.py

It was last run with Flax 0.12.8, Haiku 0.0.17, JAX 0.10.2 and NumPy 2.4.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import haiku
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, serialization

HERE = Path(__file__).parent
INPUT = jnp.ones((2, 4, 4, 3))


class Network(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.BatchNorm(use_running_average=True, name="bn")(linen.Conv(4, (3, 3))(x))
        x = linen.Dense(5)(x.reshape(len(x), -1))
        return linen.BatchNorm(use_running_average=True)(x)


def in_haiku(x: Any) -> Any:
    return haiku.BatchNorm(True, True, 0.9, name="bn")(haiku.Conv2D(4, 3)(x), True)


def filled(tree: Any) -> Any:
    random = np.random.default_rng(3)
    return jax.tree.map(lambda a: jnp.asarray(random.random(a.shape), a.dtype), tree)


def main() -> None:
    variables = filled(Network().init(jax.random.key(0), INPUT))
    (HERE / "linen.msgpack").write_bytes(serialization.to_bytes(variables))
    params, state = haiku.transform_with_state(in_haiku).init(jax.random.key(0), INPUT)
    pair = (filled(params), filled(state))
    (HERE / "haiku.pkl").write_bytes(pickle.dumps(pair))
    truth = {
        f"linen/{'/'.join(key.key for key in path)}": np.asarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(variables)
    }
    for tree in pair:
        for module, arrays in tree.items():
            truth |= {f"haiku/{module}/{name}": np.asarray(a) for name, a in arrays.items()}
    np.savez_compressed(HERE / "truth.npz", **truth)


if __name__ == "__main__":
    main()
