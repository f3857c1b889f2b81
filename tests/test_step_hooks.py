"""Hooks, profilers and wrappers around step(), which torch's optimizers have and ours passes by."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import one_parameter, trained
from torch.optim import optimizer as torch_optimizer

from bertadam_cuda import BertAdam


def annotations(events: Any) -> list[str]:
    return [event.name for event in events if event.name.startswith("Optimizer.step")]


def test_a_profiler_sees_every_step_and_only_while_it_runs() -> None:
    opt = trained()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        opt.step()
        opt.step()
    opt.step()
    assert annotations(profiler.events()) == ["Optimizer.step#BertAdam.step"] * 2
    with torch.autograd.profiler.profile() as legacy:
        opt.step()
    assert annotations(legacy.function_events) == ["Optimizer.step#BertAdam.step"]


def test_nobody_observes_a_plain_step() -> None:
    """Else the short way would never be taken."""
    opt = trained()
    assert not opt._binary.is_observed()
    with torch.autograd.profiler.profile():
        assert opt._binary.is_observed()
    assert not opt._binary.is_observed()


def test_hooks_that_come_and_go_between_steps() -> None:
    opt = trained()
    seen: list[str] = []
    handles = [
        opt.register_step_pre_hook(lambda *_: seen.append("pre")),
        opt.register_step_post_hook(lambda *_: seen.append("post")),
        torch_optimizer.register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
        torch_optimizer.register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
    ]
    opt.step()
    assert seen == ["global pre", "pre", "post", "global post"]
    for handle in handles:
        seen.clear()
        opt.step()
        assert len(seen) == 4 - handles.index(handle)
        handle.remove()
    seen.clear()
    opt.step()
    assert seen == []


def test_a_pre_hook_can_replace_the_closure() -> None:
    _, opt = one_parameter([1.0], [1.0])
    opt.register_step_pre_hook(lambda _opt, args, kwargs: (args, {"closure": lambda: 7.0}))
    assert opt.step() == 7.0


def test_hooks_are_not_copied_and_copies_have_their_own() -> None:
    _, opt = one_parameter([1.0], [1.0])
    opt.step()
    other = BertAdam.__new__(BertAdam)
    other.__setstate__(opt.__getstate__())
    seen: list[Any] = []
    other.register_step_pre_hook(lambda *_: seen.append(None))
    opt.step()
    assert seen == []
    other.step()
    assert seen == [None]


class Overriding(BertAdam):
    n_steps = 0

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        self.n_steps += 1
        return super().step(closure)


def test_a_subclass_that_overrides_step_is_wrapped_as_well() -> None:
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    opt = Overriding([param], lr=0.1)
    seen: list[str] = []
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    opt.step()
    assert opt.n_steps == 1
    assert set(seen) == {"post"}
    with torch.autograd.profiler.profile() as profiler:
        opt.step()
    assert "Optimizer.step#Overriding.step" in annotations(profiler.function_events)


def test_a_second_optimizer_does_not_wrap_step_again() -> None:
    trained()
    step = BertAdam.step
    trained()
    assert BertAdam.step is step
    assert step.hooked  # type: ignore[attr-defined]
    assert BertAdam.step.__doc__ is not None


def test_schedulers_of_torch_wrap_the_step_of_an_instance() -> None:
    opt = trained(t_total=-1)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    seen: list[None] = []
    opt.register_step_post_hook(lambda *_: seen.append(None))
    rates = []
    for _ in range(3):
        opt.step()
        scheduler.step()  # warns where it does not see the step before
        rates.append(opt.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.025, 0.0125])
    assert len(seen) == 3


def test_a_step_inside_a_compiled_function_is_the_same_step() -> None:
    opt, expected = trained(), trained()
    torch._dynamo.reset()
    compiled = torch.compile(lambda: opt.step(), backend="eager")
    for _ in range(3):
        compiled()
        expected.step()
    for ours, theirs in zip(opt.param_groups, expected.param_groups, strict=True):
        for a, b in zip(ours["params"], theirs["params"], strict=True):
            assert torch.equal(a, b)
    torch._dynamo.reset()


class Trainer:
    """What holds an optimizer, and is held by it."""

    def __init__(self) -> None:
        self.param = torch.nn.Parameter(torch.ones(2))
        self.opt = BertAdam([self.param], lr=0.1, schedule=self.schedule)
        self.param.grad = torch.ones(2)
        self.opt.step()

    def schedule(self, position: int) -> float:
        return 1.0


def test_an_optimizer_that_is_gone_frees_its_parameters() -> None:
    """Also one whose schedule leads back to it."""
    trainer = Trainer()
    dead: list[None] = []
    weakref.finalize(trainer, dead.append, None)
    del trainer
    gc.collect()
    assert dead == [None]
