"""The learning rate in a tensor, with capturable=True: written in place, whoever changes it.

On a GPU the steps read it there: test_graphs_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import as_groups, odd_params
from bert_cases import snapshot, trained
from capturable_cases import CLASSES, assert_same_bits, train
from torch import Tensor, nn
from torch.optim import lr_scheduler

from bertadam_cuda import BertAdam

classes = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)


def with_rate(rate: float | Tensor, **settings: Any) -> BertAdam:
    return trained(2, lr=rate, capturable=True, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_in_a_tensor_is_read_at_every_step(dtype: torch.dtype) -> None:
    rate = torch.tensor(0.5, dtype=dtype)
    ours, theirs = with_rate(rate), trained(2, lr=0.5)
    for lr in (0.25, 0.0, 2.0):
        rate.fill_(lr)
        for group in theirs.param_groups:
            group["lr"] = lr
        train(ours, range(1))
        train(theirs, range(1))
        assert ours.get_lr() == theirs.get_lr()
    assert_same_bits(ours, theirs)


def test_torch_schedulers_write_into_the_tensors() -> None:
    """Each group has its own: torch's schedulers would write a shared one once for each group."""
    ours, theirs = with_rate(0.5, t_total=-1), trained(2, lr=0.5, t_total=-1)
    rates = [torch.tensor(0.5, dtype=torch.float64) for _ in ours.param_groups]
    for group, rate in zip(ours.param_groups, rates, strict=True):
        group["lr"] = rate
    schedulers = [lr_scheduler.ExponentialLR(opt, 0.9) for opt in (ours, theirs)]
    for _ in range(3):
        for opt, scheduler in zip((ours, theirs), schedulers, strict=True):
            train(opt, range(1))
            scheduler.step()
    assert_same_bits(ours, theirs)
    assert [group["lr"] for group in ours.param_groups] == rates
    assert float(rates[0]) == theirs.param_groups[0]["lr"] != 0.5


def test_a_new_phase_and_a_file_write_into_the_tensor() -> None:
    rate = torch.tensor(0.5, dtype=torch.float64)
    opt = with_rate(rate)
    file = opt.state_dict()
    opt.reset_schedule(lr=0.25)
    assert float(rate) == 0.25
    opt.load_state_dict(trained(lr=0.125).state_dict())
    assert float(rate) == 0.125
    opt.load_state_dict(file)
    assert {id(group["lr"]) for group in opt.param_groups} == {id(rate)}
    without = trained(lr=torch.tensor(0.5))
    without.reset_schedule(lr=0.25)
    assert without.param_groups[0]["lr"] == 0.25
    assert not isinstance(without.param_groups[0]["lr"], Tensor)


def test_two_numbers_for_one_tensor_are_refused_and_nothing_is_written() -> None:
    source = trained()
    source.param_groups[1]["lr"] = 0.3
    file = source.state_dict()
    opt = with_rate(torch.tensor(0.5))
    before = snapshot(opt)
    with pytest.raises(ValueError, match=r"param_groups\[1\] shares its lr.*0\.3"):
        opt.load_state_dict(file)
    assert str(snapshot(opt)) == str(before)
    opt.param_groups[1]["lr"] = torch.tensor(0.5)
    opt.load_state_dict(file)
    assert [float(group["lr"]) for group in opt.param_groups] == pytest.approx([0.1, 0.3])


@classes
def test_a_rate_elsewhere_is_refused_by_name(make: Callable[..., Any]) -> None:
    """Where there is no GPU, the meta device is elsewhere."""
    param, rate = nn.Parameter(torch.ones(2)), torch.tensor(0.1, device="meta")
    with pytest.raises(ValueError, match=r"lr is a tensor on meta.*capturable=True"):
        make([param], lr=rate)
    with pytest.raises(ValueError, match=r"lr is a tensor on meta.*CUDA device"):
        make([param], lr=rate, capturable=True)
    for bad in (torch.ones(2), torch.tensor(1j), torch.tensor(-1.0), torch.tensor(torch.nan)):
        with pytest.raises(ValueError, match="lr is"):
            make([param], lr=bad, capturable=True)


def test_groups_of_all_kinds_may_be_capturable() -> None:
    params = odd_params()
    groups = as_groups(params)
    for group in groups:
        group["lr"] = torch.tensor(0.25)
    ours = BertAdam(groups, lr=torch.tensor(0.1), capturable=True)
    train(ours, range(3))
    assert ours.get_lr()[0] == 0.25
