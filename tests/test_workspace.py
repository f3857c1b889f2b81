"""What a step may find in its workspace: anything but words of its own epoch; epochs wrap."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import Twin, odd_grads, odd_params, same
from torch import Tensor

MODES: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "global": {"clip": "global"},
    "propagate": {"on_nonfinite": "propagate"},
    "null steps": {"lr": 0.0},
}
# Blocks and retained draws on a GPU: its own choice, several blocks that keep nothing, one block
# that runs out of slots and, clipped per tensor, postpones updates.
AUTO = (0, -1)
SHAPES = {"auto": AUTO, "five keep none": (5, 0), "one keeps all": (1, 10**6)}
on_gpu = pytest.mark.gpu
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
places = pytest.mark.parametrize(
    ("device", "shape"),
    [
        pytest.param("cpu", (7, -1), id="cpu"),
        *(pytest.param("cuda", SHAPES[name], id=f"cuda, {name}", marks=on_gpu) for name in SHAPES),
    ],
)
modes = pytest.mark.parametrize("settings", MODES.values(), ids=MODES)
N_EPOCHS = 2**32
EPOCH = 3  # the place of the epoch among the counters


def float_bits(x: float) -> int:
    return int.from_bytes(struct.pack("<f", x), "little")


def as_signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


class Workspace:
    """The scratch of a twin's one plan and stream, after its first step."""

    def __init__(self, twin: Twin) -> None:
        (plan,) = twin.opt._plans
        (self.memory,) = plan.scratch
        self.layout: dict[str, int] = plan.scratch_layout
        assert self.memory.numel() == self.layout["end"]

    @property
    def counters(self) -> Tensor:
        return self.memory[:24].view(torch.int32)

    @property
    def coming_epoch(self) -> int:
        return (int(self.counters[EPOCH]) % N_EPOCHS + 1) % N_EPOCHS or 1  # never 0

    def set_epoch(self, epoch: int) -> None:
        self.counters[EPOCH] = epoch - 2**32 if epoch >= 2**31 else epoch

    def words(self, name: str) -> Tensor:
        """One of the arrays that may hold anything, up to the next array."""
        begin = self.layout[name]
        end = min(offset for offset in self.layout.values() if offset > begin)
        return self.memory[begin:end].view(torch.int64)


# Each fills one array with what no step may believe. The coming epoch is left out: its words are
# the step's own, and believed.
def random_bits(words: Tensor, coming: int, payload: int) -> None:
    bits = torch.randint(-(2**31), 2**31, (2, words.numel()))
    tags = torch.where(bits[0] % N_EPOCHS == coming, bits[0] ^ 1, bits[0])
    words.copy_(tags << 32 | bits[1] % N_EPOCHS)


def all_ones(words: Tensor, coming: int, payload: int) -> None:
    assert coming != N_EPOCHS - 1
    words.fill_(-1)


def stale_words(words: Tensor, coming: int, payload: int) -> None:
    """As if the last step had left them: all that a step could take for its own but for the tag."""
    words.fill_(as_signed((coming - 1) % N_EPOCHS << 32 | payload))


def trusted_words(words: Tensor, coming: int, payload: int) -> None:
    words.fill_(as_signed(coming << 32 | payload))


Fill = Callable[[Tensor, int, int], None]
# A coefficient that is not 1, half of a small double, the first draw.
PAYLOADS = {"nodes": float_bits(0.25), "coefficients": float_bits(0.25), "postponed": 0}


def spoil(workspace: Workspace, fill: Fill, *names: str) -> None:
    for name in names or PAYLOADS:
        fill(workspace.words(name), workspace.coming_epoch, PAYLOADS[name])


def make_twin(params: list[Any], device: str, shape: tuple[int, int], **settings: Any) -> Twin:
    twin = Twin(copy.deepcopy(params), device, **settings)
    if "lr" in settings:
        for group in twin.opt.param_groups:
            group["lr"] = settings["lr"]  # a null step needs it to be 0 in all of them
    for plan in twin.opt._plans:
        plan.workers, plan.retained_draws = shape
    return twin


