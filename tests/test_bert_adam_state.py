"""State that a user has put in: BertAdam refuses what does not fit, by name, before it writes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bert_cases import assert_step_is_refused, parameter, snapshot, trained


@pytest.mark.parametrize(
    ("key", "make", "message"),
    [
        ("exp_avg", lambda: torch.zeros(12), r"shape|\(12,\)|\[12\]"),
        ("exp_avg", lambda: torch.zeros(3, 4, dtype=torch.float64), "float64"),
        ("exp_avg_sq", lambda: torch.zeros(3, 4, dtype=torch.bfloat16), "bfloat16"),
        ("exp_avg_sq", lambda: torch.zeros(3, 4, device="meta"), "meta"),
        ("exp_avg_sq", lambda: torch.zeros(3, 1).expand(3, 4), "stride|overlap|dense"),
        ("exp_avg", lambda: None, "NoneType|not a tensor"),
        ("step", lambda: torch.zeros(1), "shape|0-dim"),
        ("step", lambda: torch.tensor(3, dtype=torch.int64), "int64"),
        ("step", lambda: 3, "int|not a tensor"),
    ],
)
def test_state_that_does_not_fit_is_refused_by_name(
    key: str, make: Callable[[], Any], message: str
) -> None:
    opt = trained()
    state = opt.state[parameter(opt)]
    before, good = snapshot(opt), state[key]
    state[key] = make()
    assert_step_is_refused(
        opt, rf"(?s)BertAdam(?=.*'b\.bias')(?=.*'{key}').*({message})", before, keep=False
    )
    state[key] = good
    assert snapshot(opt) == before


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_missing_state_is_refused_by_name(key: str) -> None:
    opt = trained()
    state = opt.state[parameter(opt)]
    before = snapshot(opt)
    good = state.pop(key)
    assert_step_is_refused(opt, rf"(?s)b\.bias.*{key}|{key}.*b\.bias", keep=False)
    state[key] = good
    assert sorted(str(snapshot(opt))) == sorted(str(before))


def test_state_that_shares_memory_is_refused() -> None:
    opt = trained()
    param = parameter(opt)
    for victim in (
        param.data,
        opt.state[param]["exp_avg_sq"],
        opt.state[parameter(opt, 0)]["exp_avg"],
    ):
        good = opt.state[param]["exp_avg"]
        before = snapshot(opt)
        opt.state[param]["exp_avg"] = victim
        assert_step_is_refused(opt, r"b\.bias", keep=False)
        opt.state[param]["exp_avg"] = good
        assert snapshot(opt) == before


SHRINK = """
import torch
from bertadam_cuda import BertAdam

for victim in ("param", "grad", "exp_avg"):
    param = torch.nn.Parameter(torch.zeros(3000))
    param.grad = torch.ones(3000)
    opt = BertAdam([param], lr=0.1)
    opt.step()
    tensors = {"param": param, "grad": param.grad, **opt.state[param]}
    tensors[victim].untyped_storage().resize_(8)
    try:
        opt.step()
    except (RuntimeError, ValueError) as error:
        print(victim, "refused:", error)
"""


def test_memory_that_was_shrunk_is_refused() -> None:
    """In a process of its own, which a write past the end would bring down."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SHRINK]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert [line.split(" refused: BertAdam: ")[0] for line in lines] == ["param", "grad", "exp_avg"]


def test_snapshots_notice_changes() -> None:
    """The tests above stand on this: any bit of parameters, state or settings shows."""
    opt = trained()
    before = snapshot(opt)
    for tensor in (parameter(opt), *opt.state[parameter(opt)].values()):
        kept = tensor.detach().clone()
        tensor.data.add_(1.0)
        assert snapshot(opt) != before
        tensor.data.copy_(kept)
        assert snapshot(opt) == before
    opt.param_groups[0]["lr"] = 0.5
    assert snapshot(opt) != before
