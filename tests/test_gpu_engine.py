"""What the launch promises: one kernel, no waiting, no allocation, and an end in any company."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
from backends import Twin, same
from native import load_cuda, occupy, wait
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bertadam_cuda import BertAdam

pytestmark = pytest.mark.gpu

MODES: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "global": {"clip": "global"},
    "no clip": {"max_grad_norm": 0.0},
}
modes = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)


def make_params(n: int, size: int = 20_000) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(size, device="cuda")) for _ in range(n)]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def two_groups(params: list[nn.Parameter], **settings: Any) -> BertAdam:
    groups: list[dict[str, Any]] = [
        {"params": params[::2]},
        {"params": params[1::2], "weight_decay": 0.0},
    ]
    return BertAdam(groups, lr=0.1, t_total=1000, warmup=0.1, **settings)


def events_of(opt: BertAdam, n_steps: int) -> list[Any]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(n_steps):
            opt.step()
        torch.cuda.synchronize()
    return list(profiler.events())


@modes
@pytest.mark.parametrize(
    ("n_params", "copies"), [(50, 0), (1000, 0), (5000, 1)], ids=["small", "large", "staged"]
)
def test_a_step_is_one_kernel_launch(settings: dict[str, Any], n_params: int, copies: int) -> None:
    """Kernels have room for 4 or 32 KB of arguments; beyond these one copy goes ahead."""
    opt = two_groups(make_params(n_params, 1000), **settings)
    for _ in range(3):
        opt.step()
    torch.cuda.synchronize()
    n_steps = 5
    on_device = [
        event.name
        for event in events_of(opt, n_steps)
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(("Optimizer", "ProfilerStep"))
    ]
    kernels = [name for name in on_device if "step_kernel" in name]
    assert len(kernels) == n_steps
    assert len(on_device) == n_steps * (1 + copies), on_device
    assert opt._plans[0].n_copies == copies


@modes
def test_a_step_does_not_wait_for_the_device(settings: dict[str, Any]) -> None:
    opt = two_groups(make_params(50), **settings)
    for _ in range(3):
        opt.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        names = {event.name for event in events_of(opt, 1) if "Synchronize" in event.name}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert names <= {"cudaDeviceSynchronize"}  # the one that ends the profile
    torch.cuda._sleep(2 * 10**9)  # about a second
    start = time.perf_counter()
    opt.step()
    assert time.perf_counter() - start < 0.2
    assert not torch.cuda.current_stream().query()


@modes
def test_a_step_does_not_allocate(settings: dict[str, Any]) -> None:
    opt = two_groups(make_params(50), **settings)
    for _ in range(2):
        opt.step()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        opt.step()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.fixture(scope="module")
def occupier(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_cuda("occupy_sms.cu", tmp_path_factory.mktemp("occupy"))


@modes
@pytest.mark.parametrize("blocks", [0, 1, 132, 10_000])
def test_a_step_ends_beside_a_kernel_that_holds_all_but_one_sm(
    occupier: Any, settings: dict[str, Any], blocks: int
) -> None:
    params = make_params(20, 100_000)
    opt = two_groups(params, **settings)
    expected = two_groups([copy_of(p) for p in params], **settings)
    for each in (opt, expected):
        each.step()  # creates states and plans
    opt._plans[0].workers = blocks
    busy, free = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    n_sms = torch.cuda.get_device_properties(0).multi_processor_count
    occupy(occupier, n_sms - 1, 10**6, busy)
    released = torch.cuda.Event()
    released.record(busy)
    with torch.cuda.stream(free):
        opt.step()
        done = torch.cuda.Event()
        done.record(free)
    wait(done)
    assert not released.query(), "the other kernel was gone before the step had ended"
    torch.cuda.synchronize()
    expected.step()
    for ours, theirs in zip(opt.param_groups, expected.param_groups, strict=True):
        for a, b in zip(ours["params"], theirs["params"], strict=True):
            assert torch.equal(a, b)


def copy_of(param: nn.Parameter) -> nn.Parameter:
    other = nn.Parameter(param.detach().clone())
    assert param.grad is not None
    other.grad = param.grad.clone()
    return other


@modes
def test_a_step_follows_what_its_stream_did_before(settings: dict[str, Any]) -> None:
    """A gradient written late on a side stream is the one that is used."""
    params = make_params(5)
    twins = [copy_of(param) for param in params]
    opt, expected = two_groups(params, **settings), two_groups(twins, **settings)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    for step in range(3):
        torch.manual_seed(step)
        grads = [torch.randn_like(param) for param in params]
        for twin, grad in zip(twins, grads, strict=True):
            twin.grad = grad.clone()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(10**8)
            for param, grad in zip(params, grads, strict=True):
                assert param.grad is not None
                param.grad.copy_(grad)
            opt.step()
        expected.step()
        torch.cuda.synchronize()  # before `grads` are freed: another stream reads them
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param, twin)


@pytest.mark.parametrize("n_params", [20, 1000, 5000], ids=["small", "large", "staged"])
def test_steps_in_a_row_use_their_own_gradients(n_params: int) -> None:
    """Nothing that a launch still reads is overwritten by the host."""
    params = [nn.Parameter(torch.randn(3000)) for _ in range(n_params)]
    twins = [Twin(params, device) for device in ("cpu", "cuda")]
    grads = [[torch.randn(3000) for _ in params] for _ in range(6)]
    on_gpu = [[grad.cuda() for grad in row] for row in grads]
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)
    for row in on_gpu:
        for param, grad in zip(twins[1].params, row, strict=True):
            param.grad = grad
        twins[1].opt.step()
    for row in grads:
        twins[0].step(row)
    assert same(twins[0].bits(), twins[1].bits())


def kernels_of(profiler: Any) -> list[tuple[float, float]]:
    """Beginning and end of each step on the device, by beginning."""
    return sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and "step_kernel" in event.name
    )


@modes
@pytest.mark.parametrize("share", [1, 2], ids=["all SMs each", "half of the SMs each"])
def test_two_optimizers_on_two_streams(settings: dict[str, Any], share: int) -> None:
    """Their kernels do run at once: side by side on half of the SMs, or as SMs become free.

    (Without clipping, a kernel has a block per draw whatever its share.)
    """
    n_sms = torch.cuda.get_device_properties(0).multi_processor_count
    pairs: list[tuple[BertAdam, BertAdam, torch.cuda.Stream]] = []
    for _ in range(2):
        params = make_params(30, 500_000)
        twins = [copy_of(param) for param in params]
        opt, expected = two_groups(params, **settings), two_groups(twins, **settings)
        opt._plans[0].workers = n_sms // share
        pairs.append((opt, expected, torch.cuda.Stream()))
    n_steps = 50

    def steps_of_both() -> None:
        for _ in range(n_steps):
            for opt, _, stream in pairs:
                with torch.cuda.stream(stream):
                    opt.step()
        torch.cuda.synchronize()

    torch.cuda.synchronize()
    steps_of_both()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        steps_of_both()
    times = kernels_of(profiler)
    assert len(times) == 2 * n_steps
    n_overlaps = sum(end > start for (_, end), (start, _) in itertools.pairwise(times))
    assert n_overlaps >= n_steps // 2
    for opt, expected, _ in pairs:
        for _ in range(2 * n_steps):
            expected.step()
        for ours, theirs in zip(all_params(opt), all_params(expected), strict=True):
            assert torch.equal(ours, theirs)


def all_params(opt: BertAdam) -> list[Tensor]:
    return [param for group in opt.param_groups for param in group["params"]]


def test_a_step_inside_a_graph_capture_is_refused() -> None:
    params = make_params(3)
    opt = two_groups(params)
    opt.step()
    torch.cuda.synchronize()
    before = [param.detach().clone() for param in params]
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match=r"BertAdam.*captured"), torch.cuda.graph(graph):
        opt.step()
    torch.cuda.synchronize()
    for param, old in zip(params, before, strict=True):
        assert torch.equal(param, old)
    opt.step()
    assert not torch.equal(params[0], before[0])


def test_no_step_leaves_its_counters_dirty() -> None:
    opt = two_groups(make_params(30, 50_000), clip="global")
    for step in range(3):
        opt.step()
        counters = opt._plans[0].scratch[0][: 6 * 4].view(torch.int32).tolist()
        # ticket, leading ticket, workers done, epoch, draws postponed and resumed
        assert counters == [0, 0, 0, step + 1, 0, 0]