def steps_agree(
    device: str,
    settings: dict[str, Any],
    shape: tuple[int, int],
    before_each: Callable[[Workspace], None],
    before_second: Callable[[Workspace], None] = lambda workspace: None,
    n_steps: int = 4,
) -> bool:
    """Whether some steps end as those of an untouched twin on the CPU, and leave clean counters."""
    params = odd_params()
    if device == "cpu":
        params = [param for param in params if param.numel() < 100_000]  # for time's sake
    twin = make_twin(params, device, shape, **settings)
    expected = make_twin(params, "cpu", AUTO, **settings)
    for step in range(n_steps):
        grads = odd_grads(params, step)
        if step == 3 and settings.get("lr") == 0:  # a step that does not count
            grads = [None if grad is None else torch.zeros_like(grad) for grad in grads]
        if step == 1:
            before_second(Workspace(twin))
        if step > 0:
            workspace = Workspace(twin)
            epoch = workspace.coming_epoch
            before_each(workspace)
        twin.step(grads)
        expected.step(grads)
        if step > 0:
            counters = [int(counter) % N_EPOCHS for counter in workspace.counters]
            assert counters == [0, 0, 0, epoch, 0, 0]
            arrivals = workspace.words("arrivals")
            assert not arrivals.any()
        if not same(twin.bits(), expected.bits()):
            return False
    return True


@places
@modes
@pytest.mark.parametrize("fill", [random_bits, all_ones, stale_words])
def test_garbage_in_the_workspace_leaves_no_trace(
    device: str, shape: tuple[int, int], settings: dict[str, Any], fill: Fill
) -> None:
    assert steps_agree(device, settings, shape, lambda workspace: spoil(workspace, fill))


@places
@modes
def test_steps_across_the_end_of_the_epochs(
    device: str, settings: dict[str, Any], shape: tuple[int, int]
) -> None:
    """Epochs 2^32 - 3 to 2^32 - 1, then 1 and 2: fresh memory would pass for words of epoch 0."""
    assert steps_agree(
        device,
        settings,
        shape,
        before_each=lambda workspace: spoil(workspace, stale_words),
        before_second=lambda workspace: workspace.set_epoch(N_EPOCHS - 4),
        n_steps=6,
    )


@devices
def test_the_arrays_lie_where_the_layout_says(device: str) -> None:
    """Otherwise the garbage above would go where nobody reads."""
    params = odd_params()
    twin = make_twin(params, device, AUTO, max_grad_norm=0.7)
    twin.step([torch.randn(p.shape) for p in params])
    workspace = Workspace(twin)
    epoch = workspace.coming_epoch - 1
    words = workspace.words("coefficients")[: len(params)].cpu()
    assert (words >> 32).tolist() == [epoch] * len(params)
    coefs = twin.opt.clip_coefs
    assert coefs is not None
    assert (coefs < 1).any()
    # A plan lists a group after the other, and so does clip_coefs.
    assert torch.equal((words % N_EPOCHS).int().view(torch.float32), coefs.cpu())
    tags = workspace.words("nodes").cpu() >> 32
    assert bool((tags == epoch).any()) == (device == "cuda")
    assert workspace.words("nodes").any()


@on_gpu
def test_a_word_of_the_coming_epoch_is_believed() -> None:
    """What the garbage would do if the tags were not looked at."""
    assert not steps_agree(
        "cuda", {}, AUTO, lambda workspace: spoil(workspace, trusted_words, "coefficients")
    )


@on_gpu
def test_one_block_that_keeps_all_postpones_updates() -> None:
    """So the stale words above were among those that it waits for."""
    params = odd_params()
    twin = make_twin(params, "cuda", SHAPES["one keeps all"])
    for _ in range(2):
        twin.step([torch.randn(p.shape) for p in params])
    workspace = Workspace(twin)
    assert ((workspace.words("postponed") >> 32) == workspace.coming_epoch - 1).any()
