"""Why each variable of a file was, or was not, taken as batch norm."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bnstat.formats.contents import Contents
from bnstat.model import BatchNorm, Verdict

_OPTIMIZERS_1 = (
    "Adam|AdamW|AdaMax|Adadelta|AdagradDA|Ftrl|Shampoo|RMSProp|Momentum|MomentumW|Adagrad|"
    "ProximalAdagrad|RegAdagrad|LARSOptimizer|AddSignOptimizer|PowerSignOptimizer|LAMB"
)
_OPTIMIZERS_2 = (
    "SGD|Adam|AdamW|RMSprop|Adagrad|Adadelta|Adamax|Nadam|Ftrl|Lion|Adafactor|"
    "sgd|adam|adam_w|adamw|rm_sprop|rmsprop|adagrad|adadelta|adamax|nadam|ftrl|lion|lamb|"
    "adafactor|muon|loss_scale_optimizer"
)

_KEYS = (
    (r"/\.OPTIMIZER_SLOT/", "slot variable of an optimizer"),
    (r"^(.*/)?optimizer(_\d+)?/(_variables|_momentums|_velocities|_iterations|_learning_rate|iter$|"
     r"learning_rate|decay|beta_[12]|momentum)(/|$)", "an optimizer's own variable"),
    (r"^(optimizer_weights|optimizer)/", "an optimizer's own variable"),
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
    (r"/(biased|local_step)$", "zero-debias accumulator of a moving average"),
    (r"/moving_(mean|variance)/_?(hidden|counter)$", "zero-debias accumulator of a moving average"),
    (r"/ExponentialMovingAverage(_\d+)?$", "shadow copy by an exponential moving average"),
    (r"/(moving_mean|moving_variance)$", "moving statistic without its counterpart"),
    (r"(^|/)(gamma|beta|scale|offset)$",
     "no moving statistics beside it: layer, group or instance norm, or not saved"),
)  # fmt: skip

_COMPILED = [
    (is_key, re.compile(pattern), reason)
    for is_key, table in ((True, _KEYS), (False, _NAMES))
    for pattern, reason in table
]


def explain(
    contents: Contents, layers: Sequence[BatchNorm], incomplete: Sequence[BatchNorm]
) -> list[Verdict]:
    """A verdict for every variable, in the order of the file."""
    taken = {}
    for layer, reason in [
        *((layer, f"found by {layer.evidence}") for layer in layers),
        *((layer, "its layer's moving statistics are not in the file") for layer in incomplete),
    ]:
        for role, variable in layer.variables.items():
            taken[variable.key] = Verdict(variable.key, layer.name, role, reason)
        for label, variable in layer.extra.items():
            taken[variable.key] = Verdict(variable.key, layer.name, label, "kept beside the roles")
        for variable in layer.undecided:
            taken[variable.key] = Verdict(
                variable.key, layer.name, None, "the file does not tell its role"
            )
    return [
        taken.get(key) or Verdict(key, None, None, _reason(key, contents.name_of(key)))
        for key in contents.variables
    ]


def _reason(key: str, name: str) -> str:
    for is_key, pattern, reason in _COMPILED:
        if pattern.search(key if is_key else name):
            return reason
    return "its name is no batch-norm variable's"
