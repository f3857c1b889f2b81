"""Many steps: the bits stay those of a twin, whatever else the GPU has to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from backends import Twin, as_integers, same, to_device
from native import load_cuda, occupy, wait
from torch import Tensor, nn

from bertadam_cuda import BertAdam

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

MODES: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "global": {"clip": "global"},
    "no clip": {"max_grad_norm": 0.0},
}
modes = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
FEW = (0, 1, 3, 127, 1023, 1025, 4096, 4099, 20_011)  # the last two are several chunks
MANY = tuple(1 + i % 37 for i in range(600))  # more than the tree adds up at once
WIDE = (500_003, 3, 100_003, 1025, 70_001)  # a draw and more for each SM
SHIFT = 4096  # so many windows into the noise
PIECE = 250  # steps between looks; their launches fit the queue, so that a step that hangs is told


class Course(Twin):
    """Steps whose gradients depend on the step alone, exactly, on any device."""

    def __init__(self, device: str, sizes: Sequence[int], n_steps: int, settings: Any) -> None:
        generator = torch.Generator().manual_seed(5)
        self.device = device
        self.params = []
        for i, size in enumerate(sizes):
            start = torch.randn(size + 4, generator=generator)[i % 4 : i % 4 + size]
            self.params.append(nn.Parameter(to_device(start, device)))
        self.n = sum(sizes)
        noise = torch.randn(self.n + SHIFT, generator=generator)
        if settings.get("max_grad_norm") != 0.0:  # else they would stay in the moments
            noise[3] = torch.inf  # in the first tensors, or the last one, now and then
            noise[-10] = torch.nan
        self.noise = noise.to(device)
        self.flat = torch.zeros(self.n, device=device)
        for param, grad in zip(self.params, self.flat.split(list(sizes)), strict=True):
            param.grad = grad
        groups: list[dict[str, Any]] = [
            {"params": self.params[::2]},
            {"params": self.params[1::2], "weight_decay": 0.0, "bias_correction": True},
        ]
        self.opt = BertAdam(groups, lr=0.01, t_total=n_steps, warmup=0.1, **settings)
        self.norms: list[Tensor] = []

    def run(self, begin: int, end: int, before: Callable[[int], None] = lambda step: None) -> None:
        """Launch steps [begin, end) without waiting for any."""
        self.norms.clear()
        for step in range(begin, end):
            before(step)
            at = step * 1009 % SHIFT
            torch.mul(self.noise[at : at + self.n], 2.0 ** (step % 9 - 6), out=self.flat)
            absent = self.params[step % len(self.params)]
            grad = absent.grad
            if step % 7 == 3:
                absent.grad = None
            self.opt.step()
            absent.grad = grad
            if self.opt.grad_norms is not None:
                self.norms.append(self.opt.grad_norms.clone())

    def results(self) -> list[Tensor]:
        """All that the steps of the last piece left, and the norms of each."""
        norms = [as_integers(torch.cat(self.norms))] if self.norms else []
        return [*self.bits(), *norms]


def end_of(stream: torch.cuda.Stream) -> None:
    done = torch.cuda.Event()
    done.record(stream)
    wait(done)


def first_difference(courses: Sequence[Course], n_steps: int) -> int | None:
    """The end of the first piece after which the courses are not the same."""
    for begin in range(0, n_steps, PIECE):
        for course in courses:
            course.run(begin, begin + PIECE)
            if course.device == "cuda":
                end_of(torch.cuda.current_stream())
        expected = courses[0].results()
        if not all(same(course.results(), expected) for course in courses[1:]):
            return begin + PIECE
    return None


def two_on_the_gpu(sizes: Sequence[int], n_steps: int, settings: dict[str, Any]) -> list[Course]:
    """As the engine likes it, and with few blocks that keep nothing between norm and update."""
    courses = [Course("cuda", sizes, n_steps, settings) for _ in range(2)]
    courses[1].opt._plans[0].workers = 3
    courses[1].opt._plans[0].retained_draws = 0
    return courses


@modes
def test_a_hundred_thousand_steps(settings: dict[str, Any]) -> None:
    n_steps = 100_000
    courses = [Course("cpu", FEW, n_steps, settings), *two_on_the_gpu(FEW, n_steps, settings)]
    assert first_difference(courses, n_steps) is None
    steps = [course.opt.state[param]["step"] for course in courses for param in course.params]
    assert all(0.9 * n_steps < step <= n_steps for step in steps)
    assert (courses[0].opt.skipped > 0) == (settings.get("max_grad_norm") != 0.0)


def test_ten_thousand_steps_of_more_tensors_than_the_tree_adds_at_once() -> None:
    n_steps = 10_000
    courses = two_on_the_gpu(MANY, n_steps, MODES["global"])
    assert (
        first_difference([Course("cpu", MANY, n_steps, MODES["global"]), *courses], n_steps) is None
    )


def test_one_element_that_was_wrong_once_is_noticed() -> None:
    """A negative control. What a wrong step does to a moment fades, but parameters keep it."""
    courses = two_on_the_gpu(FEW, 1000, {})
    assert first_difference(courses, PIECE) is None
    state = courses[1].opt.state[courses[1].params[-1]]
    state["exp_avg"][-1] *= 1.01
    assert first_difference(courses, PIECE) == PIECE


@pytest.fixture(scope="module")
def occupier(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_cuda("occupy_sms.cu", tmp_path_factory.mktemp("occupy"))


@pytest.mark.parametrize(
    ("mode", "retained_draws"), [*((mode, -1) for mode in MODES), ("per tensor", 10**6)]
)
def test_ten_thousand_steps_beside_a_kernel_that_competes_for_sms(
    occupier: Any, mode: str, retained_draws: int
) -> None:
    """Some SMs are taken for 40 to 800 us, then others. A block that keeps too much has to help."""
    n_steps, look_at = 10_000, 4 * PIECE
    alone, beside = (Course("cuda", WIDE, n_steps, MODES[mode]) for _ in range(2))
    beside.opt._plans[0].retained_draws = retained_draws
    expected = []
    for begin in range(0, n_steps, PIECE):
        alone.run(begin, begin + PIECE)
        end_of(torch.cuda.current_stream())
        if (begin + PIECE) % look_at == 0:
            expected.append(alone.results())
    n_sms = torch.cuda.get_device_properties(0).multi_processor_count
    busy, free = torch.cuda.Stream(priority=-1), torch.cuda.Stream()
    torch.cuda.synchronize()

    # Longer than a step on average, so that these do not run out.
    def compete(step: int) -> None:
        occupy(occupier, 1 + step * 37 % (n_sms - 1), 40 * (1 + step % 20), busy, n_shares=8)

    for begin in range(0, n_steps, PIECE):
        with torch.cuda.stream(free):
            beside.run(begin, begin + PIECE, before=compete)
        released = torch.cuda.Event()
        released.record(busy)
        end_of(free)
        assert not released.query(), "the other kernels were gone before the steps had ended"
        if (begin + PIECE) % look_at == 0:
            end = begin + PIECE
            assert same(beside.results(), expected[end // look_at - 1]), f"steps to {end}"
