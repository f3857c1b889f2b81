"""A pretraining run whose iterations are replays of one CUDA graph: forward, backward and step.

The graph reads its batch from the same memory every time. How many tokens a batch hides differs,
and the graph's shapes do not: the list of them is filled up with places whose label says that
nothing is predicted there, which leaves the mean loss as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from bert_model import masked_loss
from masking import MASKED_FRACTION, MaskedBatch
from settings import Settings
from training import Training
from vocabulary import EncodedCorpus

from bertadam_cuda.adam import FusedOptimizer

#: Iterations before the capture: the optimizer wants one, cuBLAS and autograd are warm after three.
N_WARM_UP = 3
#: What cross_entropy leaves out.
NOT_PREDICTED = -100


class StaticBatch:
    """A batch whose tensors stay where they are."""

    def __init__(self, n_sequences: int, seq_len: int, device: torch.device) -> None:
        n_tokens = n_sequences * seq_len
        capacity = most_hidden(n_tokens)
        whole = {"dtype": torch.int64, "device": device}
        self.batch = MaskedBatch(
            torch.zeros(n_sequences, seq_len, **whole),
            torch.zeros(capacity, **whole),
            torch.full((capacity,), NOT_PREDICTED, **whole),
        )

    def fill(self, batch: MaskedBatch) -> None:
        """Copy a batch here; the host does not wait for a GPU."""
        padding = self.batch.labels.numel() - batch.labels.numel()
        if padding < 0:
            raise RuntimeError(
                f"pretrain_bert: a batch hides {batch.labels.numel()} tokens, and the graph has"
                f" room for {self.batch.labels.numel()}; leave out --cuda-graph"
            )
        pad = torch.nn.functional.pad
        padded = MaskedBatch(
            batch.input_ids,
            pad(batch.positions, (0, padding)),
            pad(batch.labels, (0, padding), value=NOT_PREDICTED),
        ).to(self.batch.input_ids.device)
        self.batch.input_ids.copy_(padded.input_ids)
        self.batch.positions.copy_(padded.positions)
        self.batch.labels.copy_(padded.labels)


def most_hidden(n_tokens: int) -> int:
    """How many tokens of a batch are hidden at most: the mean and eight standard deviations."""
    deviation = math.sqrt(n_tokens * MASKED_FRACTION * (1 - MASKED_FRACTION))
    return min(n_tokens, math.ceil(n_tokens * MASKED_FRACTION + 8 * deviation))


class GraphedTraining(Training):
    """A run as `Training` has it; a checkpoint of either continues as the other.

    It has one phase, whose lengths and schedule the graph is made for, and a batch per update.
    """

    def __init__(self, settings: Settings, texts: Sequence[EncodedCorpus]) -> None:
        if settings.accumulate > 1 or settings.phase2_steps:
            raise ValueError(
                "pretrain_bert: --cuda-graph is for one batch per step and one phase; leave out"
                " --accumulate and --phase2-steps"
            )
        if not settings.device.startswith("cuda"):
            raise ValueError(f"pretrain_bert: --cuda-graph needs a GPU; found {settings.device}")
        super().__init__(settings, texts)
        make_capturable(self.stepper.optimizer, self.device, settings.optimizer)
        self._static = StaticBatch(settings.batch, settings.seq_len, self.device)
        self._loss = torch.zeros((), device=self.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._n_warm = 0

    def advance(self) -> None:
        """Do one update. The host does not wait for a GPU."""
        self._static.fill(self._batches[0][self.step])
        if self._n_warm < N_WARM_UP:
            self._warm_up()
        else:
            if self._graph is None:
                self._graph = self._captured()
            self._graph.replay()
        self.losses[self.step] = self._loss
        self.step += 1

    def _iterate(self) -> None:
        self.stepper.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = masked_loss(self.model, self._static.batch)
        self._loss.copy_(loss.detach())
        self.stepper.backward(loss)
        self.stepper.step()

    def _warm_up(self) -> None:
        """Iterate beside the default stream, which no capture may depend on."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self._iterate()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        self._n_warm += 1

    def _captured(self) -> torch.cuda.CUDAGraph:
        self.stepper.optimizer.zero_grad(set_to_none=True)  # gradients get memory of the graph
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph):
            self._iterate()
        return graph


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device, name: str) -> None:
    """Set capturable, and move the lr to the device, of an optimizer that has made no step."""
    if not isinstance(optimizer, FusedOptimizer):
        raise ValueError(
            f"pretrain_bert: --cuda-graph is for the optimizers of this package, not for {name}"
        )
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64, device=device)
