"""Times one optimizer step of several implementations on the same parameters and gradients.

    python bench/bench_step.py --device cpu --model bert-base --threads 2 --out bench/results

What is timed: one call that clips (where the mode says so) and updates all parameters, fp32, in
BERT's two groups. Parameters and gradients are shared by all contenders, moments are their own.
Gradients have a norm of 0.5 over all tensors and every limit is 1, so every coefficient is exactly
1: all contenders do their full work, also those that scale gradients in place, and nobody's input
changes. Before it is timed, each contender has to reproduce a float64 computation of its own
semantics, with coefficients below 1; one that does not is refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))  # a build in place is enough

from bench_report import Circumstances, Row, draw, table, write_csv
from contenders import (
    CLIPS,
    FUSED,
    OURS,
    Contender,
    Groups,
    WrongResult,
    check,
    contenders,
    split_groups,
)
from model_shapes import MODELS, Shapes, count_elements, decays
from timing import (
    Call,
    DeviceClock,
    Spread,
    alternate,
    copy_call,
    count_launches,
    idle_host_us,
    paired_ratio,
    wall_us,
)
from torch import nn

COPY = "copy"
#: Clip mode -> the most that ours may take of torch's fused AdamW with that clipping, for BERT-base
#: on two CPU threads.
CPU_LIMITS = {"per_tensor": 0.8, "none": 1.05}
LIMITED_CASE = ("bert-base", 2)
_GRAD_NORM = 0.5


def make_groups(shapes: Shapes, device: torch.device) -> Groups:
    """Random parameters with gradients of a small norm, in BERT's two groups."""
    torch.manual_seed(0)
    scale = _GRAD_NORM / count_elements(shapes) ** 0.5
    params = {
        name: nn.Parameter(torch.randn(s, device=device) * 0.02) for name, s in shapes.items()
    }
    for param in params.values():
        param.grad = torch.randn_like(param) * scale
    decayed = [param for name, param in params.items() if decays(name)]
    return split_groups(decayed, [param for name, param in params.items() if not decays(name)])


def build(
    candidates: Sequence[Contender], groups: Groups, device: torch.device
) -> tuple[dict[str, Call], dict[str, str]]:
    """Return the steps that passed their check, and the reasons of those that did not."""
    calls: dict[str, Call] = {}
    notes: dict[str, str] = {}
    for contender in candidates:
        try:
            check(contender, device)
            # Optimizers keep and complete the dicts that they get.
            calls[contender.name] = contender.build([dict(group) for group in groups])
        except WrongResult as error:
            notes[contender.name] = f"REFUSED: {error}"
        except Exception as error:
            if not contender.optional:
                raise
            # Such packages compile at first use and can fail in many ways; it is named, not hidden.
            notes[contender.name] = f"missing: {type(error).__name__}: {error}".split("\n")[0]
    return calls, notes


def measure(
    candidates: Sequence[Contender], model: str, device: torch.device, n_rounds: int
) -> list[Row]:
    """Time the candidates, all of one clip mode, in turns."""
    shapes = MODELS[model]()
    groups = make_groups(shapes, device)
    calls, notes = build(candidates, groups, device)
    copy, copy_bytes = copy_call(device)
    on_gpu = device.type == "cuda"
    clock: Callable[[Call], float] = DeviceClock(device) if on_gpu else wall_us
    samples = alternate({**calls, COPY: copy}, n_rounds, clock)
    copy_gbps = copy_bytes / Spread.of(samples[COPY]).median / 1e3
    rows = []
    for contender in candidates:
        name = contender.name
        known = (model, len(shapes), count_elements(shapes), contender.clip, name)
        if name in notes:
            rows.append(Row(*known, contender.bytes_per_param, note=notes[name]))
            continue
        spread = Spread.of(samples[name])
        launches, copies = count_launches(calls[name]) if on_gpu else (None, None)
        rows.append(
            Row(
                *known,
                contender.bytes_per_param,
                n_rounds,
                spread.median,
                spread.p20,
                spread.p80,
                paired_ratio(samples[OURS], samples[name]).median if OURS in calls else None,
                idle_host_us(calls[name]) if on_gpu else None,
                launches,
                copies,
                copy_gbps,
            )
        )
    return rows


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Say whether ours keeps to CPU_LIMITS, by the medians of the paired runs."""
    lines = []
    for row in rows:
        limit = CPU_LIMITS.get(row.clip)
        if row.contender == FUSED and limit is not None and row.ours_over_this is not None:
            word = "met" if row.ours_over_this <= limit else "NOT met"
            lines.append(
                f"{row.clip}: ours takes {row.ours_over_this:.3f} of {FUSED}, "
                f"at most {limit} wanted: {word}"
            )
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument("--model", choices=MODELS, default="bert-base")
    parser.add_argument("--clip", choices=(*CLIPS, "all"), default="all")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--rounds", type=int, default=20, help="timed calls of each contender")
    parser.add_argument("--out", type=Path, help="folder for the CSV and the PNG")
    parser.add_argument("--commit", help="for the CSV, where the sources are not a git checkout")
    return parser.parse_args(arguments)


def main(
    arguments: Sequence[str] | None = None,
    candidates: Callable[[str, str], list[Contender]] = contenders,
) -> int:
    """Run the benchmark; returns 1 if a contender was refused."""
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    circumstances = Circumstances.here(device, args.commit)
    rows: list[Row] = []
    for clip in CLIPS if args.clip == "all" else [args.clip]:
        rows += measure(candidates(clip, device.type), args.model, device, args.rounds)
    on_gpu = device.type == "cuda"
    print(
        f"{args.model}: {rows[0].n_tensors} tensors, {rows[0].n_params:,} parameters, fp32\n"
        f"{circumstances.hardware}, {circumstances.threads} threads, load average "
        f"{circumstances.load:.1f}, torch {circumstances.torch}, driver "
        f"{circumstances.driver or '-'}; {args.rounds} rounds\n"
    )
    print(table(rows, on_gpu=on_gpu))
    copies = sorted({row.copy_gbps for row in rows if row.copy_gbps})
    print("copy bandwidth, read + written, per mode:", ", ".join(f"{c:.1f} GB/s" for c in copies))
    if not on_gpu and (args.model, circumstances.threads) == LIMITED_CASE:
        print("\n".join(verdicts(rows)))
    if args.out:
        stem = args.out / f"bench_step_{device.type}_{args.model}"
        write_csv(stem.with_suffix(".csv"), rows, circumstances)
        drawn = draw(stem.with_suffix(".png"), rows, circumstances)
        print(f"wrote {stem}.csv" + (" and .png" if drawn else "; no figure without matplotlib"))
    return int(any(row.note.startswith("REFUSED") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
