"""The share of a training iteration that clipping and the optimizer take, for several optimizers.

An iteration is what users run: forget the gradients, forward, backward, clip and update. The model
is a BERT with random weights, the batches are masked random tokens that are already on the device.
The share is measured in two ways: on the device's timeline, from the end of backward to the end of
the update; and as a difference, the iteration with the optimizer less the one without. They differ
where work of the host and of the device hide each other.

The optimizers and their clipping are those of bench_step.py, which checks each before it is timed.
They train the same weights in turns, without a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import transformers
from bench_report import Circumstances
from bert_model import MAX_POSITIONS, SIZES, masked_loss, random_bert
from contender_steps import Step
from contenders import APEX, FUSED, OURS, WEIGHT_DECAY, Contender, contenders
from iteration_timing import GpuTimeline, HostTimeline, Rounds, Timeline, timed_runs
from masking import MaskedBatch, masked_batch
from measurement import named_failure, refusals
from profile_report import Row, Subject, draw, table, write_csv
from settings import Settings
from storage import DTYPES
from vocabulary import CLS_ID, MIN_VOCAB_SIZE, SEP_ID, SPECIAL_TOKENS

from bertadam_cuda.param_groups import param_groups_weight_decay

#: The first phase of BERT-large: Devlin et al. 2019, appendix A.2.
DEFAULTS = {"size": "large", "vocab_size": 30522, "seq_len": 128, "dropout": 0.1}
BATCHES = (4, 8, 16, 32)
#: Iterations between two waits.
N_ITERATIONS = 6
#: Runs of each optimizer per batch. With a slow host an iteration takes 0.15 s (BERT-large, torch's
#: clipping per tensor launches thousands of kernels), so that 4 rounds of 6 optimizers are 22 s.
ROUNDS = Rounds(least=3, most=7, seconds=22.0)
#: So small that the weights, of standard deviation 0.02, stay about what they were: all iterations
#: do the same work, and none diverges.
LR = 1e-6
NO_OPTIMIZER = "no optimizer"
PROFILED = (
    (OURS, "per_tensor"),
    (FUSED, "per_tensor"),
    (OURS, "global"),
    (FUSED, "global"),
    (APEX, "global"),
)


class Workload:
    """Everything of an iteration but the optimizer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        with self.device:  # without a detour over the host
            model = random_bert(SIZES[settings.size], settings.vocab_size, settings.dropout)
        self.model = model.to(self.device, DTYPES[settings.dtype]).train()
        self.params = list(self.model.parameters())
        self.loss = torch.zeros(())

    @property
    def n_parameters(self) -> int:
        return sum(param.numel() for param in self.params)

    def forward_backward(self, batch: MaskedBatch) -> None:
        for param in self.params:
            param.grad = None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.autocast):
            loss = masked_loss(self.model, batch)
        loss.backward()
        self.loss = loss.detach()

    def random_batches(self, batch: int) -> list[MaskedBatch]:
        """One batch per iteration of a run, on the device; the same for every run."""
        vocab_size, shape = self.settings.vocab_size, (batch, self.settings.seq_len)
        generator = np.random.default_rng((self.settings.seed, batch))
        batches = []
        for _ in range(N_ITERATIONS):
            blocks = generator.integers(len(SPECIAL_TOKENS), vocab_size, shape)
            blocks[:, 0], blocks[:, -1] = CLS_ID, SEP_ID
            batches.append(masked_batch(blocks, vocab_size, generator).to(self.device))
        return batches


def candidates(dtype: str = "fp32", master: str = "none") -> list[Contender]:
    """The optimizers to compare: the same on every device, so that a missing one is named.

    master: of ours; the others are as they come.
    """
    clips = ("per_tensor", "global")
    every = [each for clip in clips for each in contenders(clip, "cuda", dtype)]
    by_key = {
        (each.name, each.clip): each
        for each in every
        if each.name != OURS or each.storage.master == master
    }
    return [by_key[key] for key in PROFILED]


