"""How each contender's step is put together: optimizer, clipping and, for float16, loss scaling.

Each function here returns a builder: from parameter groups, and a loss scale where the gradients
have one, to a call that does one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from loss_scaling import OurScaler, TorchScaler, steady
from plain_bert_adam import PlainBertAdam
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bertadam_cuda import AdamW, BertAdam

Groups = list[dict[str, Any]]
Step = Callable[[], object]
#: Called with groups, and with the loss scale where the contender is `scaled`.
Build = Callable[..., Step]
Clip = Callable[[list[Tensor], float], object]

LR, BETAS, EPS, MAX_GRAD_NORM = 1e-3, (0.9, 0.999), 1e-6, 1.0


def ours(clip: str, master: str, scaled: bool) -> Build:
    """BertAdam; a scaler's check and division are inside its step where the scaler is ours."""

    def build(groups: Groups, loss_scale: float = 1.0) -> Step:
        optimizer = BertAdam(
            groups, **_bert_adam_settings(clip), master_weights=None if master == "none" else master
        )
        return _called(optimizer, None, _scaler(OurScaler, groups, loss_scale, scaled))

    return build


def our_adamw(clip: str) -> Build:
    settings = {"betas": BETAS, "eps": EPS, **_clip_settings(clip)}
    return lambda groups: AdamW(groups, lr=LR, **settings).step


def plain(clip: str) -> Build:
    return lambda groups: PlainBertAdam(groups, **_bert_adam_settings(clip)).step


def plain_with_masters(clip: str, scaled: bool) -> Build:
    """The plain loop on float32 copies of the parameters, which it copies back."""

    def build(groups: Groups, loss_scale: float = 1.0) -> Step:
        pairs, copies = [], []
        for group in groups:
            masters = [nn.Parameter(param.detach().float()) for param in group["params"]]
            pairs += list(zip(group["params"], masters, strict=True))
            copies.append({**group, "params": masters})
        optimizer = PlainBertAdam(copies, **_bert_adam_settings(clip))
        update = _called(optimizer, None, _scaler(TorchScaler, groups, loss_scale, scaled))

        @torch.no_grad()
        def step() -> None:
            for param, master in pairs:
                master.grad = param.grad.float()
            update()
            for param, master in pairs:
                param.copy_(master)

        return step

    return build


def torch_adamw(clip: str, scaled: bool, **implementation: bool) -> Build:
    def build(groups: Groups, loss_scale: float = 1.0) -> Step:
        optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, **implementation)
        scaler = _scaler(TorchScaler, groups, loss_scale, scaled)
        return _called(optimizer, _clipping(clip, groups), scaler)

    return build


def apex(clip: str, clip_global: Clip | None = None) -> Build:
    def build(groups: Groups) -> Step:
        from apex.contrib.clip_grad import clip_grad_norm_ as apex_clip
        from apex.optimizers import FusedAdam

        optimizer = FusedAdam(groups, lr=LR, betas=BETAS, eps=EPS)
        # Its l2norm and scale kernels; it has nothing for one tensor at a time.
        return _called(optimizer, _clipping(clip, groups, clip_global or apex_clip))

    return build


def apex_norm(params: list[Tensor], max_norm: float) -> None:
    """Clip as apex does, without its wait: apex hands the coefficient to its scale kernel from the
    host, so nothing can be launched until the norm is there. torch's scale takes it on the device.
    """
    grads = [param.grad for param in params]
    _scale_in_place(grads, max_norm / (_apex_l2norm(grads) + 1e-6))


def _apex_l2norm(grads: list[Tensor]) -> Tensor:
    """The norm over all gradients, in float32."""
    import amp_C
    from apex.multi_tensor_apply import multi_tensor_applier

    unused_flag = torch.zeros(1, dtype=torch.int32, device=grads[0].device)
    norm, _ = multi_tensor_applier(amp_C.multi_tensor_l2norm, unused_flag, [grads], False)
    return norm[0]


def _scale_in_place(grads: list[Tensor], coefficient: Tensor) -> None:
    torch._foreach_mul_(grads, coefficient.clamp(max=1.0).to(grads[0].dtype))


