"""Pretrain a BERT from random weights with masked language modelling.

    python bench/pretrain_bert.py                        the defaults of this machine
    python bench/pretrain_bert.py --corpus a.txt b.txt   your text, blank lines between documents
    python bench/pretrain_bert.py --compare reference    against a plain PyTorch BertAdam
    python bench/pretrain_bert.py --compare storage      bf16, three ways, against fp32
    python bench/pretrain_bert.py --profile              the optimizers' share of an iteration

Without --corpus the text is the English that this Python carries; nothing is downloaded. Written
to --out: log.jsonl, losses.png, and the vocabulary in a cache. --profile needs no text; it writes
profile_DEVICE_bert-MODEL.csv and .png, and its defaults are BERT-large, vocabulary 30522, sequence
128, dropout 0.1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Before torch and transformers are imported: cuBLAS's condition for repeatable results, and no
# attempt to reach a network.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

ROOT = Path(__file__).resolve().parents[1]
PROFILE_ONLY = ("profile_batches", "commit")
USED_BY_PROFILE = {
    *("profile", *PROFILE_ONLY, "out"),
    *("size", "vocab_size", "seq_len", "dropout", "device", "dtype", "autocast"),
    *("master_weights", "seed"),
}
NEEDED = ("torch", "numpy", "transformers", "tokenizers", "matplotlib", "tqdm")


def require_packages() -> None:
    """Name everything that is missing at once, with the command that installs it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"pretrain_bert: not installed: {', '.join(missing)}; install with:"
            f" {sys.executable} -m pip install {' '.join(missing)}\n"
            "(`make pretrain` sets up an environment with everything)"
        )
    if importlib.util.find_spec("bertadam_cuda") is None:
        sys.path.append(str(ROOT))  # a build in the source tree needs no installation


