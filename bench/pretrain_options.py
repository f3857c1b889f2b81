"""Command line of pretrain_bert.py: the options of a run, in groups.

Options that are settings have the settings' names. What this imports has to be there:
`require_packages` looks for it before.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from bert_model import SIZES
from settings import CLIPS, OPTIMIZERS, option
from storage import DTYPES, MASTERS

from bertadam_cuda.schedules import SCHEDULES

ROOT = Path(__file__).resolve().parents[1]
#: `--compare` by name: what is compared.
COMPARISONS = {
    "reference": "our optimizer and the plain loop",
    "storage": "fp32, and bf16 with a remainder, with stochastic rounding and with neither",
    "normalization": "NVLAMB, NVLAMB without normalized gradients, and BertAdam, on large batches",
}


def parser(description: str) -> argparse.ArgumentParser:
    """Options; a setting that is None is filled from the checkpoint or the device's defaults."""
    summary, _, details = description.partition("\n\n")
    options = argparse.ArgumentParser(
        prog="pretrain_bert.py",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_text(options.add_argument_group("text and output"))
    add_model(options.add_argument_group("model and data (default: fits the device)"))
    add_phases(options.add_argument_group("large batches and the second phase"))
    add_optimizer(options.add_argument_group("optimizer"))
    add_profile(options.add_argument_group("profile of an iteration, instead of a run"))
    return options


def add_text(text: argparse._ArgumentGroup) -> None:
    text.add_argument("--corpus", type=Path, nargs="+", default=[], metavar="FILE")
    text.add_argument("--out", type=Path, default=ROOT / "runs" / "pretrain", metavar="DIR")
    text.add_argument("--checkpoint", type=Path, metavar="FILE", help="save the run here")
    text.add_argument("--resume", type=Path, metavar="FILE", help="continue a saved run")
    text.add_argument(
        "--stop-after", type=int, metavar="STEP", help="stop early; --steps still sets the schedule"
    )
    text.add_argument(
        "--compare",
        choices=tuple(COMPARISONS),
        help="train several times, plot the losses. "
        + "; ".join(f"{name}: {what}" for name, what in COMPARISONS.items()),
    )
    text.add_argument(
        "--reference-runs",
        type=int,
        choices=(1, 2, 3),
        default=1,
        help="references whose norms are added up in different orders; from 2 on, exit 1 unless"
        " our losses are within twice their spread",
    )


def add_model(model: argparse._ArgumentGroup) -> None:
    sizes = ", ".join(f"{name} {size.n_layers}x{size.hidden}" for name, size in SIZES.items())
    model.add_argument(
        "--model", dest="size", choices=tuple(SIZES), help=f"layers x hidden width: {sizes}"
    )
    model.add_argument("--vocab-size", type=int)
    model.add_argument("--batch", type=int, help="sequences that are computed at once")
    model.add_argument("--seq-len", type=int, help="tokens per sequence")
    model.add_argument("--steps", type=int)
    model.add_argument("--dropout", type=float)
    model.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    model.add_argument(
        "--dtype", choices=tuple(DTYPES), help="of parameters, gradients and computation"
    )
    model.add_argument(
        "--autocast",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="fp32 parameters, bf16 computation (default on a GPU, unless --dtype is given)",
    )
    model.add_argument("--seed", type=int)
    model.add_argument("--eval-every", type=int, help="steps between held-out losses")
    model.add_argument(
        "--cuda-graph",
        action="store_true",
        help="capture an iteration in a CUDA graph, step included, and replay it (on a GPU)",
    )


def add_phases(more: argparse._ArgumentGroup) -> None:
    more.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="batches per step, whose losses are averaged; gradients are added in their own dtype",
    )
    more.add_argument(
        "--phase2-steps", type=int, metavar="N", help="steps on longer sequences after --steps"
    )
    more.add_argument("--phase2-seq-len", type=int, help="default: four times --seq-len")
    more.add_argument("--phase2-batch", type=int, help="default: as many tokens per step")
    more.add_argument("--phase2-lr", type=float, help="default: as --lr")
    more.add_argument("--phase2-warmup", type=float, help="default: as --warmup")


def add_optimizer(rule: argparse._ArgumentGroup) -> None:
    rule.add_argument("--optimizer", choices=OPTIMIZERS)
    rule.add_argument("--lr", type=float)
    rule.add_argument("--adam-lr", type=float, help="of BertAdam in --compare normalization")
    rule.add_argument("--schedule", choices=tuple(SCHEDULES))
    rule.add_argument("--schedule-args", type=schedule_argument, nargs="+", metavar="KEY=NUMBER")
    rule.add_argument("--warmup", type=float, help="fraction of the steps, or -1 for none")
    rule.add_argument("--clip", choices=CLIPS)
    rule.add_argument("--max-grad-norm", type=float, help="limit of the norm; 0 for none")
    rule.add_argument("--weight-decay", type=float)
    rule.add_argument(
        "--master-weights",
        choices=MASTERS["bf16"],
        help="what is behind parameters of 16 bits (default with ours: remainder for bf16, fp32"
        " for fp16)",
    )
    rule.add_argument(
        "--stochastic-rounding",
        action="store_true",
        default=None,
        help="bf16 without a master, rounded at random",
    )


def add_profile(profile: argparse._ArgumentGroup) -> None:
    profile.add_argument(
        "--profile",
        action="store_true",
        help="measure the share of clip + optimizer in an iteration, with BertAdam, torch and apex",
    )
    profile.add_argument(
        "--profile-batches", type=int, nargs="+", metavar="N", help="sequences per iteration"
    )
    profile.add_argument("--commit", help="for the CSV, where the sources are not a git checkout")


def schedule_argument(text: str) -> tuple[str, float]:
    key, _, value = text.partition("=")
    try:
        return key, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected KEY=NUMBER") from None


def changed(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Those of the options that were given, as they are written on the command line."""
    plain = parser("").parse_args([])
    return [option(n) for n in sorted(names) if getattr(options, n) != getattr(plain, n)]
