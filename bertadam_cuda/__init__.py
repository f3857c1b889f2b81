"""BertAdam, Adam, AdamW, LAMB and LARS for PyTorch: one CUDA launch per step, and a CPU backend.

The two compute the same bits. Importing the package does not load the compiled part; the first
optimizer that is constructed does. `python -m bertadam_cuda` prints what is installed and tests it.
"""

from . import amp
from ._version import __version__
from .adam import Adam, AdamW
from .bert_adam import BertAdam
from .lamb import LAMB
from .lars import LARS
from .param_groups import param_groups_layer_decay, param_groups_weight_decay, scale_lr
from .schedules import (
    SCHEDULES,
    warmup_constant,
    warmup_cosine,
    warmup_exp_decay_exp,
    warmup_exp_decay_poly,
    warmup_linear,
    warmup_linear_decay_exp,
)

__all__ = [
    "LAMB",
    "LARS",
    "SCHEDULES",
    "Adam",
    "AdamW",
    "BertAdam",
    "__version__",
    "amp",
    "param_groups_layer_decay",
    "param_groups_weight_decay",
    "scale_lr",
    "warmup_constant",
    "warmup_cosine",
    "warmup_exp_decay_exp",
    "warmup_exp_decay_poly",
    "warmup_linear",
    "warmup_linear_decay_exp",
]
