"""What low precision refuses: it names the tensor, and leaves everything as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bert_cases import assert_step_is_refused, bits
from mixed_cases import MODES, parameter, set_grads, train

from bertadam_cuda import BertAdam


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64])
def test_other_gradients_are_refused_by_name(dtype: torch.dtype) -> None:
    param = parameter(torch.randn(4), torch.bfloat16)
    opt = BertAdam([("w", param)], lr=0.1)
    param.grad = torch.ones(4, dtype=torch.float32)
    assert param.grad is not None
    param.grad.data = torch.ones(4, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert_step_is_refused(opt, f"'w'.*{name}.*float32, bfloat16, float16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"master_weights": "remainder"}, "'w'.*float16.*'remainder'.*bfloat16"),
        ({"stochastic_rounding": True}, "'w'.*float16.*stochastic_rounding.*bfloat16"),
    ],
)
def test_what_float16_cannot_do_is_refused_by_name(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BertAdam([("w", parameter(torch.ones(2), torch.float16))], lr=0.1, **settings)


def test_stochastic_rounding_beside_masters_is_refused() -> None:
    for master_weights in ("fp32", "remainder"):
        with pytest.raises(ValueError, match=rf"stochastic_rounding.*'{master_weights}'.*one of"):
            BertAdam(
                [parameter(torch.ones(2), torch.bfloat16)],
                lr=0.1,
                master_weights=master_weights,
                stochastic_rounding=True,
            )


def test_masters_that_share_memory_are_refused_by_name() -> None:
    params = [parameter(torch.randn(4), torch.bfloat16) for _ in range(2)]
    named = [("left", params[0]), ("right", params[1])]
    opt = BertAdam(named, lr=0.1, master_weights="fp32")
    train(opt, 0, 1)
    opt.state[params[1]]["master_param"] = opt.state[params[0]]["master_param"]
    set_grads(params, 1)
    assert_step_is_refused(opt, r"(?s)BertAdam.*master.*(left.*right|right.*left)")


@pytest.mark.parametrize(
    ("mode", "key", "bad", "message"),
    [
        ("fp32", "master_param", torch.zeros(4, dtype=torch.bfloat16), "bfloat16.*float32"),
        ("fp32", "master_param", torch.zeros(5), r"shape.*\[5\]"),
        ("fp32", "master_param", [1.0], "is a list"),
        ("remainder", "param_remainder", torch.zeros(4), "float32.*int16"),
        ("remainder", "param_remainder", None, "is a NoneType"),
    ],
)
def test_bad_masters_are_refused_by_name(mode: str, key: str, bad: Any, message: str) -> None:
    param = parameter(torch.randn(4), torch.bfloat16)
    opt = BertAdam([("w", param)], lr=0.1, **MODES[mode])
    train(opt, 0, 1)
    good = opt.state[param][key]
    opt.state[param][key] = bad
    kept = bits(param), bits(good)
    set_grads([param], 1)
    with pytest.raises((TypeError, ValueError), match=rf"'w'.*{key}.*{message}"):
        opt.step()
    assert (bits(param), bits(good)) == kept
    opt.state[param][key] = good
    opt.step()
