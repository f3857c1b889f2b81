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
    """Time steps that clip per tensor, on the gradients of make_groups."""
    groups = make_groups(MODELS[model](), device)
    calls: list[tuple[str, int, Call]] = []
    for n_groups in GROUP_COUNTS:
        optimizer = BertAdam(regroup(groups, n_groups), lr=LR, max_grad_norm=MAX_GRAD_NORM)
        calls.append((STEP, n_groups, optimizer.step))
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
        calls.append((REPLAY, GROUP_COUNTS[0], graph.replay))
    times = []
    for _, _, call in calls:
        IdleTimes.of(call, _WARM_UPS)
        times.append(IdleTimes.of(call, n_calls, seconds=10.0).host)
    # Only now: once a profiler has run in a process, launches take longer in it.
    n_launches = [
        sum(count_launches(call)) if device.type == "cuda" else None for *_, call in calls
    ]
    n_tensors = sum(len(group["params"]) for group in groups)
    return [
        HostRow(
            *(model, n_tensors, n_groups, "per_tensor", n_calls),
            *(host.median, host.p20, host.p80, n),
            name,
        )
        for (name, n_groups, _), host, n in zip(calls, times, n_launches, strict=True)
    ]


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
