"""The bias that a network adds right before a batch norm, usually in a convolution.

With batch statistics, the normalization cancels this bias; with stored statistics, the bias acts
like beta. The evidence that a bias precedes a layer is, the strongest first:

- A graph contains the addition of the bias itself, which is proof.
- A Keras configuration names the layer before the normalization, its activation, and constraints on
  bias or beta. If only pooling lies between, the bias is proven: pooling preserves a bias. A
  leaky ReLU preserves part of the bias, which proves nothing. Any other activation rules it out.
  The bias of a dense layer whose output is reshaped has a value for each position and channel.
- The convolution and the normalization are neighbors in one scope (`conv1/biases`,
  `conv1/BatchNorm/beta`), or in the order of the object graph, the layers or the variables. This is
  not proof: an activation may lie between, or the normalization may come before the convolution.

Sources: the Keras classes in keras/src/layers and keras/src/optimizers;
tensorflow/python/training/slot_creator.py; docs/Operators.md of ONNX.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Final

from bnstat.discovery.graphs.norms import find_norms
from bnstat.discovery.graphs.tracing import SUMS, Steps, Tensors
from bnstat.discovery.merge import common_scope
from bnstat.formats.contents import Contents, Layer
from bnstat.model import BatchNorm, PrecedingBias, Slots, Variable, squeezed

_BIAS: Final = re.compile(r"(^|.*[/._])(bias|biases|b)(:0|/value)?", re.DOTALL)
_LINEAR_LAYER: Final = re.compile(
    r"(Depthwise|Separable)?(Conv|Convolution|Deconvolution)[123]D(Transpose)?|Dense"
)
"""Classes of Keras 1 to 3 that add a bias last, before the activation."""

_ADDS_THIRD_INPUT: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""ONNX ops that add a bias, which is the third input."""

_NUMBERED_VARIABLE: Final = re.compile(r".*/vars/\d+", re.DOTALL)
"""The key of a variable that Keras 3 stores under a number, without a name."""

_NUMBERED_LAYER: Final = re.compile(r"(?:layer-)?(\d{1,9})")
"""The name of a layer in a model's node of the object graph; the numbers are in network order."""

_PASSES_BIASES: Final = re.compile(
    r"(Global)?(Max|Average)Pool(ing)?[123]D|UpSampling[123]D|LeakyReLU"
)
"""Keras classes that preserve a constant added to a whole channel."""

_MOST_BETWEEN: Final = 10  # layers between a convolution and a normalization
_LONGEST_NAME: Final = 1000  # Longer names are not searched, because this would be slow.

_SQUARES: Final = ("v", "velocity", "rms", "adam_1", "adam_v")
_AVERAGES: Final = ("m", "momentum", "adam", "adam_m")
"""Slot names: `_SQUARES` are averages of squared gradients, `_AVERAGES` of gradients; initially 0.
Slots of Adagrad, Ftrl and TensorFlow 1's RMSProp are excluded: their initial value is not 0."""

_SLOT: Final = re.compile(
    r"(optimizer_weights/)?(training(_\d+)?/)?(\w*(adam|sgd|rm_?s_?prop)\w*/)?"
    r"((?P<first>m|v|momentum|velocity)/)?(?P<stem>.+?)"
    rf"([/_](?P<last>{'|'.join(sorted((*_SQUARES, *_AVERAGES), key=len, reverse=True))}))?(:0)?",
    re.IGNORECASE | re.DOTALL,
)
"""The names of optimizer variables: `Adam/v/conv/bias`, `adam/conv_bias_velocity`,
`conv/bias/Adam_1`, `training/Adam/conv/bias/v`."""

_Pair = tuple[str, str | None, bool]
"""(name of a layer, key of the bias right before it or None without bias, True if proven)."""


def preceding_biases(
    contents: Contents, layers: Sequence[BatchNorm]
) -> Mapping[str, PrecedingBias]:
    """Return layer name -> bias that the network adds right before the layer.

    A layer is left out if no bias is found, or if its bias precedes several layers.
    """
    search = _Search(contents, layers)
    pairs: dict[str, PrecedingBias] = {}
    methods = search.by_configuration, search.by_graphs, search.by_scopes, search.by_neighbors
    for method in methods:
        for layer, key, is_proven in list(method()):
            search.undecided.pop(layer, None)
            if key is not None:
                pairs.setdefault(layer, PrecedingBias(contents.variables[key], is_proven))
    uses = Counter(bias.variable.key for bias in pairs.values())
    slots = _slots(contents.variables) if pairs else {}
    betas = {layer.name: layer.variables.get("beta") for layer in layers}
    return {
        layer: bias._replace(slots=_slots_of(bias.variable, betas[layer], slots))
        for layer, bias in pairs.items()
        if uses[bias.variable.key] == 1
    }


