"""Steps of the optimizer alone in CUDA graphs: replayed N times they are N steps, bit for bit."""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capturable_cases import CLASSES, params_of
from graph_cases import MODES, SCHEDULE, STORAGES, Pair, captured
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.gpu
modes = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
storages = pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)


def run(pair: Pair, graph: torch.cuda.CUDAGraph, steps: range, bad: int | None = None) -> None:
    """Replay and step; the gradients of step `bad` are not finite."""
    for step in steps:
        pair.draw(step, bad=torch.inf if step == bad else None)
        graph.replay()
        pair.twin.step()
        pair.compare()


@modes
@storages
def test_replays_are_steps(settings: dict[str, Any], storage: tuple[Any, dict[str, Any]]) -> None:
    """Through warm-up and decay; gradients that are not finite are skipped where norms are."""
    dtype, kept = storage
    pair = Pair(dtype=dtype, **SCHEDULE, **settings, **kept)
    pair.warm_up()
    graph = pair.capture()
    run(pair, graph, range(2, 12), bad=None if settings == MODES["no clip"] else 7)
    assert pair.opt.get_lr() == pair.twin.get_lr()
    assert pair.opt._captured.n_launches == 1


@pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)
def test_every_class_is_captured(make: Callable[..., Any]) -> None:
    pair = Pair(make, max_grad_norm=1.0, **SCHEDULE)
    pair.warm_up()
    run(pair, pair.capture(), range(2, 8))


