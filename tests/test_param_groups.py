"""Parameter groups by name and by layer, and the scaling of lr with the batch."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest
import torch
from torch import nn

from bertadam_cuda import param_groups
from bertadam_cuda.param_groups import (
    param_groups_layer_decay,
    param_groups_weight_decay,
    scale_lr,
)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(4, 4)
        self.LayerNorm = nn.LayerNorm(4)


class Encoder(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(layers))


class TinyBert(nn.Module):
    """Modules and parameters named as in BERT, with the decoder tied to the word embeddings."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(11, 4)
        self.embeddings.LayerNorm = nn.LayerNorm(4)
        self.encoder = Encoder(layers)
        self.pooler = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 11)
        self.decoder.weight = self.embeddings.word_embeddings.weight


def names(groups: list[dict[str, Any]]) -> list[list[str]]:
    return [group["param_names"] for group in groups]


def test_names_decide_about_decay() -> None:
    decayed, undecayed = param_groups_weight_decay(TinyBert(1), weight_decay=0.1, lr=1e-3)
    assert decayed["param_names"] == [
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.attention.weight",
        "pooler.weight",
    ]
    assert undecayed["param_names"] == [
        "embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.0.attention.bias",
        "encoder.layer.0.LayerNorm.weight",
        "encoder.layer.0.LayerNorm.bias",
        "pooler.bias",
        "decoder.bias",
    ]
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    assert decayed["lr"] == undecayed["lr"] == 1e-3


def test_params_are_the_named_parameters() -> None:
    model = TinyBert()
    by_name = dict(model.named_parameters())
    for group in param_groups_weight_decay(model):
        for name, param in zip(group["param_names"], group["params"], strict=True):
            assert param is by_name[name]


@pytest.mark.parametrize(
    "name",
    [
        "x.bias",
        "a.LayerNorm.weight",
        "layer_norm.w",
        "layernorm1.w",
        "rmsnorm.w",
        "norm.w",
        "gamma",
    ],
)
def test_usual_names_of_norms_and_biases_do_not_decay(name: str) -> None:
    pairs = [(name, nn.Parameter(torch.ones(2))), ("w", nn.Parameter(torch.ones(2)))]
    assert names(param_groups_weight_decay(pairs)) == [["w"], [name]]


def test_no_decay_can_be_chosen() -> None:
    groups = param_groups_weight_decay(TinyBert(1), no_decay=("pooler", "embeddings", "encoder"))
    assert names(groups)[0] == ["decoder.bias"]
    assert names(param_groups_weight_decay(TinyBert(1), no_decay=()))[1] == []


def test_tied_weights_come_once_also_from_pairs() -> None:
    model = TinyBert()
    pairs = list(model.named_parameters(remove_duplicate=False))
    assert len(pairs) == len(list(model.named_parameters())) + 1
    for source in (model, pairs):
        listed = [p for group in param_groups_weight_decay(source) for p in group["params"]]
        assert len(listed) == len({id(p) for p in listed}) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    model = TinyBert(1)
    model.embeddings.requires_grad_(False)
    model.pooler.weight.requires_grad_(False)
    listed = [name for group in names(param_groups_weight_decay(model)) for name in group]
    assert listed == [name for name, p in model.named_parameters() if p.requires_grad]
    assert "pooler.bias" in listed
    assert "pooler.weight" not in listed


def test_filtered_pairs_are_accepted_from_a_generator() -> None:
    pairs = ((n, p) for n, p in TinyBert(1).named_parameters() if "pooler" not in n)
    assert not any(
        "pooler" in name for group in names(param_groups_weight_decay(pairs)) for name in group
    )


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_groups_serve_torch_optimizers_which_keep_the_names(optimizer: Any) -> None:
    groups = param_groups_weight_decay(TinyBert(), lr=0.5)
    expected = names(groups)
    opt = optimizer(groups, lr=0.1)
    assert names(opt.param_groups) == expected
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.5]
    assert names(opt.state_dict()["param_groups"]) == expected
    opt.load_state_dict(opt.state_dict())
    extra = {"params": [("head.weight", nn.Parameter(torch.ones(2)))]}
    opt.add_param_group(extra)
    assert names(opt.param_groups)[2] == ["head.weight"]


def test_layer_decay_scales_lr_by_depth() -> None:
    groups = param_groups_layer_decay(TinyBert(3), 0.01, 0.5, lr=1.0)
    lrs = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert lrs["embeddings.word_embeddings.weight"] == lrs["embeddings.LayerNorm.bias"] == 0.5**4
    for layer in range(3):
        assert lrs[f"encoder.layer.{layer}.attention.weight"] == 0.5 ** (3 - layer)
        assert lrs[f"encoder.layer.{layer}.LayerNorm.weight"] == 0.5 ** (3 - layer)
    assert lrs["pooler.weight"] == lrs["decoder.bias"] == 1.0
    assert set(lrs) == {name for name, _ in TinyBert(3).named_parameters()}


def test_layer_decay_keeps_decay_by_name_and_order_from_the_bottom() -> None:
    groups = param_groups_layer_decay(TinyBert(2), 0.1, 0.9, lr=1.0, schedule="warmup_linear")
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0] * 4
    assert [group["lr"] for group in groups] == sorted(group["lr"] for group in groups)
    assert {group["schedule"] for group in groups} == {"warmup_linear"}
    for group in groups:
        for name in group["param_names"]:
            assert (group["weight_decay"] == 0) == ("bias" in name or "LayerNorm" in name)