def _slots(variables: Mapping[str, Variable]) -> Mapping[tuple[str, str], Variable]:
    """Return (plain name of a variable, slot name such as `velocity`) -> its slot variable."""
    slots = {}
    for variable in variables.values():
        match = _SLOT.fullmatch(variable.name) if len(variable.name) <= _LONGEST_NAME else None
        if match and bool(match["first"]) != bool(match["last"]) and "float" in variable.dtype:
            kind = (match["first"] or match["last"]).lower()
            slots[_plain(match["stem"]), kind] = variable
    return slots


def _slots_of(
    bias: Variable, beta: Variable | None, slots: Mapping[tuple[str, str], Variable]
) -> Slots | None:
    if beta is None:
        return None
    stems = _plain(bias.name), _plain(beta.name)
    for kind in (*_SQUARES, *_AVERAGES):
        of_bias, of_beta = (slots.get((stem, kind)) for stem in stems)
        if of_bias and of_beta and of_bias.shape == bias.shape and of_beta.shape == beta.shape:
            return Slots(of_bias, of_beta, kind in _SQUARES)
    return None


def _plain(name: str) -> str:
    """Return a variable's name in the lower-case form in which Keras 3 names slot variables."""
    return name.removesuffix(":0").replace("/", "_").lower()


class _Search:
    """Searches the stored descriptions of a network for biases.

    Each method `by_...` yields a `_Pair` for every layer whose bias it finds or rules out.
    """

    def __init__(self, contents: Contents, layers: Sequence[BatchNorm]) -> None:
        self.undecided = {layer.name: layer for layer in layers}
        self._contents = contents
        self._owners = {
            variable.key: layer for layer in layers for variable in layer.all_variables()
        }

    def by_configuration(self) -> Iterator[_Pair]:
        """Search for the bias in front of each layer whose inputs a Keras configuration records."""
        by_name = {layer.name: layer for layer in self._contents.layers}
        for layer in self._contents.layers:
            norm = self._norm_of(layer.variables.values())
            if norm is None or not layer.inputs:
                continue
            before: Layer | None = layer
            is_leaky = is_reshaped = False
            for _ in range(_MOST_BETWEEN):
                only_input = before.inputs[0][0] if before and len(before.inputs) == 1 else ""
                before = by_name.get(only_input)
                if before is None or not (_passes_biases(before) or _is_reshape_to(norm, before)):
                    break
                is_leaky = is_leaky or _is_leaky(before)
                is_reshaped = is_reshaped or before.class_name == "Reshape"
            if before is None or not _adds_bias_last(before) or not _has_axis_of(norm, before):
                yield norm.name, None, True
                continue
            is_repeated = is_reshaped and before.class_name == "Dense"
            is_free = _is_free(before.config) and _starts_even(layer.config)
            is_proven = is_free and not is_leaky and not _is_leaky(before)
            bias = self._only_bias(before.variables.values(), norm, is_repeated)
            yield norm.name, bias, is_proven

    def by_graphs(self) -> Iterator[_Pair]:
        """Search the graphs for `convolution + bias` as the input of a normalization."""
        missing = set(self.undecided)
        steps = Steps()
        for graph in self._contents.graphs() if self._contents.graphs is not None else ():
            if not missing:
                return
            tensors = Tensors(graph, steps)
            for norm in find_norms(tensors, self._contents.variables):
                layer = self._norm_of(norm.roles.values())
                if layer is None or layer.name not in missing:
                    continue
                before = [tensors.producer(tensor) for tensor in norm.x]
                if all(op is None or op.type.startswith("Placeholder") for op in before):
                    continue  # The function of one layer; its caller adds the bias.
                keys = {self._bias_of(tensors, tensor, layer) for tensor in norm.x}
                key = keys.pop() if len(keys) == 1 else None
                if key is not None:
                    missing.discard(layer.name)
                yield layer.name, key, True

    def by_scopes(self) -> Iterator[_Pair]:
        """Search the scope around each layer for a single bias; skip scopes that layers share."""
        layers: dict[str, list[BatchNorm]] = defaultdict(list)
        for layer in self.undecided.values():
            names = (self._contents.name_of(variable.key) for variable in layer.variables.values())
            layers[common_scope(name.rpartition("/")[0] for name in names)].append(layer)
        keys_in: dict[str, list[str]] = defaultdict(list)
        for key in self._contents.variables if layers else ():
            keys_in[self._contents.name_of(key).rpartition("/")[0]].append(key)
        for scope, (layer, *others) in layers.items():
            bias = self._only_bias(keys_in[scope], layer) if scope and not others else None
            if bias is not None:
                yield layer.name, bias, False

    def by_neighbors(self) -> Iterator[_Pair]:
        """Yield the batch norms whose preceding layer or variable has exactly one bias."""
        for before, after in self._neighbors() if self.undecided else ():
            norm = self._norm_of(after)
            if norm is None or norm.name not in self.undecided or self._owners.keys() & before:
                continue
            if (bias := self._only_bias(before, norm)) is not None:
                yield norm.name, bias, False

    def _neighbors(self) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
        """Yield (keys of a layer's variables, keys of the next layer's variables)."""
        nodes = self._contents.objects
        for node in nodes:
            layers = {
                int(match[1]): [nodes[leaf].key or "" for leaf in nodes[child].children.values()]
                for name, child in node.children.items()
                if (match := _NUMBERED_LAYER.fullmatch(name))
            }
            for number in layers:
                if number - 1 in layers:
                    yield layers[number - 1], layers[number]
        if self._contents.layers and self._contents.layers_in_order:
            yield from pairwise([[*layer.variables.values()] for layer in self._contents.layers])
        elif self._contents.variables_in_order:  # Each variable counts as a layer.
            yield from pairwise([[key] for key in self._contents.variables])

    def _norm_of(self, keys: Collection[str]) -> BatchNorm | None:
        """Return the batch norm that owns variables in `keys`; None if none or several own them."""
        owners = {id(self._owners[key]): self._owners[key] for key in keys if key in self._owners}
        return next(iter(owners.values())) if len(owners) == 1 else None

    def _only_bias(
        self, keys: Collection[str], norm: BatchNorm, is_repeated: bool = False
    ) -> str | None:
        """Return the only key in `keys` that can be the bias before `norm`; else None."""
        named = [
            key
            for key in keys
            if self._is_vector(key, norm, is_repeated)
            and (_BIAS.fullmatch(self._contents.name_of(key)) or _NUMBERED_VARIABLE.fullmatch(key))
        ]
        return named[0] if len(named) == 1 else None

    def _is_vector(self, key: str, norm: BatchNorm, is_repeated: bool = False) -> bool:
        """Return True if a variable may be a bias: one value for each channel.

        With `is_repeated`, the variable may have a value for each position and channel.
        """
        variable = None if key in self._owners else self._contents.variables.get(key)
        if variable is None or "float" not in variable.dtype or not norm.channels:
            return False
        if len(squeezed(variable.shape)) > 1:
            return False
        size = prod(variable.shape)
        return size == norm.channels or (is_repeated and size > 0 and not size % norm.channels)

    def _bias_of(self, tensors: Tensors, tensor: str, layer: BatchNorm) -> str | None:
        op = tensors.producer(tensor)
        if op is not None and op.type in _ADDS_THIRD_INPUT:
            inputs = tensors.inputs(op.name)[2:3]
        else:
            inputs = tensors.operands(tensor, SUMS) or ()
        keys = [key for tensor in inputs if (key := tensors.variable(tensor)) is not None]
        return keys[0] if len(keys) == 1 and self._is_vector(keys[0], layer) else None


