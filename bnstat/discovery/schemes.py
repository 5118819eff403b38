"""The names of batch norm's variables in each library, and similar names of other variables.

Source of the lookalikes (names of variables that are not batch norm): files saved by the optimizers
of TensorFlow 1 (python/training), Keras 2 (legacy and since 2.11) and Keras 3.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final, NamedTuple


class Scheme(NamedTuple):
    """The names that a library gives the variables of a batch-norm layer.

    A name consists of the layer's scope and an ending, which starts with a separator. Only moving
    statistics show batch norm, because layer, group and instance norm also have gamma and beta.

    Attributes:
        surely: False if the endings are ordinary words (`mean`, `variance`), which alone do not
            show batch norm.
        trees: pairs (root of the statistics, root of the parameters), for libraries that store the
            two in separate trees: `batch_stats/bn/mean`, `params/bn/scale`.
    """

    library: str
    mean: str
    variance: str
    gamma: tuple[str, ...]
    beta: tuple[str, ...]
    extra: tuple[str, ...] = ()
    surely: bool = True
    trees: tuple[tuple[str, str], ...] = ()

    def roles(self, labels: Collection[str]) -> dict[str, str]:
        """Return role -> label (`gamma`), for the labels of one layer that fit this scheme."""
        endings = {
            "gamma": self.gamma,
            "beta": self.beta,
            "moving_mean": (self.mean,),
            "moving_variance": (self.variance,),
        }
        matches = {
            role: next((ending[1:] for ending in own if ending[1:] in labels), None)
            for role, own in endings.items()
        }
        return {role: label for role, label in matches.items() if label is not None}


RENORM: Final = (
    "moving_stddev",
    "renorm_mean",
    "renorm_mean_weight",
    "renorm_stddev",
    "renorm_stddev_weight",
)
"""The further variables of batch renormalization."""

COUNT: Final = "num_batches_tracked"

SCHEMES: Final = (
    Scheme("Keras, tf.layers, contrib, slim, Sonnet 1", "/moving_mean", "/moving_variance",
           ("/gamma", "/scale"), ("/beta", "/offset"),
           extra=tuple(f"/{label}" for label in RENORM)),
    Scheme("Keras's words in one name", "_moving_mean", "_moving_variance",
           ("_gamma",), ("_beta",)),
    Scheme("Sonnet 2", "/moving_mean/average", "/moving_variance/average",
           ("/scale",), ("/offset",)),
    Scheme("tensorpack", "/mean/EMA", "/variance/EMA",
           ("/gamma",), ("/beta",)),
    Scheme("Keras 1", "_running_mean", "_running_std",
           ("_gamma",), ("_beta",)),
    Scheme("Keras 1, in a layer's own group", "/running_mean", "/running_std",
           ("/gamma",), ("/beta",)),
    Scheme("PyTorch", "/running_mean", "/running_var",
           ("/weight", "/gamma"), ("/bias", "/beta"), extra=(f"/{COUNT}",)),
    Scheme("PyTorch (also timm, Hugging Face) and Gluon, dotted", ".running_mean", ".running_var",
           (".weight", ".gamma"), (".bias", ".beta"), extra=(f".{COUNT}",)),
    Scheme("Haiku", "/~/mean_ema/average", "/~/var_ema/average",
           ("/scale",), ("/offset",), trees=(("state", "params"),)),
    Scheme("Flax; NNabla", "/mean", "/var", ("/scale", "/gamma"), ("/bias", "/beta"),
           trees=(("batch_stats", "params"),), surely=False),
    Scheme("Flax, dotted", ".mean", ".var",
           (".scale",), (".bias",), trees=(("batch_stats", "params"),), surely=False),
    Scheme("Flax NNX", "/mean/value", "/var/value",
           ("/scale/value",), ("/bias/value",), surely=False),
    Scheme("Flax NNX, dotted", ".mean.value", ".var.value",
           (".scale.value",), (".bias.value",), surely=False),
    Scheme("Chainer", "/avg_mean", "/avg_var",
           ("/gamma",), ("/beta",), extra=("/N",)),
    Scheme("MXNet", "_moving_mean", "_moving_var",
           ("_gamma",), ("_beta",)),
    Scheme("Gluon", "_running_mean", "_running_var",
           ("_gamma",), ("_beta",)),
    Scheme("ONNX's words", ".input_mean", ".input_var",
           (".scale",), (".B",)),
    Scheme("hand-written, population statistics", "/pop_mean", "/pop_var",
           ("/gamma", "/scale"), ("/beta", "/offset", "/shift")),
    Scheme("hand-written, population statistics", "/pop_mean", "/pop_variance",
           ("/gamma", "/scale"), ("/beta", "/offset", "/shift")),
    Scheme("hand-written, moving statistics", "/moving_mean", "/moving_var",
           ("/gamma", "/scale"), ("/beta", "/offset", "/shift")),
    Scheme("averages of tf.nn.moments", "/moments/Squeeze", "/moments/Squeeze_1",
           ("/gamma", "/scale"), ("/beta", "/offset")),
    Scheme("averages of tf.nn.moments, 2015", "/moments/normalize/mean",
           "/moments/normalize/variance", ("/gamma", "/scale"), ("/beta", "/offset")),
    Scheme("averages of tf.nn.moments, 2016", "/moments/moments_1/mean",
           "/moments/moments_1/variance", ("/gamma", "/scale"), ("/beta", "/offset")),
    Scheme("caffe-tensorflow, hand-written", "/mean", "/variance",
           ("/scale", "/gamma"), ("/offset", "/beta", "/shift"), surely=False),
)  # fmt: skip
"""All schemes; the first scheme that fits a scope is used."""

_SURE_SCHEMES: Final = tuple(scheme for scheme in SCHEMES if scheme.surely)

LABELS: Final = frozenset(
    ending[1:]
    for scheme in _SURE_SCHEMES
    for ending in (scheme.mean, scheme.variance, *scheme.gamma, *scheme.beta)
)
"""All names that a variable may have within its layer: `gamma`, `moving_mean/average`."""


def find_roles(labels: Collection[str]) -> dict[str, str]:
    """Return role -> label (`gamma`) for the variables of one layer."""
    return dict(_roles_of(LABELS.intersection(labels)))


@lru_cache(maxsize=1024)
def _roles_of(labels: frozenset[str]) -> dict[str, str]:
    # A large model has few different sets of labels. Statistics count more than other roles.
    return max(
        (scheme.roles(labels) for scheme in _SURE_SCHEMES),
        key=lambda roles: (len(roles.keys() - {"gamma", "beta"}), len(roles)),
    )


_OPTIMIZERS_1 = (
    "Adam|AdamW|AdaMax|Adadelta|AdagradDA|Ftrl|Shampoo|RMSProp|Momentum|MomentumW|Adagrad|"
    "ProximalAdagrad|RegAdagrad|LARSOptimizer|AddSignOptimizer|PowerSignOptimizer|LAMB"
)
_OPTIMIZERS_2 = (
    "SGD|Adam|AdamW|RMSprop|Adagrad|Adadelta|Adamax|Nadam|Ftrl|Lion|Adafactor|"
    "sgd|adam|adam_w|adamw|rm_sprop|rmsprop|adagrad|adadelta|adamax|nadam|ftrl|lion|lamb|"
    "adafactor|muon|loss_scale_optimizer"
)

ACCUMULATOR: Final = "zero-debias accumulator of a moving average"

_KEYS = (
    (r"/\.OPTIMIZER_SLOT/", "slot variable of an optimizer"),
    (r"^(.*/)?optimizer(_\d+)?/(_variables|_momentums|_velocities|_iterations|_learning_rate|iter$|"
     r"learning_rate|decay|beta_[12]|momentum)(/|$)", "an optimizer's own variable"),
    (r"^(optimizer_weights|optimizer)/(?!(.*/)?_trainable_variables/)",
     "an optimizer's own variable"),
    (r"^_all_variables/", "second entry for a variable, written by model.export"),
    (r"^(_CHECKPOINTABLE_OBJECT_GRAPH|.*/\.ATTRIBUTES/OBJECT_CONFIG_JSON)$",
     "bookkeeping of the checkpoint"),
    (r"(^|/)save_counter(/|$)", "bookkeeping of the checkpoint"),
)  # fmt: skip

_NAMES = (
    (rf"/({_OPTIMIZERS_1})(_\d)?$", "slot variable of an optimizer"),
    (rf"^(training/)?({_OPTIMIZERS_2})(_\d+)?/", "slot variable of an optimizer"),
    (r"(^|/)beta[12]_power(_\d+)?$", "an optimizer's own variable"),
    (r"(^|/)(global_step|current_loss_scale|good_steps)$", "bookkeeping of the training"),
    (r"/(biased|local_step)(_\d+)?$", ACCUMULATOR),
    (r"/moving_(mean|variance)/_?(hidden|counter)$", ACCUMULATOR),
    (r"/ExponentialMovingAverage(_\d+)?$", "shadow copy by an exponential moving average"),
)  # fmt: skip

_LOOKALIKES = [
    (is_key, re.compile(pattern), description)
    for is_key, table in ((True, _KEYS), (False, _NAMES))
    for pattern, description in table
]


def describe_lookalike(key: str, name: str) -> str | None:
    """Describe a variable whose key or name shows that it is not batch norm; else return None."""
    for is_key, pattern, description in _LOOKALIKES:
        if pattern.search(key if is_key else name):
            return description
    return None
