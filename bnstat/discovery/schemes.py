"""How libraries name the variables of batch norm: one row a scheme.

A row gives, for each role, the endings of a variable's name that mean it; what stands before the
ending is the layer's scope. Moving statistics are what make a scope a batch norm: gamma and beta
are looked up beside them, and alone they mean nothing (layer, group and instance norm have them
as well). Where a row's endings are ordinary words (`mean`, `variance`), `surely` is False and
the scope must show more: see `names`.

`trees` is for libraries that keep statistics and parameters in two trees of the same layout:
(the statistics' branch, the parameters' branch).
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Scheme(NamedTuple):
    """One library's endings of variable names, by role."""

    library: str
    mean: str
    variance: str
    gamma: tuple[str, ...]
    beta: tuple[str, ...]
    extra: tuple[str, ...] = ()
    surely: bool = True
    trees: tuple[tuple[str, str], ...] = ()


RENORM = ("/moving_stddev", "/renorm_mean", "/renorm_mean_weight", "/renorm_stddev",
          "/renorm_stddev_weight")  # fmt: skip

SCHEMES: Final = (
    Scheme("Keras, tf.layers, contrib, slim, Sonnet 1", "/moving_mean", "/moving_variance",
           ("/gamma",), ("/beta",), extra=RENORM),
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
           ("/weight", "/gamma"), ("/bias", "/beta"), extra=("/num_batches_tracked",)),
    Scheme("PyTorch (also timm, Hugging Face) and Gluon, dotted", ".running_mean", ".running_var",
           (".weight", ".gamma"), (".bias", ".beta"), extra=(".num_batches_tracked",)),
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
"""All schemes; the first that fits a scope is taken."""