def test_layer_decay_does_not_change_with_freezing() -> None:
    model = TinyBert(3)
    before = param_groups_layer_decay(model, lr=1.0)
    model.encoder.layer[2].requires_grad_(False)
    model.pooler.requires_grad_(False)
    model.decoder.requires_grad_(False)
    after = param_groups_layer_decay(model, lr=1.0)
    lrs = {name: group["lr"] for group in before for name in group["param_names"]}
    assert all(group["lr"] == lrs[name] for group in after for name in group["param_names"])
    assert max(group["lr"] for group in after) == pytest.approx(0.81)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("bert.embeddings.position_embeddings.weight", 0),
        ("electra.embeddings_project.weight", 0),
        ("bert.encoder.layer.1.output.dense.weight", 2),
        ("distilbert.transformer.layer.1.ffn.lin1.weight", 2),
        ("model.layers.1.mlp.Wi.weight", 2),
        ("model.embeddings.tok_embeddings.weight", 0),
        ("transformer.h.1.attn.weight", 2),
        ("transformer.wte.weight", 0),
        ("encoder.block.1.layer.0.SelfAttention.q.weight", 2),
        ("patch_embed.proj.weight", 0),
        ("blocks.1.attn.qkv.weight", 2),
        ("cls.predictions.transform.dense.weight", 3),
        ("qa_outputs.weight", 3),
        ("model.final_norm.weight", 3),
    ],
)
def test_usual_names_give_the_layer(name: str, layer: int) -> None:
    depth = ("encoder.layer.0.w", "encoder.layer.1.w", "classifier.weight")
    pairs = [(other, nn.Parameter(torch.ones(1))) for other in (*depth, name)]
    groups = param_groups_layer_decay(pairs, layer_decay=0.5, lr=1.0)
    lr = next(group["lr"] for group in groups if name in group["param_names"])
    assert lr == 0.5 ** (3 - layer)


def test_without_a_head_the_last_encoder_layer_is_the_top() -> None:
    groups = param_groups_layer_decay(Encoder(3), layer_decay=0.5, lr=1.0)
    assert [group["lr"] for group in groups] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]


def test_layer_of_names_layers_by_hand() -> None:
    pairs = [(name, nn.Parameter(torch.ones(1))) for name in ("stem.w", "mid.w", "head.w")]
    order = {"stem.w": 0, "mid.w": 1, "head.w": 2}
    groups = param_groups_layer_decay(pairs, layer_decay=0.1, lr=3.0, layer_of=order.__getitem__)
    assert [group["lr"] for group in groups] == pytest.approx([0.03, 0.3, 3.0])


@pytest.mark.parametrize("helper", [param_groups_weight_decay, param_groups_layer_decay])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "model has type int, expected a torch.nn.Module or"),
        ({"model": list(TinyBert().parameters())}, TypeError, "item 0 .* not model.parameters"),
        ({"model": TinyBert().requires_grad_(False)}, ValueError, "none of the model's"),
        ({"model": []}, ValueError, "none of the model's 0 parameters has requires_grad=True"),
        ({"model": nn.LazyLinear(3)}, ValueError, "weight has no shape yet; run the model once"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay is -0.1, expected a finite number >= 0"),
        ({"weight_decay": math.nan}, ValueError, "weight_decay is nan"),
        ({"weight_decay": "0.1"}, TypeError, "weight_decay has type str"),
        ({"no_decay": "bias"}, TypeError, "no_decay is the string 'bias', expected a sequence"),
        ({"params": []}, ValueError, "'params' is made from the model; leave it out"),
        ({"param_names": []}, ValueError, "'param_names' is made from the model"),
    ],
)
def test_bad_arguments_are_refused(
    helper: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    lr = {"lr": 1.0} if helper is param_groups_layer_decay else {}
    with pytest.raises(error, match=f"^{helper.__name__}: .*{message}"):
        helper(**{"model": TinyBert(), **lr, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"layer_decay": 0.0}, r"layer_decay is 0.0, expected a number in \(0, 1\]"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"model": nn.Linear(2, 2)}, "no parameter's name contains a numbered layer"),
        ({"layer_of": lambda name: -1}, r"layer_of\('embeddings.*'\) is -1, expected an integer"),
        ({"layer_of": lambda name: None}, "is None, expected an integer >= 0"),
    ],
)
def test_bad_layer_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^param_groups_layer_decay: .*{message}"):
        param_groups_layer_decay(**{"model": TinyBert(), "lr": 1.0, **arguments})


def test_scale_lr() -> None:
    assert scale_lr(1e-4, 1024, 256) == 2e-4
    assert scale_lr(1e-4, 1024, 256, "linear") == 4e-4
    assert scale_lr(1e-4, 64, 256) == 5e-5
    with pytest.raises(
        ValueError, match=r"^scale_lr: rule is 'cubic', expected 'sqrt' or 'linear'"
    ):
        scale_lr(1e-4, 1024, 256, "cubic")
    with pytest.raises(
        ValueError, match=r"^scale_lr: base_batch is 0, expected a finite number > 0"
    ):
        scale_lr(1e-4, 1024, 0)
    with pytest.raises(ValueError, match=r"^scale_lr: lr is -1"):
        scale_lr(-1, 1024, 256)
    with pytest.raises(TypeError, match=r"^scale_lr: batch has type str"):
        scale_lr(1e-4, "1024", 256)  # type: ignore[arg-type]


def test_examples_in_docstrings_run() -> None:
    found = doctest.testmod(param_groups)
    assert (found.failed, found.attempted) == (0, 3)
