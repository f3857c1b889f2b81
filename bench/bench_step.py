"""Times one optimizer step of several implementations on the same parameters and gradients.

    python bench/bench_step.py --device cpu --model bert-base --threads 2 --out bench/results
    python bench/bench_step.py --device cuda --model all --out bench/results
    python bench/bench_step.py --device cuda --model all --dtype bf16 --out bench/results
    python bench/bench_step.py --device cuda --model all --optimizer lamb --out bench/results

What is timed: one call that clips (where the mode says so) and updates all parameters, in BERT's
two groups. Parameters and gradients, both of --dtype, are shared by all contenders, moments and
masters are their own. Gradients have a norm of 0.5 over all tensors and every limit is 1, so every
coefficient is exactly 1: all contenders do their full work, also those that scale gradients in
place, and nobody's input changes. Before it is timed, each contender has to reproduce a float64
computation of its own semantics, with coefficients below 1; one that does not is refused.

With 16 bits ours comes without and with masters, and bytes per parameter are counted as each keeps
its state: torch's moments have the parameters' dtype, ours and apex's are float32. With fp16 each
call also does what a loss scaler does: look for an overflow, divide, adapt the scale (which is 1
while timing, for the same reason).

With --optimizer lamb (fp32) all compute NVLAMB: norms and trust ratios are part of the step, which
clips by the norm over all or not at all. apex leaves its updates in the gradients, so it gets some
of its own, which are restored before each call, outside of its time.

All modes of clipping are timed in the same rounds, in turns. Slow contenders get fewer rounds (the
column says how many), and where memory does not hold all moments at once, contenders come in
batches, each in turns with ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))  # a build in place is enough

from bench_figure import draw
from bench_report import Circumstances, Row, table, write_csv
from contenders import CLIPS, Contender, contenders
from criteria import Results, verdicts
from host_time import MODEL as HOST_MODEL
from host_time import HostRow, host_table, host_times, with_launches, write_host_csv
from lamb_contenders import lamb_contenders
from loss_scaling import OUR_SCALER
from measurement import measure, refusals, release
from model_shapes import MODELS
from storage import DTYPES

#: What "all" is: the first ones answer the most criteria, should time run out.
_ALL = (
    "bert-large",
    "bert-base",
    "10000x1000",
    "20x16M",
    "1x1e9",
    "modernbert-large",
    "gpt2-xl",
)
#: With 16 bits. The state of all that is ours has to fit: 9 steps of 8 to 12 bytes per parameter.
_ALL_16_BITS = ("bert-large", "bert-base", "10000x1000", "20x16M", "modernbert-large")
_FAMILIES = {"adam": contenders, "lamb": lamb_contenders}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument(
        "--model", choices=(*MODELS, "all"), nargs="+", default=["bert-base"], help="one or more"
    )
    parser.add_argument(
        "--optimizer", choices=tuple(_FAMILIES), default="adam", help="adam: BertAdam and AdamW"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--clip", choices=(*CLIPS, "all"), default="all")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--rounds", type=int, default=20, help="timed calls of each contender that is not slow"
    )
    parser.add_argument("--out", type=Path, help="folder for the CSVs and the PNGs")
    parser.add_argument("--commit", help="for the CSV, where the sources are not a git checkout")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error("--rounds has to be at least 1")
    if args.optimizer == "lamb" and args.dtype != "fp32":
        parser.error("--optimizer lamb is for --dtype fp32")
    if args.optimizer == "lamb" and args.clip == "per_tensor":
        parser.error("--optimizer lamb clips by the norm over all, or not: --clip global or none")
    return args


def report(rows: Sequence[Row], circumstances: Circumstances, out: Path | None) -> None:
    """Print the table of one model; write its CSV and figure."""
    first = rows[0]
    on_gpu = circumstances.device == "cuda"
    size = f"{first.n_tensors} tensors, {first.n_params:,} parameters"
    with_lamb = ", LAMB" if first.optimizer == "lamb" else ""
    print(f"\n{first.model}: {size}, {first.dtype}{with_lamb}")
    print(table(rows, on_gpu=on_gpu))
    copy_gbps = next((row.copy_gbps for row in rows if row.copy_gbps), 0.0)
    print(f"copy bandwidth, read + written, same rounds: {copy_gbps:.1f} GB/s")
    n_batches = max(row.batch for row in rows)
    if n_batches > 1:
        print(
            f"{n_batches} batches, each in turns with ours (batch 0): memory did not hold the "
            "moments of all"
        )
    if out:
        # What there was first has no suffix.
        suffix = "" if first.dtype == "fp32" else f"_{first.dtype}"
        suffix += "" if first.optimizer == "adam" else f"_{first.optimizer}"
        stem = out / f"bench_step_{circumstances.device}_{first.model}{suffix}"
        write_csv(stem.with_suffix(".csv"), rows, circumstances)
        drawn = draw(stem.with_suffix(".png"), rows, circumstances)
        print(f"wrote {stem}.csv" + (" and .png" if drawn else "; no figure without matplotlib"))


def main(
    arguments: Sequence[str] | None = None,
    candidates: Callable[[str, str, str], list[Contender]] | None = None,
) -> int:
    """Run the benchmark; returns 1 if a contender was refused."""
    args = parse(arguments)
    candidates = candidates or _FAMILIES[args.optimizer]
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    circumstances = Circumstances.here(device, args.commit)
    print(
        f"{circumstances.hardware}, {circumstances.threads} threads, load average "
        f"{circumstances.load:.1f}, torch {circumstances.torch}, driver "
        f"{circumstances.driver or '-'}"
    )
    if args.dtype == "fp16":
        print(f"loss scaling of ours: {OUR_SCALER}")
    clips = CLIPS if args.clip == "all" else (args.clip,)
    chosen = [each for clip in clips for each in candidates(clip, device.type, args.dtype)]
    refused = refusals(chosen, device)
    every = _ALL if args.dtype == "fp32" else _ALL_16_BITS
    models = every if "all" in args.model else tuple(dict.fromkeys(args.model))
    all_rows: list[Row] = []
    host_rows: list[HostRow] = []
    is_first = (args.dtype, args.optimizer) == ("fp32", "adam")
    if device.type == "cuda" and HOST_MODEL in models and is_first:
        host_rows = host_times(device)  # before anything is profiled
        release(device)
    for model in models:
        rows = measure(chosen, model, device, args.rounds, refused)
        report(rows, circumstances, args.out)
        all_rows += rows
    if host_rows:
        host_rows = with_launches(host_rows, device)
        print(host_table(host_rows))
        if args.out:
            file = args.out / f"host_time_{device.type}_{HOST_MODEL}.csv"
            write_host_csv(file, host_rows, circumstances)
    results = Results(all_rows, host_rows)
    print("", *verdicts(device.type, circumstances.threads, results), sep="\n")
    return int(any(row.note.startswith("REFUSED") for row in all_rows))


if __name__ == "__main__":
    sys.exit(main())
