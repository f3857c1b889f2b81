"""How long a step keeps the host, for our optimizer and BERT-large's tensors.

step() with 2 and with 50 groups, and on a GPU the replay of a CUDA graph of it. Every call begins
on an idle queue, so none waits for the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from bench_report import Circumstances, write_lines
from contender_steps import LR, MAX_GRAD_NORM, Groups
from contenders import WEIGHT_DECAY
from measurement import make_groups
from model_shapes import MODELS
from timing import Call, IdleTimes, count_launches

from bertadam_cuda import BertAdam

MODEL = "bert-large"
GROUP_COUNTS = (2, 50)
STEP, REPLAY = "step()", "graph replay"
_N_CALLS = 400
_WARM_UPS = 20


@dataclass(frozen=True)
class HostRow:
    """One number of groups and way to step; `launches` counts kernels, copies and fills."""

    model: str
    n_tensors: int
    n_groups: int
    clip: str
    n_calls: int
    median_us: float
    p20_us: float
    p80_us: float
    launches: int | None
    call: str = STEP


def regroup(groups: Groups, n_groups: int) -> Groups:
    """Deal the parameters out to n_groups, every second of which decays."""
    params = [param for group in groups for param in group["params"]]
    return [
        {"params": params[i::n_groups], "weight_decay": WEIGHT_DECAY if i % 2 == 0 else 0.0}
        for i in range(n_groups)
    ]


def host_times(device: torch.device, model: str = MODEL, n_calls: int = _N_CALLS) -> list[HostRow]:
    """Time step(), clipping per tensor, on the gradients of make_groups."""
    groups = make_groups(MODELS[model](), device)
    rows = []
    for n_groups in GROUP_COUNTS:
        regrouped = regroup(groups, n_groups)
        step = BertAdam(regrouped, lr=LR, max_grad_norm=MAX_GRAD_NORM).step
        rows.append(_row(model, regrouped, step, STEP, n_calls))
    if device.type == "cuda":
        regrouped = regroup(groups, GROUP_COUNTS[0])
        lr = torch.tensor(LR, device=device)
        optimizer = BertAdam(regrouped, lr=lr, max_grad_norm=MAX_GRAD_NORM, capturable=True)
        optimizer.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        rows.append(_row(model, regrouped, graph.replay, REPLAY, n_calls))
    return rows


def _row(model: str, groups: Groups, call: Call, name: str, n_calls: int) -> HostRow:
    IdleTimes.of(call, _WARM_UPS)
    host = IdleTimes.of(call, n_calls, seconds=10.0).host
    return HostRow(
        model,
        sum(len(group["params"]) for group in groups),
        len(groups),
        "per_tensor",
        n_calls,
        host.median,
        host.p20,
        host.p80,
        sum(count_launches(call)) if groups[0]["params"][0].is_cuda else None,
        name,
    )


def host_table(rows: Sequence[HostRow]) -> str:
    """Return one line per number of groups."""
    return "\n".join(
        [f"host time of a step, {rows[0].model}, {rows[0].n_tensors} tensors, idle queue:"]
        + [
            f"  {row.call}, {row.n_groups:>2} groups: median {row.median_us:.1f} us, "
            f"p20 {row.p20_us:.1f}, p80 {row.p80_us:.1f}, {row.n_calls} calls, "
            f"{row.launches} launch(es)"
            for row in rows
        ]
    )


def write_host_csv(file: Path, rows: Sequence[HostRow], circumstances: Circumstances) -> None:
    lines = [{**asdict(circumstances), **asdict(row)} for row in rows]
    write_lines(file, lines, list(lines[0]))