def test_a_schedule_of_the_user_is_captured() -> None:
    pair = Pair(schedule=lambda position: 1.0 / (1 + position), t_total=30)
    pair.warm_up()
    run(pair, pair.capture(), range(2, 8))


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_a_capture_may_be_strict(mode: str) -> None:
    pair = Pair(**SCHEDULE)
    pair.warm_up()
    run(pair, pair.capture(capture_error_mode=mode), range(2, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_that_is_written_between_replays_is_read(dtype: torch.dtype) -> None:
    pair = Pair(**SCHEDULE)
    pair.lr = torch.tensor(0.1, dtype=dtype, device="cuda")
    for group in pair.opt.param_groups:
        group["lr"] = pair.lr
    for step, lr in enumerate((0.1, 0.05, 0.0, 0.3, 0.1)):
        pair.lr.fill_(lr)
        for group in pair.twin.param_groups:
            group["lr"] = float(pair.lr)
        if step == 0:
            pair.warm_up()
            graph = pair.capture()
        run(pair, graph, range(2 + step, 3 + step))


@modes
def test_steps_may_be_made_between_replays(settings: dict[str, Any]) -> None:
    """With other gradients in other memory, which a graph's tables must not follow."""
    pair = Pair(**SCHEDULE, **settings)
    pair.warm_up()
    graph = pair.capture()
    for step, kind in enumerate("rrerreeerer", 2):
        if kind == "r":
            run(pair, graph, range(step, step + 1))
            continue
        static: list[Tensor | None] = [param.grad for param in params_of(pair.opt)]
        for param in params_of(pair.opt):
            param.grad = torch.empty_like(param)
        pair.draw(step)
        pair.step()
        pair.compare()
        for param, grad in zip(params_of(pair.opt), static, strict=True):
            param.grad = grad


def test_two_graphs_share_an_optimizer() -> None:
    """Each with gradients of its own."""
    pair = Pair(**SCHEDULE)
    pair.warm_up()
    graphs, grads = [], []
    for _ in range(2):
        for param in params_of(pair.opt):
            param.grad = torch.zeros_like(param)
        grads.append([param.grad for param in params_of(pair.opt)])
        graphs.append(pair.capture())
    assert pair.opt._captured.n_launches == 2
    for step, which in enumerate((0, 1, 1, 0, 1, 0), 2):
        for param, grad in zip(params_of(pair.opt), grads[which], strict=True):
            param.grad = grad
        run(pair, graphs[which], range(step, step + 1))


def test_graphs_of_two_optimizers_run_beside_each_other() -> None:
    pairs = [Pair(**SCHEDULE, **settings) for settings in (MODES["per tensor"], MODES["global"])]
    for pair in pairs:
        pair.warm_up()
        pair.draw(2)
    graphs = [pair.capture() for pair in pairs]
    streams = [torch.cuda.Stream() for _ in pairs]
    torch.cuda.synchronize()
    for _ in range(20):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for pair in pairs:
        for _ in range(20):
            pair.twin.step()
        pair.compare()


def test_a_file_that_is_loaded_between_replays_takes_effect() -> None:
    pair = Pair(**SCHEDULE, master_weights="fp32", dtype=torch.bfloat16)
    pair.warm_up()
    for group in pair.twin.param_groups:
        group["lr"] = 0.05
    file = copy.deepcopy(pair.twin.state_dict())
    for group in pair.twin.param_groups:
        group["lr"] = 0.1
    graph = pair.capture()
    run(pair, graph, range(2, 6))
    for opt in (pair.opt, pair.twin):
        opt.load_state_dict(file)
    assert float(pair.lr) == 0.05
    for step in range(6, 10):
        pair.draw(step)
        graph.replay()
        pair.twin.step()
        pair.compare(statistics=False)  # they are of the plans before


def test_a_new_phase_begins_between_replays() -> None:
    pair = Pair(**SCHEDULE, bias_correction=True)
    pair.warm_up()
    graph = pair.capture()
    run(pair, graph, range(2, 6))
    for opt in (pair.opt, pair.twin):
        opt.reset_schedule(lr=0.2, start_position=1, restart_bias_correction=True)
    for step in range(6, 10):
        pair.draw(step)
        graph.replay()
        pair.twin.step()
        pair.compare(statistics=False)
    assert pair.opt.get_lr() == pair.twin.get_lr()


def test_a_graph_needs_nothing_that_is_made_anew() -> None:
    """Plans, lists and tables go, and their memory is given to others."""
    pair = Pair(sizes=(1025,) * 400, **SCHEDULE, bias_correction=True)
    pair.warm_up()
    graph = pair.capture()
    for _ in range(2):
        pair.opt._drop_plan()
        pair.opt._tables._kept.clear()
        gc.collect()
        torch.cuda.empty_cache()
        _ = [torch.full((n,), 255, dtype=torch.uint8, device="cuda") for n in (512, 8192, 2**20)]
        pair.draw(2)
        pair.step()
        pair.compare()
        for step in range(3, 5):
            pair.draw(step)
            graph.replay()
            pair.twin.step()
            pair.compare(statistics=False)


def test_what_is_collected_during_a_capture_does_not_harm_it() -> None:
    """Freeing memory is forbidden there, unless one says that it is meant."""
    pair, others = Pair(**SCHEDULE), [Pair(sizes=(5,) * 5000)]
    pair.warm_up()
    others[0].warm_up()
    others[0].capture()

    def step() -> None:
        pair.opt.step()
        others.clear()
        gc.collect()

    run(pair, captured(step), range(2, 5))


def test_gradients_of_another_layout_are_copied_at_every_replay() -> None:
    pair = Pair(sizes=(1200,), **SCHEDULE)
    for opt in (pair.opt, pair.twin):
        (param,) = params_of(opt)
        param.grad = None
        param.data = param.data.view(40, 30)
        param.grad = torch.zeros(30, 40, device="cuda").t()
    pair.warm_up()
    run(pair, pair.capture(), range(2, 6))


@modes
@pytest.mark.parametrize("n_params", [50, 1000])
def test_a_captured_step_is_one_kernel(settings: dict[str, Any], n_params: int) -> None:
    """Whether groups and gradients fit its arguments, or not."""
    pair = Pair(sizes=(1000,) * n_params, **SCHEDULE, **settings)
    pair.warm_up()
    graph = pair.capture()
    run(pair, graph, range(2, 3))
    n_replays = 3
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(n_replays):
            graph.replay()
        torch.cuda.synchronize()
    on_device = [
        event.name
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    assert len(on_device) == n_replays, on_device
    assert all("step_kernel" in name for name in on_device)


def test_a_replay_keeps_the_host_for_microseconds() -> None:
    pair = Pair(sizes=(1000,) * 398)
    pair.warm_up()
    graph = pair.capture()
    times = []
    for _ in range(200):
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        times.append(time.perf_counter() - start)
    median_us = statistics.median(times) * 1e6
    print(f"a replay: {median_us:.1f} us of host time")
    assert median_us < 30.0
