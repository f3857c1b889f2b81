"""BertAdam as a torch optimizer: closures, hooks, groups, copies, and users between steps."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import Case, bits, draw_grads, one_parameter, random_groups
from torch import nn

from bertadam_cuda import BertAdam


def all_bits(opt: BertAdam) -> list[bytes]:
    params = [param for group in opt.param_groups for param in group["params"]]
    return [bits(t) for param in params for t in (param, *opt.state[param].values())]


def model_and_optimizer(**settings: Any) -> tuple[nn.Module, BertAdam]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.LayerNorm(9), nn.Linear(9, 1))
    return model, BertAdam(model.parameters(), **{"lr": 0.01, **settings})


def train(model: nn.Module, opt: BertAdam, n_steps: int) -> None:
    for step in range(n_steps):
        opt.zero_grad()
        torch.manual_seed(step)
        model(torch.randn(5, 7)).square().mean().backward()
        opt.step()


def test_it_is_a_torch_optimizer_and_learns() -> None:
    model, opt = model_and_optimizer(lr=0.05, t_total=60, warmup=0.1)
    assert isinstance(opt, torch.optim.Optimizer)
    inputs = torch.randn(64, 7)
    target = inputs.sum(dim=1, keepdim=True)
    losses = []
    for _ in range(60):
        opt.zero_grad()
        loss = (model(inputs) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        opt.step()
    assert losses[-1] < 0.2 * losses[0]


def test_step_returns_the_loss_of_a_closure_that_runs_with_gradients() -> None:
    model, opt = model_and_optimizer()
    before = all_bits(opt)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = model(torch.ones(2, 7)).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = opt.step(closure)
    assert isinstance(loss, torch.Tensor)
    assert opt.step() is None
    assert all_bits(opt) != before


def test_step_makes_no_graph() -> None:
    param, opt = one_parameter([1.0], [1.0])
    opt.step()
    assert param.is_leaf
    assert param.requires_grad
    assert param.grad_fn is None


def test_hooks_run_around_the_step() -> None:
    param, opt = one_parameter([1.0], [1.0])
    seen: list[tuple[str, float]] = []
    opt.register_step_pre_hook(lambda *_: seen.append(("before", param.item())))
    opt.register_step_post_hook(lambda *_: seen.append(("after", param.item())))
    opt.step()
    assert [name for name, _ in seen] == ["before", "after"]
    assert seen[0][1] == 1.0
    assert seen[1][1] == param.item() != 1.0


def test_hooks_on_accumulated_gradients_can_step_a_parameter_alone() -> None:
    layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
    opts = {param: BertAdam([param], lr=0.1) for param in layers.parameters()}
    before = {param: bits(param) for param in opts}
    for param in opts:
        param.register_post_accumulate_grad_hook(lambda p: opts[p].step())
    layers[1](layers[0](torch.ones(2, 3))).sum().backward()
    assert all(bits(param) != before[param] for param in opts)


def test_zero_grad_sets_to_none_and_the_next_step_does_nothing() -> None:
    param, opt = one_parameter([1.0], [1.0])
    opt.step()
    opt.zero_grad()
    before = all_bits(opt)
    opt.step()
    assert param.grad is None
    assert all_bits(opt) == before


def test_groups_that_are_added_after_some_steps() -> None:
    case = Case(random_groups(1))
    for step in range(4):
        case.step(draw_grads(case.params, seed=step, none_rate=0.2))
    named = [(f"new_{n}", nn.Parameter(torch.randn(n))) for n in (5, 4097)]
    new = {"lr": 0.03, "weight_decay": 0.2, "max_grad_norm": 0.5, "t_total": 20}
    case.oracle.add_group({**new, "params": [(n, p.detach().numpy()) for n, p in named]})
    case.opt.add_param_group({**new, "params": named})
    case.params += [param for _, param in named]
    for step in range(4, 10):
        case.step(draw_grads(case.params, seed=step, none_rate=0.2))


def test_lr_written_into_groups_is_read_at_every_step() -> None:
    case = Case(random_groups(4))
    for step in range(6):
        for index, group in enumerate(case.opt.param_groups):
            lr = 0.01 * (step + 1) * (index + 1)
            group["lr"] = lr
            names = set(group["param_names"])
            for param in case.oracle.params:
                if param.name in names:
                    param.group["lr"] = lr
        case.step(draw_grads(case.params, seed=step))


def test_other_settings_written_into_groups_take_effect() -> None:
    case = Case(random_groups(4, bias_correction=False, t_total=20))
    new = {"b1": 0.3, "b2": 0.9, "e": 1e-3, "weight_decay": 0.3, "max_grad_norm": 0.25}
    changes: list[dict[str, Any]] = [new, {"bias_correction": True}, {"schedule": "warmup_cosine"}]
    for number, change in enumerate([*changes, {"maximize": True}, {"t_total": 30, "warmup": 0.5}]):
        case.step(draw_grads(case.params, seed=number))
        for group in (*case.opt.param_groups, *(p.group for p in case.oracle.params)):
            group.update(change)
        case.step(draw_grads(case.params, seed=50 + number))


@pytest.mark.parametrize("n_before", [0, 3])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_copies_are_independent_and_continue_alike(
    duplicate: Callable[[Any], Any], n_before: int
) -> None:
    original = model_and_optimizer(t_total=10, warmup=0.2)
    train(*original, n_before)
    copied = duplicate(original)
    assert all_bits(copied[1]) == all_bits(original[1])
    before = all_bits(original[1])
    train(*copied, 3)
    assert all_bits(original[1]) == before, "the copy must not write the original's memory"
    train(*original, 3)
    assert all_bits(copied[1]) == all_bits(original[1])


def test_everything_written_counts_as_an_in_place_change() -> None:
    param, opt = one_parameter([1.0, 2.0], [1.0, 1.0])
    opt.step()
    written = {"param": param, **opt.state[param]}
    versions = {name: tensor._version for name, tensor in written.items()}
    opt.step()
    for name, tensor in written.items():
        assert tensor._version > versions[name], name
    assert param.grad is not None
    assert param.grad._version == 0


def test_backward_through_a_parameter_that_a_step_has_changed_raises() -> None:
    param, opt = one_parameter([1.0, 2.0], [1.0, 1.0])
    loss = param.square().sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_swapped_data_tensor_is_followed() -> None:
    """`p.data = ...` between steps, as model.to and many trainers do."""
    case = Case(random_groups(9))
    for step in range(4):
        old = [param.data for param in case.params]
        kept = [bits(tensor) for tensor in old]
        for param in case.params:
            param.data = param.data.clone(memory_format=torch.preserve_format)
        case.step(draw_grads(case.params, seed=step))
        assert [bits(tensor) for tensor in old] == kept, "the old memory must not be written"


def test_replaced_state_tensors_are_used() -> None:
    param, opt = one_parameter([1.0, 2.0], [1.0, 1.0], b1=0.5, weight_decay=0.0)
    opt.step()
    old = opt.state[param]["exp_avg"]
    kept = bits(old)
    opt.state[param]["exp_avg"] = torch.tensor([8.0, -8.0])
    opt.state[param]["step"] = torch.tensor(41.0)
    param.grad = torch.zeros(2)
    opt.step()
    assert opt.state[param]["exp_avg"].tolist() == [4.0, -4.0]
    assert opt.state[param]["step"].item() == 42
    assert bits(old) == kept


def test_state_that_the_user_removes_is_made_anew() -> None:
    param, opt = one_parameter([1.0, 2.0], [1.0, 1.0])
    opt.step()
    opt.state.clear()
    opt.step()
    assert opt.state[param]["step"].item() == 1


def test_replaced_gradients_are_followed() -> None:
    param, opt = one_parameter([0.0, 0.0], [1.0, 1.0], b1=0.0, b2=0.0, weight_decay=0.0)
    for sign in (1.0, -1.0, 1.0):
        param.data.zero_()
        param.grad = torch.tensor([sign, -sign])
        opt.step()
        assert param.sign().tolist() == [-sign, sign]


def test_a_gradient_with_the_negative_bit_is_read_as_its_value() -> None:
    """Autograd through complex numbers gives views whose memory holds the negated values."""
    param, opt = one_parameter([0.0, 0.0], None, b1=0.0, b2=0.0, weight_decay=0.0)
    param.grad = torch._neg_view(torch.tensor([1.0, -1.0]))
    opt.step()
    assert param.sign().tolist() == [1.0, -1.0]


def test_a_first_step_in_inference_mode_leaves_an_optimizer_that_works() -> None:
    param, opt = one_parameter([1.0, 2.0], [1.0, 1.0])
    with torch.inference_mode():
        opt.step()
    opt.step()
    assert opt.state[param]["step"].item() == 2


def test_disjoint_views_of_one_buffer_are_ordinary_parameters() -> None:
    buffer = torch.zeros(30)
    params = [nn.Parameter(buffer[0:10]), nn.Parameter(buffer[11:30])]
    opt = BertAdam(params, lr=0.1)
    for param in params:
        param.grad = torch.ones_like(param)
    opt.step()
    assert (buffer[0:10] != 0).all()
    assert buffer[10] == 0
    assert (buffer[11:30] != 0).all()


def test_empty_groups_and_only_empty_parameters() -> None:
    param = nn.Parameter(torch.ones(2))
    opt = BertAdam([{"params": []}, {"params": [param], "lr": 0.2}, {"params": []}], lr=0.1)
    opt.step()
    param.grad = torch.ones(2)
    opt.step()
    assert opt.state[param]["step"].item() == 1
    empties = [nn.Parameter(torch.ones(0)), nn.Parameter(torch.ones(2, 0))]
    opt = BertAdam(empties, lr=0.1)
    for empty in empties:
        empty.grad = torch.ones_like(empty)
    opt.step()
    assert [opt.state[empty]["step"].item() for empty in empties] == [1, 1]


def test_a_generator_of_named_parameters_is_accepted() -> None:
    model = nn.Linear(2, 3)
    opt = BertAdam(model.named_parameters(), lr=0.1)
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]
    model(torch.ones(1, 2)).sum().backward()
    opt.step()


def test_state_dict_has_the_layout_of_torch() -> None:
    model, opt = model_and_optimizer()
    train(model, opt, 2)
    saved = opt.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert saved["param_groups"][0]["params"] == list(range(6))
    assert set(saved["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_the_representation_shows_the_settings() -> None:
    _, opt = one_parameter([1.0], None)
    assert "BertAdam" in repr(opt)
    assert "warmup_linear" in repr(opt)