class Profile:
    """The optimizers of one model, which are measured batch by batch."""

    def __init__(self, workload: Workload, compared: Sequence[Contender]) -> None:
        self.workload = workload
        self._compared = compared
        self._steps: dict[str, Step] = {NO_OPTIMIZER: lambda: None}
        self._notes = refusals(compared, workload.device)
        groups = param_groups_weight_decay(workload.model, WEIGHT_DECAY, lr=LR)
        for contender in compared:
            if contender.label not in self._notes:
                with named_failure(contender, self._notes):
                    step = contender.build([dict(group) for group in groups])
                    self._steps[contender.label] = step

    @property
    def refused(self) -> bool:
        return any(note.startswith("REFUSED") for note in self._notes.values())

    def measure(self, batch: int) -> list[Row]:
        """Time every optimizer, and none, at this batch."""
        try:
            return self._measure(batch)
        except torch.OutOfMemoryError:
            note = f"missing: the GPU's memory is too small for batch {batch}"
        self.workload.model.zero_grad()
        torch.cuda.empty_cache()
        return [Row(batch, NO_OPTIMIZER, "none", note=note)]

    def _measure(self, batch: int) -> list[Row]:
        workload = self.workload
        on_gpu = workload.device.type == "cuda"
        timeline: Timeline = GpuTimeline(workload.device) if on_gpu else HostTimeline()
        batches = workload.random_batches(batch)
        calls = [partial(workload.forward_backward, each) for each in batches]
        runs = timed_runs(calls, self._steps, timeline, ROUNDS)
        if not math.isfinite(float(workload.loss)):
            raise RuntimeError(
                f"pretrain_bert: --profile: the loss became {float(workload.loss)}, so what was"
                " timed is no training; try another --seed or --dtype fp32"
            )
        without, seq_len = runs[NO_OPTIMIZER], workload.settings.seq_len
        rows = [Row(batch, NO_OPTIMIZER, "none").timed(without, without, seq_len)]
        for contender in self._compared:
            row, key = Row(batch, contender.name, contender.clip), contender.label
            if key in runs:
                rows.append(row.timed(runs[key], without, seq_len))
            else:
                rows.append(replace(row, note=self._notes[key]))
        return rows


def profile(
    settings: Settings, batches: Sequence[int], out: Path, commit: str | None = None
) -> int:
    """Measure; write CSV and figure to `out`. Returns 1 if an optimizer computes something else.

    Args:
        settings: of these the model, its input, device, dtype and seed matter.
        batches: sequences per iteration, one measurement for each.
        commit: for the CSV, where the sources are not a git checkout.
    """
    check_settings(settings, batches)
    workload = Workload(settings)
    circumstances = Circumstances.here(workload.device, commit)
    subject = Subject(
        settings.size,
        workload.n_parameters,
        settings.stored_as,
        settings.seq_len,
        settings.dropout,
        transformers.__version__,
        N_ITERATIONS,
    )
    print(
        f"BERT-{subject.model}, {subject.n_params:,} parameters, {subject.dtype}, sequence"
        f" {subject.seq_len}, dropout {subject.dropout}\n{circumstances.hardware},"
        f" {circumstances.threads} threads, load average {circumstances.load:.1f}, torch"
        f" {circumstances.torch}, driver {circumstances.driver or '-'}\n{ROUNDS.least} to"
        f" {ROUNDS.most} rounds of {N_ITERATIONS} iterations, with torch's usual algorithms"
        " (training uses deterministic ones)"
    )
    compared = Profile(workload, candidates(settings.dtype, settings.master_weights))
    suffix = "" if settings.dtype == "fp32" else f"_{settings.dtype}"
    stem = out / f"profile_{workload.device.type}_bert-{settings.size}{suffix}"
    rows: list[Row] = []
    for batch in batches:
        start = perf_counter()
        rows += compared.measure(batch)
        write_csv(stem.with_suffix(".csv"), rows, subject, circumstances)
        print(f"batch {batch}: measured in {perf_counter() - start:.1f} s", flush=True)
    print(f"\n{table(rows)}")
    drawn = draw(stem.with_suffix(".png"), rows, subject, circumstances)
    print(f"wrote {stem}.csv" + (" and .png" if drawn else "; there is nothing to draw"))
    return int(compared.refused)


def check_settings(settings: Settings, batches: Sequence[int]) -> None:
    """Refuse what would fail later or would be measured twice."""
    if min(batches) < 1 or len(set(batches)) < len(batches):
        raise ValueError(
            f"pretrain_bert: --profile-batches is {' '.join(map(str, batches))}, expected different"
            " numbers of at least 1"
        )
    if settings.dtype == "fp16":
        raise ValueError(
            "pretrain_bert: --profile is for --dtype fp32 and bf16; fp16 needs a loss scale, which"
            " bench_step.py times"
        )
    if settings.seq_len > MAX_POSITIONS:
        raise ValueError(
            f"pretrain_bert: --seq-len is {settings.seq_len}, expected at most {MAX_POSITIONS}"
        )
    if settings.vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"pretrain_bert: --vocab-size is {settings.vocab_size}, expected at least"
            f" {MIN_VOCAB_SIZE}"
        )
