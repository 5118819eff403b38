"""What looks like batch norm by its name and is not: slots, accumulators, shadows, bookkeeping.

Source: the optimizers of TensorFlow 1 (python/training), Keras 2 (legacy and since 2.11) and
Keras 3, each of which was run and saved.
"""

from __future__ import annotations

import re

_OPTIMIZERS_1 = (
    "Adam|AdamW|AdaMax|Adadelta|AdagradDA|Ftrl|Shampoo|RMSProp|Momentum|MomentumW|Adagrad|"
    "ProximalAdagrad|RegAdagrad|LARSOptimizer|AddSignOptimizer|PowerSignOptimizer|LAMB"
)
_OPTIMIZERS_2 = (
    "SGD|Adam|AdamW|RMSprop|Adagrad|Adadelta|Adamax|Nadam|Ftrl|Lion|Adafactor|"
    "sgd|adam|adam_w|adamw|rm_sprop|rmsprop|adagrad|adadelta|adamax|nadam|ftrl|lion|lamb|"
    "adafactor|muon|loss_scale_optimizer"
)

ACCUMULATOR = "zero-debias accumulator of a moving average"

_KEYS = (
    (r"/\.OPTIMIZER_SLOT/", "slot variable of an optimizer"),
    (r"^(.*/)?optimizer(_\d+)?/(_variables|_momentums|_velocities|_iterations|_learning_rate|iter$|"
     r"learning_rate|decay|beta_[12]|momentum)(/|$)", "an optimizer's own variable"),
    (r"^(optimizer_weights|optimizer)/(?!(.*/)?_trainable_variables/)",
     "an optimizer's own variable"),
    (r"^_all_variables/", "the same variable again, as model.export stores it"),
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

_COMPILED = [
    (is_key, re.compile(pattern), reason)
    for is_key, table in ((True, _KEYS), (False, _NAMES))
    for pattern, reason in table
]


def set_apart(key: str, name: str) -> str | None:
    """Why a variable of that key and name is no layer's own; None where nothing says so."""
    for is_key, pattern, reason in _COMPILED:
        if pattern.search(key if is_key else name):
            return reason
    return None
