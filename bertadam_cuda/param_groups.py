"""Parameter groups for BERT-like models: weight decay by name, learning rates by layer.

The groups are plain dicts with `params` (tensors) and `param_names`, the key under which
torch.optim.Optimizer keeps names, so they serve every torch optimizer and appear in the messages
of ours. One launch updates all groups, so many groups cost nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch

NO_DECAY = (
    "bias",
    "LayerNorm",
    "layer_norm",
    "layernorm",
    "rmsnorm",
    "norm",
    "gamma",
    "beta",
)

Named = Iterable[tuple[str, torch.Tensor]]
Group = dict[str, Any]

# encoder.layer.3.output of BERT; also layers.3 (ModernBERT), h.3 (GPT-2), blocks.3 (ViT).
_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)(?:\.|$)")
_EMBEDDING = re.compile(r"(?:^|\.)(?:\w*embed\w*|wte|wpe)(?:\.|$)", re.IGNORECASE)


def param_groups_weight_decay(
    model: torch.nn.Module | Named,
    weight_decay: float = 0.01,
    no_decay: Sequence[str] = NO_DECAY,
    **settings: Any,
) -> list[Group]:
    """Return two groups: the parameters that decay, and those whose name says they do not.

    Args:
        model: a module, or (name, parameter) pairs such as a filtered `named_parameters()`.
        weight_decay: decay of the first group, >= 0; the second one has 0.
        no_decay: parts of names; a parameter with one of them in its full name is not decayed.
            The usual names of biases and norms, of which DeepSpeedExamples and NVIDIA's BERT
            list a part.
        settings: further keys of both groups, for example lr=1e-4.

    A tied weight is listed once, under its first name; frozen parameters (requires_grad=False) are
    left out. Both groups are returned also where one is empty.

    Raises:
        TypeError: `model` is neither of the two, or `no_decay` is a single string.
        ValueError: no trainable parameter, a parameter of a lazy module that has not run yet,
            weight_decay < 0, or a setting that the groups define themselves.

    Example:
        >>> groups = param_groups_weight_decay(torch.nn.Linear(2, 2), weight_decay=0.1)
        >>> [(group["weight_decay"], group["param_names"]) for group in groups]
        [(0.1, ['weight']), (0.0, ['bias'])]
    """
    where = "param_groups_weight_decay"
    named = _trainable(_named_parameters(model, where), where)
    _check_decay(weight_decay, no_decay, settings, where)
    decayed = [pair for pair in named if not _matches(pair[0], no_decay)]
    undecayed = [pair for pair in named if _matches(pair[0], no_decay)]
    return [
        _group(decayed, weight_decay=float(weight_decay), **settings),
        _group(undecayed, weight_decay=0.0, **settings),
    ]


def param_groups_layer_decay(
    model: torch.nn.Module | Named,
    weight_decay: float = 0.01,
    layer_decay: float = 0.9,
    no_decay: Sequence[str] = NO_DECAY,
    *,
    lr: float,
    layer_of: Callable[[str], int] | None = None,
    **settings: Any,
) -> list[Group]:
    """Return groups for fine-tuning whose lr falls by `layer_decay` per layer below the head.

    lr of a group = lr * layer_decay ** (top - layer): the embeddings are layer 0, the encoder's
    n-th layer (from 0) is n + 1, and everything else, such as pooler and classifier, is the top
    layer and gets `lr` (where there is nothing else, the last encoder layer does). Frozen layers
    count, so freezing does not change the others' lr. After
    ELECTRA's fine-tuning (https://arxiv.org/abs/2003.10555, appendix: 0.8 for the base and 0.9
    for the large model), whose code counts one more layer between encoder and head.

    Args:
        model, weight_decay, no_decay, settings: as `param_groups_weight_decay`.
        layer_decay: factor per layer, in (0, 1].
        lr: the base lr of the top layer, >= 0.
        layer_of: name -> layer number >= 0, for models named otherwise than BERT; the largest
            number is the top layer.

    Groups are ordered from layer 0 up, the decayed one of a layer first; empty ones are left out.

    Raises: as `param_groups_weight_decay`, and ValueError for lr or layer_decay out of range, or
        where no parameter's name contains a numbered layer.
    """
    where = "param_groups_layer_decay"
    named = _named_parameters(model, where)
    trainable = _trainable(named, where)
    _check_decay(weight_decay, no_decay, settings, where)
    _check(lr, "lr", "a finite number >= 0", lambda value: value >= 0, where)
    _check(layer_decay, "layer_decay", "a number in (0, 1]", lambda v: 0 < v <= 1, where)
    layers = _layers([name for name, _ in named], layer_of, where)
    top = max(layers.values())
    buckets: dict[tuple[int, bool], list[tuple[str, torch.Tensor]]] = {}
    for name, param in trainable:
        buckets.setdefault((layers[name], _matches(name, no_decay)), []).append((name, param))
    return [
        _group(
            buckets[layer, exempt],
            lr=lr * layer_decay ** (top - layer),
            weight_decay=0.0 if exempt else float(weight_decay),
            **settings,
        )
        for layer, exempt in sorted(buckets)
    ]


def scale_lr(lr: float, batch: float, base_batch: float, rule: str = "sqrt") -> float:
    """Return the lr for `batch` sequences per update, given one tuned for `base_batch`.

    Args:
        lr: the lr that was tuned, >= 0.
        batch, base_batch: sequences per update over all devices and accumulation steps, > 0.
        rule: "sqrt": lr * sqrt(batch / base_batch), usual for Adam and LAMB
            (https://arxiv.org/abs/1904.00962); "linear": lr * batch / base_batch.

    Raises ValueError or TypeError for anything else.

    Example:
        >>> scale_lr(1e-4, batch=1024, base_batch=256)
        0.0002
    """
    where = "scale_lr"
    _check(lr, "lr", "a finite number >= 0", lambda value: value >= 0, where)
    for value, name in ((batch, "batch"), (base_batch, "base_batch")):
        _check(value, name, "a finite number > 0", lambda size: size > 0, where)
    ratio = batch / base_batch
    if rule == "sqrt":
        return lr * math.sqrt(ratio)
    if rule == "linear":
        return lr * ratio
    raise ValueError(f"{where}: rule is {rule!r}, expected 'sqrt' or 'linear'")


def _group(named: list[tuple[str, torch.Tensor]], **settings: Any) -> Group:
    return {
        "params": [param for _, param in named],
        "param_names": [name for name, _ in named],
        **settings,
    }


def _matches(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)


def _named_parameters(model: object, where: str) -> list[tuple[str, torch.Tensor]]:
    """The (name, parameter) pairs, each parameter once, frozen ones included."""
    if isinstance(model, torch.nn.Module):
        return list(model.named_parameters())
    if not isinstance(model, Iterable):
        raise TypeError(
            f"{where}: model has type {type(model).__name__}, expected a torch.nn.Module "
            "or (name, parameter) pairs"
        )
    first_names: dict[int, tuple[str, torch.Tensor]] = {}
    for index, pair in enumerate(model):
        if not (
            isinstance(pair, tuple)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], torch.Tensor)
        ):
            raise TypeError(
                f"{where}: item {index} of model has type {type(pair).__name__}, expected a "
                "(name, parameter) pair; pass model.named_parameters(), not model.parameters()"
            )
        first_names.setdefault(id(pair[1]), pair)
    return list(first_names.values())


def _trainable(named: list[tuple[str, torch.Tensor]], where: str) -> list[tuple[str, torch.Tensor]]:
    trainable = [(name, param) for name, param in named if param.requires_grad]
    for name, param in trainable:
        if torch.nn.parameter.is_lazy(param):
            raise ValueError(
                f"{where}: {name} has no shape yet; run the model once on a batch before "
                "grouping its parameters"
            )
    if not trainable:
        raise ValueError(
            f"{where}: none of the model's {len(named)} parameters has requires_grad=True"
        )
    return trainable


def _layers(names: list[str], layer_of: Callable[[str], int] | None, where: str) -> dict[str, int]:
    """Layer number of every name; the largest is the top."""
    if layer_of is not None:
        layers = {name: layer_of(name) for name in names}
        for name, layer in layers.items():
            if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
                raise ValueError(
                    f"{where}: layer_of({name!r}) is {layer!r}, expected an integer >= 0"
                )
        return layers
    numbers = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    if not numbers:
        raise ValueError(
            f"{where}: no parameter's name contains a numbered layer such as encoder.layer.0; "
            "pass layer_of=, a function from a name to its layer"
        )
    top = max(numbers.values()) + 2
    rest = {name: 0 if _EMBEDDING.search(name) else top for name in names if name not in numbers}
    return {name: layer + 1 for name, layer in numbers.items()} | rest


def _check_decay(
    weight_decay: float, no_decay: Sequence[str], settings: dict[str, Any], where: str
) -> None:
    _check(weight_decay, "weight_decay", "a finite number >= 0", lambda v: v >= 0, where)
    if isinstance(no_decay, str):
        raise TypeError(
            f"{where}: no_decay is the string {no_decay!r}, expected a sequence of parts of "
            f"names; write ({no_decay!r},)"
        )
    for key in ("params", "param_names"):
        if key in settings:
            raise ValueError(f"{where}: the setting {key!r} is made from the model; leave it out")


def _check(
    value: object, name: str, expected: str, holds: Callable[[float], bool], where: str
) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where}: {name} has type {type(value).__name__}, expected {expected}")
    if not (math.isfinite(value) and holds(float(value))):
        raise ValueError(f"{where}: {name} is {value}, expected {expected}")