def parser() -> argparse.ArgumentParser:
    """Options; a setting that is None is filled from the checkpoint or the device's defaults."""
    from bert_model import SIZES
    from settings import CLIPS, OPTIMIZERS
    from storage import DTYPES, MASTERS

    from bertadam_cuda.schedules import SCHEDULES

    summary, _, details = (__doc__ or "").partition("\n\n")
    options = argparse.ArgumentParser(
        prog="pretrain_bert.py",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = options.add_argument_group("text and output")
    text.add_argument("--corpus", type=Path, nargs="+", default=[], metavar="FILE")
    text.add_argument("--out", type=Path, default=ROOT / "runs" / "pretrain", metavar="DIR")
    text.add_argument("--checkpoint", type=Path, metavar="FILE", help="save the run here")
    text.add_argument("--resume", type=Path, metavar="FILE", help="continue a saved run")
    text.add_argument(
        "--stop-after", type=int, metavar="STEP", help="stop early; --steps still sets the schedule"
    )
    text.add_argument(
        "--compare",
        choices=("reference", "storage"),
        help="train several times, plot the losses: our optimizer and the plain loop, or fp32 and"
        " bf16 with a remainder, with stochastic rounding and with neither",
    )
    text.add_argument(
        "--reference-runs",
        type=int,
        choices=(1, 2, 3),
        default=1,
        help="references whose norms are added up in different orders; from 2 on, exit 1 unless"
        " our losses are within twice their spread",
    )
    model = options.add_argument_group("model and data (default: fits the device)")
    sizes = ", ".join(f"{name} {size.n_layers}x{size.hidden}" for name, size in SIZES.items())
    model.add_argument(
        "--model", dest="size", choices=tuple(SIZES), help=f"layers x hidden width: {sizes}"
    )
    model.add_argument("--vocab-size", type=int)
    model.add_argument("--batch", type=int, help="sequences per step")
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
    rule = options.add_argument_group("optimizer")
    rule.add_argument("--optimizer", choices=OPTIMIZERS)
    rule.add_argument("--lr", type=float)
    rule.add_argument("--schedule", choices=tuple(SCHEDULES))
    rule.add_argument("--schedule-args", type=schedule_argument, nargs="+", metavar="KEY=NUMBER")
    rule.add_argument("--warmup", type=float, help="fraction of the steps, or -1 for none")
    rule.add_argument("--clip", choices=CLIPS)
    rule.add_argument("--max-grad-norm", type=float)
    rule.add_argument("--weight-decay", type=float)
    rule.add_argument(
        "--master-weights",
        choices=MASTERS["bf16"],
        help="what is behind parameters of 16 bits (default with bertadam: remainder for bf16, fp32"
        " for fp16)",
    )
    rule.add_argument(
        "--stochastic-rounding",
        action="store_true",
        default=None,
        help="bf16 without a master, rounded at random",
    )
    profile = options.add_argument_group("profile of an iteration, instead of a run")
    profile.add_argument(
        "--profile",
        action="store_true",
        help="measure the share of clip + optimizer in an iteration, with BertAdam, torch and apex",
    )
    profile.add_argument(
        "--profile-batches", type=int, nargs="+", metavar="N", help="sequences per iteration"
    )
    profile.add_argument("--commit", help="for the CSV, where the sources are not a git checkout")
    return options


def schedule_argument(text: str) -> tuple[str, float]:
    key, _, value = text.partition("=")
    try:
        return key, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected KEY=NUMBER") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    require_packages()
    options = parser().parse_args(arguments)
    import torch

    # A profile measures what users run, and kernels that are deterministic can be slower.
    torch.use_deterministic_algorithms(not options.profile, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, hides nothing here
    try:
        return launch(options)
    except (ValueError, ImportError, RuntimeError) as error:
        if str(error).startswith(("pretrain_bert", "corpus", "vocabulary", "BertAdam", "bertadam")):
            print(error, file=sys.stderr)
            return 2
        raise


def launch(options: argparse.Namespace) -> int:
    import comparison
    import pretraining
    import storage_comparison
    from settings import Settings, complete

    names = Settings.__dataclass_fields__
    given: dict[str, Any] = {key: value for key, value in vars(options).items() if key in names}
    if given["schedule_args"] is not None:
        given["schedule_args"] = dict(given["schedule_args"])
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"pretrain_bert: --out {options.out} is a file, expected a folder")
    if options.profile:
        return launch_profile(options, given)
    if unused := changed(options, PROFILE_ONLY):
        raise ValueError(f"pretrain_bert: {', '.join(unused)}: only with --profile")
    if options.compare is None:
        pretraining.pretrain(
            given,
            corpus_files=options.corpus,
            out=options.out,
            checkpoint=options.checkpoint,
            resume=options.resume,
            stop_after=options.stop_after,
            kind=kind_of_training(options),
        )
        return 0
    if options.cuda_graph:
        raise ValueError("pretrain_bert: --cuda-graph: not with --compare")
    pieces = (options.resume, options.checkpoint, options.stop_after)
    if any(value is not None for value in pieces):
        raise ValueError(
            "pretrain_bert: --compare runs from the start to the end; leave out --resume,"
            " --checkpoint and --stop-after"
        )
    if options.compare == "storage":
        if changed(options, ("reference_runs",)):
            raise ValueError("pretrain_bert: --reference-runs: only with --compare reference")
        return storage_comparison.compare(given, options.corpus, options.out)
    settings = complete(given)
    return comparison.compare(settings, options.corpus, options.out, options.reference_runs)


def kind_of_training(options: argparse.Namespace) -> Any:
    from graphed_training import GraphedTraining
    from training import Training

    return GraphedTraining if options.cuda_graph else Training


def launch_profile(options: argparse.Namespace, given: dict[str, Any]) -> int:
    import profile_iteration
    from settings import complete

    if unused := changed(options, vars(options).keys() - USED_BY_PROFILE):
        raise ValueError(
            "pretrain_bert: --profile measures fixed optimizers on random tokens, batches by"
            f" --profile-batches; leave out {', '.join(unused)}"
        )
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = complete({**profile_iteration.DEFAULTS, **chosen})
    batches = options.profile_batches or profile_iteration.BATCHES
    return profile_iteration.profile(settings, batches, options.out, options.commit)


def changed(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Those of the options that were given, as they are written on the command line."""
    from settings import option

    plain = parser().parse_args([])
    return [option(n) for n in sorted(names) if getattr(options, n) != getattr(plain, n)]


if __name__ == "__main__":
    sys.exit(main())
