"""Pretrain a BERT from random weights with masked language modelling.

    python bench/pretrain_bert.py                        the defaults of this machine
    python bench/pretrain_bert.py --corpus a.txt b.txt   your text, blank lines between documents
    python bench/pretrain_bert.py --accumulate 8         eight batches per step
    python bench/pretrain_bert.py --phase2-steps 100     then sequences of four times the length
    python bench/pretrain_bert.py --compare reference    against a plain PyTorch BertAdam
    python bench/pretrain_bert.py --compare storage      bf16, three ways, against fp32
    python bench/pretrain_bert.py --compare normalization    NVLAMB with and without it
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
#: How the messages begin of those who explain what to do; other errors end in a traceback.
EXPLAINED = (
    *("pretrain_bert", "corpus", "vocabulary", "bertadam"),
    *("BertAdam", "AdamW", "LAMB", "LARS"),
)
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


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    require_packages()
    import torch
    from pretrain_options import parser

    options = parser(__doc__ or "").parse_args(arguments)

    # A profile measures what users run, and kernels that are deterministic can be slower.
    torch.use_deterministic_algorithms(not options.profile, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, hides nothing here
    try:
        return launch(options)
    except (ValueError, ImportError, RuntimeError) as error:
        if str(error).startswith(EXPLAINED):
            print(error, file=sys.stderr)
            return 2
        raise


def launch(options: argparse.Namespace) -> int:
    import pretraining
    from pretrain_options import changed
    from settings import Settings

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
    if options.compare != "normalization" and changed(options, ("adam_lr",)):
        raise ValueError("pretrain_bert: --adam-lr: only with --compare normalization")
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
    if options.compare != "reference" and changed(options, ("reference_runs",)):
        raise ValueError("pretrain_bert: --reference-runs: only with --compare reference")
    return launch_comparison(options, given)


def launch_comparison(options: argparse.Namespace, given: dict[str, Any]) -> int:
    import comparison
    import normalization_comparison
    import storage_comparison
    from settings import complete

    text = (options.corpus, options.out)
    if options.compare == "storage":
        return storage_comparison.compare(given, *text)
    if options.compare == "normalization":
        return normalization_comparison.compare(given, *text, options.adam_lr)
    return comparison.compare(complete(given), *text, options.reference_runs)


def kind_of_training(options: argparse.Namespace) -> Any:
    from graphed_training import GraphedTraining
    from training import Training

    return GraphedTraining if options.cuda_graph else Training


def launch_profile(options: argparse.Namespace, given: dict[str, Any]) -> int:
    import profile_iteration
    from pretrain_options import changed
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


if __name__ == "__main__":
    sys.exit(main())
