"""How long a step keeps the host, for our optimizer and BERT-large's tensors.

step() with 2 and with 50 groups, and on a GPU the replay of a CUDA graph of it. Every call begins
on an idle queue, so none waits for the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
    """One number of groups and way to step; `launches`: kernels, copies and fills, once counted."""

    model: str
    n_tensors: int
    n_groups: int
    clip: str
    n_calls: int
    median_us: float
    p20_us: float
    p80_us: float
    launches: int | None
    call: str


def regroup(groups: Groups, n_groups: int) -> Groups:
    """Deal the parameters out to n_groups, every second of which decays."""
    params = [param for group in groups for param in group["params"]]
    return [
        {"params": params[i::n_groups], "weight_decay": WEIGHT_DECAY if i % 2 == 0 else 0.0}
        for i in range(n_groups)
    ]


def host_times(device: torch.device, model: str = MODEL, n_calls: int = _N_CALLS) -> list[HostRow]:
    """Time steps that clip per tensor, on the gradients of make_groups; count no launches yet.

    Once a profiler has run in a process, launches take longer in it: see with_launches.
    """
    rows = []
    for name, n_groups, n_tensors, call in _steps(device, model):
        IdleTimes.of(call, _WARM_UPS)
        host = IdleTimes.of(call, n_calls, seconds=10.0).host
        rows.append(
            HostRow(
                *(model, n_tensors, n_groups, "per_tensor", n_calls),
                *(host.median, host.p20, host.p80, None),
                name,
            )
        )
    return rows


def with_launches(rows: Sequence[HostRow], device: torch.device) -> list[HostRow]:
    """Return the rows with what their steps launch; for when all times have been taken."""
    if device.type != "cuda" or not rows:
        return list(rows)
    counted = []
    for row, (*_, call) in zip(rows, _steps(device, rows[0].model), strict=True):
        call()  # the first one creates states
        counted.append(replace(row, launches=sum(count_launches(call))))
    return counted


def _steps(device: torch.device, model: str) -> Iterator[tuple[str, int, int, Call]]:
    """Yield what is timed: its name, the numbers of groups and tensors, and the call."""
    groups = make_groups(MODELS[model](), device)
    n_tensors = sum(len(group["params"]) for group in groups)
    for n_groups in GROUP_COUNTS:
        optimizer = BertAdam(regroup(groups, n_groups), lr=LR, max_grad_norm=MAX_GRAD_NORM)
        yield STEP, n_groups, n_tensors, optimizer.step
    if device.type == "cuda":
        optimizer = BertAdam(
            regroup(groups, GROUP_COUNTS[0]),
            lr=torch.tensor(LR, device=device),
            max_grad_norm=MAX_GRAD_NORM,
            capturable=True,
        )
        optimizer.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()
        yield REPLAY, GROUP_COUNTS[0], n_tensors, graph.replay


def host_table(rows: Sequence[HostRow]) -> str:
    """Return one line per row."""
    return "\n".join(
        [f"host time of a step, {rows[0].model}, {rows[0].n_tensors} tensors, idle queue:"]
        + [
            f"  {row.call}, {row.n_groups:>2} groups: median {row.median_us:.1f} us, "
            f"p20 {row.p20_us:.1f}, p80 {row.p80_us:.1f}, {row.n_calls} calls, "
            f"launches {'-' if row.launches is None else row.launches}"
            for row in rows
        ]
    )


def write_host_csv(file: Path, rows: Sequence[HostRow], circumstances: Circumstances) -> None:
    lines = [{**asdict(circumstances), **asdict(row)} for row in rows]
    write_lines(file, lines, list(lines[0]))