def _adds_bias_last(layer: Layer) -> bool:
    """Return True if a Keras layer adds a bias and then applies nothing or a leaky ReLU."""
    has_bias = layer.config.get("use_bias", layer.config.get("bias", True))
    is_linear = _LINEAR_LAYER.fullmatch(layer.class_name or "") is not None
    return is_linear and has_bias is True and (_is_identity(layer.config) or _is_leaky(layer))


def _is_free(config: Mapping[str, object]) -> bool:
    """Return True if a Keras layer's bias has no regularizer and no constraint."""
    limits = ("bias_regularizer", "bias_constraint", "b_regularizer", "b_constraint")
    return all(config.get(limit) is None for limit in limits)


def _starts_even(config: Mapping[str, object]) -> bool:
    """Return True if the initial beta is equal in all channels."""
    start = config.get("beta_initializer", config.get("beta_init"))
    name = start.get("class_name") if isinstance(start, Mapping) else start
    return name is None or str(name).lower().startswith(("zero", "one", "constant"))


def _has_axis_of(norm: BatchNorm, before: Layer) -> bool:
    """Return True if a batch norm's axis is, or may be, the channel axis of the layer `before`."""
    match = re.search(r"([123])D", before.class_name or "")
    if match is None or norm.axis is None:
        return True
    if before.config.get("data_format") == "channels_first":
        return norm.axis == 1
    return norm.axis in (-1, int(match[1]) + 1)


def _passes_biases(layer: Layer) -> bool:
    """Return True if a layer preserves, in full or in part, a bias added to its input."""
    if layer.class_name == "Activation":
        return _is_identity(layer.config) or _is_leaky(layer)
    return _PASSES_BIASES.fullmatch(layer.class_name or "") is not None


def _is_reshape_to(norm: BatchNorm, layer: Layer) -> bool:
    """Return True if a layer reshapes its input to an array whose last axis is the channels."""
    shape = layer.config.get("target_shape")
    if layer.class_name != "Reshape" or not isinstance(shape, (list, tuple)) or len(shape) < 2:
        return False
    return bool(shape[-1] == norm.channels and norm.axis in (None, -1, len(shape)))


def _is_leaky(layer: Layer) -> bool:
    activation = layer.config.get("activation")
    name = activation.get("class_name") if isinstance(activation, Mapping) else activation
    return "LeakyReLU" in (layer.class_name, name) or name == "leaky_relu"


def _is_identity(config: Mapping[str, object]) -> bool:
    return "activation" in config and config["activation"] in (None, "linear")