class _KnownOverflow:
    """What apex's step asks a scaler for, where the norm has already told of an overflow."""

    def __init__(self, scale: Tensor, found_inf: Tensor) -> None:
        self._scale, self._found_inf = scale, found_inf

    def _check_inf_per_device(self, optimizer: object) -> dict[torch.device, Tensor]:
        return {self._scale.device: self._found_inf}

    def _get_scale_async(self) -> Tensor:
        return self._scale


def apex_with_masters(clip: str) -> Build:
    """FusedAdam(capturable, master_weights), which divides by the loss scale in its step.

    Clipped by its own l2norm, which tells of an overflow, too, and a scale on the device. Without
    clipping a scaler checks the gradients.
    """

    def build(groups: Groups, loss_scale: float = 1.0) -> Step:
        from apex.optimizers import FusedAdam

        settings = {"capturable": True, "master_weights": True}
        optimizer = FusedAdam(groups, lr=LR, betas=BETAS, eps=EPS, **settings)
        device = groups[0]["params"][0].device
        scaler = steady(TorchScaler, loss_scale, device)
        params = [param for group in groups for param in group["params"]]
        scale = torch.full((1,), loss_scale, device=device)

        def clipped() -> None:
            grads = [param.grad for param in params]
            norm = _apex_l2norm(grads) / scale
            _scale_in_place(grads, MAX_GRAD_NORM / (norm[0] + 1e-6))
            optimizer.step(grad_scaler=_KnownOverflow(scale, (~norm.isfinite()).float()))

        def unclipped() -> None:
            optimizer.step(grad_scaler=scaler)
            scaler.update()

        return unclipped if clip == "none" else clipped

    return build


def deepspeed_fused(clip: str, scaled: bool) -> Build:
    def build(groups: Groups, loss_scale: float = 1.0) -> Step:
        from deepspeed.ops.adam import FusedAdam

        optimizer = FusedAdam(groups, lr=LR, betas=BETAS, eps=EPS)
        scaler = _scaler(TorchScaler, groups, loss_scale, scaled)
        return _called(optimizer, _clipping(clip, groups), scaler)

    return build


def deepspeed_cpu(clip: str) -> Build:
    def build(groups: Groups) -> Step:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer = DeepSpeedCPUAdam(groups, lr=LR, betas=BETAS, eps=EPS, adamw_mode=True)
        return _called(optimizer, _clipping(clip, groups))

    return build


def _bert_adam_settings(clip: str) -> dict[str, Any]:
    return {
        "lr": LR,
        "b1": BETAS[0],
        "b2": BETAS[1],
        "e": EPS,
        **_clip_settings(clip),
    }


def _clip_settings(clip: str) -> dict[str, Any]:
    return {
        "max_grad_norm": 0.0 if clip == "none" else MAX_GRAD_NORM,
        "clip": "global" if clip == "global" else "per_tensor",
    }


def _scaler(kind: Any, groups: Groups, loss_scale: float, scaled: bool) -> Any:
    return steady(kind, loss_scale, groups[0]["params"][0].device) if scaled else None


def _clipping(clip: str, groups: Groups, clip_global: Clip = clip_grad_norm_) -> Step | None:
    """The clipping that goes before a step that has none of its own."""
    params = [param for group in groups for param in group["params"]]

    def per_tensor() -> None:
        for param in params:
            clip_grad_norm_(param, MAX_GRAD_NORM)

    def over_all() -> None:
        clip_global(params, MAX_GRAD_NORM)

    return {"none": None, "per_tensor": per_tensor, "global": over_all}[clip]


def _called(optimizer: Any, clipping: Step | None, scaler: Any = None) -> Step:
    """Return a call that does what a training loop does between backward and the next forward."""
    if clipping is None and scaler is None:
        return optimizer.step  # type: ignore[no-any-return]

    def clipped() -> None:
        clipping()
        optimizer.step()

    def scaled() -> None:
        if clipping is not None:
            scaler.unscale_(optimizer)
            clipping()
        scaler.step(optimizer)
        scaler.update()

    return clipped if scaler is None else scaled
