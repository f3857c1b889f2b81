"""Which captures are refused, in which words; a pretended capture, so no GPU is needed.

On the CPU a step that is up to date is made without a look at captures; these are the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import snapshot, trained
from torch import nn

from bertadam_cuda import BertAdam, _capture

Pretend = Callable[..., None]
CPU = torch.device("cpu")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Pretend that the streams of some devices capture."""

    def capture_on(*devices: torch.device) -> None:
        binary = trained(0)._binary
        monkeypatch.setattr(binary, "is_capturing", lambda device: device in devices)

    return capture_on


class Elsewhere:
    """What the search for a reason needs of an optimizer, with parameters on pretended devices."""

    def __init__(self, opt: BertAdam, *devices: str) -> None:
        self._binary = opt._binary
        self.param_groups = opt.param_groups
        self.devices = [torch.device(device) for device in devices]

    def _devices(self) -> list[torch.device]:
        return self.devices


def test_without_a_capture_there_is_nothing_to_refuse() -> None:
    opt = trained(0)
    assert not opt._binary.is_capturing(CPU)
    _capture.refuse(opt)


def test_capturable_is_asked_for(pretend: Pretend) -> None:
    pretend(CPU)
    opt = trained(0)
    before = snapshot(opt)
    with pytest.raises(RuntimeError, match=r"BertAdam: step\(\) .* capturable is False.*=True"):
        opt.step()
    assert snapshot(opt) == before
    assert not opt.state


@pytest.mark.parametrize(
    ("lr", "found"),
    [(0.1, "the number 0.1"), (1, "the number 1"), (torch.tensor(0.1), "a tensor on the CPU")],
)
def test_a_rate_that_would_be_kept_for_ever_is_refused(
    pretend: Pretend, lr: Any, found: str
) -> None:
    pretend(CPU)
    opt = trained(0, lr=lr, capturable=True)
    before = snapshot(opt)
    with pytest.raises(
        RuntimeError, match=rf"the lr of param_groups\[0\] is {found}.*lr=torch\.tensor.*fill_"
    ):
        opt.step()
    assert snapshot(opt) == before
    assert not opt.state


def test_a_group_without_parameters_may_have_any_rate(pretend: Pretend) -> None:
    pretend(CPU)
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [nn.Parameter(torch.ones(2))]}]
    opt = BertAdam(groups, lr=0.1, capturable=True)
    with pytest.raises(RuntimeError, match=r"the lr of param_groups\[1\]"):
        _capture.refuse(opt)


def test_all_devices_capture_or_none(pretend: Pretend) -> None:
    pretend(torch.device("cuda:0"))
    opt = trained(0, capturable=True)
    both = Elsewhere(opt, "cuda:0", "cuda:1", "cpu")
    with pytest.raises(RuntimeError, match="parameters are on cuda:1, cpu, too"):
        _capture.refuse(both)


def test_what_is_not_ready_asks_for_a_step_first(pretend: Pretend) -> None:
    pretend(torch.device("cuda:0"))
    opt = trained(0, capturable=True)
    for group in opt.param_groups:
        group["params"] = []
    with pytest.raises(RuntimeError, match=r"take one step outside of the graph first.*scaler"):
        _capture.refuse(Elsewhere(opt, "cuda:0"))


def test_the_end_of_a_schedule_is_not_noticed_in_a_capture(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the device, and warns."""
    opt = trained(3, t_total=2, capturable=True)
    before = snapshot(opt)
    pretend(CPU)
    with pytest.raises(RuntimeError, match="captured"):
        opt.step()
    assert snapshot(opt) == before
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="past t_total=2"):
        opt.step()
