"""Bits that must not depend on threads, on flushing of denormals, on alignment or on position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from bert_cases import Case, bits, draw_grads, misaligned, random_groups
from torch import nn

from bertadam_cuda import BertAdam

SIZE = 5 * 4096 + 77


@pytest.fixture(autouse=True)
def _restore_threads_and_denormals() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)
    torch.set_flush_denormal(False)


def result(**settings: Any) -> list[bytes]:
    """Bits of everything after a few steps of a case with all shapes."""
    groups = random_groups(11)
    params = [param for group in groups for _, param in group["params"]]
    pairs = [{**g, "params": [param for _, param in g["params"]]} for g in groups]
    opt = BertAdam(pairs, lr=0.1, **settings)
    for step in range(3):
        for param, grad in zip(params, draw_grads(params, seed=step), strict=True):
            param.grad = grad
        opt.step()
    tensors = [t for param in params for t in (param, *opt.state[param].values())]
    statistics = [] if opt.grad_norms is None else [opt.grad_norms, opt.grad_norm, opt.clip_coefs]
    return [bits(tensor) for tensor in (*tensors, *statistics)]


@pytest.mark.parametrize("settings", [{}, {"clip": "global"}, {"max_grad_norm": 0.0}])
def test_the_number_of_threads_does_not_change_bits(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    expected = result(**settings)
    for n_threads in (2, 3):
        torch.set_num_threads(n_threads)
        assert result(**settings) == expected


def test_runs_repeat_bit_for_bit() -> None:
    assert len({tuple(result(clip="global")) for _ in range(5)}) == 1


def denormal_step(flush: bool) -> list[bytes]:
    """Steps full of denormals: gradients, moments, parameters and updates.

    Only the steps run under `flush`: what is made with flushing on would already be zero.
    """
    scales = torch.logspace(-44, -30, 4096)
    grads = [scales.clone(), -0.5 * scales]
    param = nn.Parameter(scales.clone())
    opt = BertAdam([param], lr=1e-3, max_grad_norm=1e-9)
    for grad in grads:
        param.grad = grad
        torch.set_flush_denormal(flush)
        opt.step()
        torch.set_flush_denormal(False)
    state = opt.state[param]
    assert opt.clip_coefs is not None
    return [bits(t) for t in (param, state["exp_avg"], state["exp_avg_sq"], opt.clip_coefs)]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_flushing_denormals_does_not_change_bits(n_threads: int) -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    torch.set_flush_denormal(False)
    torch.set_num_threads(n_threads)
    expected = denormal_step(flush=False)
    moments = torch.frombuffer(bytearray(expected[1]), dtype=torch.float32).abs()
    tiny = torch.finfo(torch.float32).tiny
    assert ((moments > 0) & (moments < tiny)).sum() > 100, "the step must meet denormals"
    assert denormal_step(flush=True) == expected


def test_a_step_leaves_the_floating_point_mode_as_it_was() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    param = nn.Parameter(torch.ones(10))
    param.grad = torch.ones(10)
    BertAdam([param], lr=0.1).step()
    smallest = torch.finfo(torch.float32).tiny
    assert (torch.tensor([smallest]) * 0.5).item() == 0.0, "flushing must still be on"


def stepped(values: torch.Tensor, grads: list[torch.Tensor], **settings: Any) -> list[torch.Tensor]:
    """p, m, v of one flat parameter after one step per gradient."""
    param = nn.Parameter(values.clone())
    opt = BertAdam([param], **{"lr": 0.1, "max_grad_norm": 0.0, **settings})
    for grad in grads:
        param.grad = grad.clone()
        opt.step()
    return [param.detach(), opt.state[param]["exp_avg"], opt.state[param]["exp_avg_sq"]]


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 63, 1024, 4095, 4096, 4097])
def test_a_shard_gets_the_bits_of_the_whole(start: int) -> None:
    torch.manual_seed(0)
    values, *grads = (torch.randn(SIZE) for _ in range(4))
    whole = stepped(values, grads)
    for end in (start + 1, start + 1000, SIZE):
        shard = stepped(values[start:end], [grad[start:end] for grad in grads])
        for all_of_it, part in zip(whole, shard, strict=True):
            assert bits(all_of_it[start:end]) == bits(part)


@pytest.mark.parametrize("offset", [1, 2, 3, 7])
def test_alignment_does_not_change_bits(offset: int) -> None:
    torch.manual_seed(0)
    values, *grads = (torch.randn(SIZE) for _ in range(3))
    settings = {"max_grad_norm": 1.0}
    expected = stepped(values, grads, **settings)
    param = misaligned(SIZE, offset)
    param.data.copy_(values)
    opt = BertAdam([param], lr=0.1, **settings)
    for number, grad in enumerate(grads):
        other = torch.empty(SIZE + 8)[number + 1 : number + 1 + SIZE]
        param.grad = other.copy_(grad)
        opt.step()
    found = [param, opt.state[param]["exp_avg"], opt.state[param]["exp_avg_sq"]]
    assert [bits(t) for t in found] == [bits(t) for t in expected]


def test_neighbours_in_the_list_do_not_change_bits() -> None:
    case = Case(random_groups(12))
    grads = draw_grads(case.params, seed=0)
    starts = [param.detach().clone(memory_format=torch.preserve_format) for param in case.params]
    case.step(grads)
    for (name, param), start, grad in zip(case.named, starts, grads, strict=True):
        group = next(g for g in case.opt.param_groups if name in g["param_names"])
        settings = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        alone = nn.Parameter(start)
        alone.grad = grad
        opt = BertAdam([alone], **settings)
        opt.step()
        assert bits(alone) == bits(param), name


def test_memory_around_a_view_is_not_written() -> None:
    for size in (1, 3, 1025, 4097):
        buffer = torch.full((size + 64,), 7.0)
        param = nn.Parameter(buffer[31 : 31 + size])
        param.grad = torch.ones(size)
        BertAdam([param], lr=0.1).step()
        assert (buffer[:31] == 7).all()
        assert (buffer[31 + size :] == 7).all()
        assert (buffer[31 : 31 + size] != 7).all()
