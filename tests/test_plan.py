"""The work list: what it holds, in which order, for which sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertadam_cuda import _ext

NORM, UPDATE = 1, 2
CHUNK = 8192
LARGEST_CHUNK = 65_536
_C = _ext.load()


def plan(n_elements: list[int], needs_norm: list[bool] | bool = True, **options: Any) -> Any:
    flags = [needs_norm] * len(n_elements) if isinstance(needs_norm, bool) else needs_norm
    settings = {"chunk_elements": CHUNK, "wait_for_all": False, "lookahead_chunks": 0, **options}
    return _C.plan(n_elements, flags, **settings)


def check(
    n_elements: list[int],
    needs_norm: list[bool],
    made: Any,
    wait_for_all: bool,
    chunk_elements: int = CHUNK,
) -> None:
    """Raise AssertionError unless `made` covers every chunk once, and waits only for the past."""
    items = made["items"]
    tensor, chunk, kinds = items.unbind(1)
    n_chunks = torch.tensor([max(1, -(-n // chunk_elements)) for n in n_elements])
    assert torch.equal(made["tensors"][:, 2], n_chunks)
    normed = torch.tensor([needs or wait_for_all for needs in needs_norm])
    for kind, expected in ((NORM, n_chunks * normed), (UPDATE, n_chunks)):
        having = (kinds & kind) != 0
        assert torch.equal(torch.bincount(tensor[having], minlength=len(n_elements)), expected)
        pairs = torch.stack([tensor[having], chunk[having]])
        assert torch.unique(pairs, dim=1).shape == pairs.shape, "a chunk is listed twice"
    assert bool((chunk < n_chunks[tensor]).all())
    position = torch.arange(len(items))
    is_norm, is_update = (kinds & NORM) != 0, (kinds & UPDATE) != 0
    if wait_for_all:
        assert position[is_norm].max() < position[is_update].min()
        return
    last_norm = torch.full((len(n_elements),), -1)
    last_norm.scatter_reduce_(0, tensor[is_norm], position[is_norm], "amax")
    first_update = torch.full((len(n_elements),), len(items))
    first_update.scatter_reduce_(0, tensor[is_update], position[is_update], "amin")
    fused = (n_chunks == 1) & normed
    assert bool(((last_norm < first_update) | fused).all()), "an update waits for a later norm"
    assert torch.equal(last_norm[fused], first_update[fused])


SIZES = {
    "one": [1],
    "empty only": [0],
    "empty first": [0, 20_000, 5],
    "empty last": [20_000, 5, 0],
    "empty between": [20_000, 0, 0, 5],
    "chunk edges": [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1],
    "beyond 2^31": [2**31 + 17, 3, 2**32 + 3],
    "beyond 2^33": [2**33 + 1],
}


@pytest.mark.parametrize("wait_for_all", [False, True])
@pytest.mark.parametrize("lookahead", [0, 7, 10**6])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_chunk_is_listed_once_and_waits_for_the_past(
    sizes: list[int], lookahead: int, wait_for_all: bool
) -> None:
    for needs_norm in ([True] * len(sizes), [i % 2 == 0 for i in range(len(sizes))]):
        chunk = CHUNK if sum(sizes) < 2**31 else LARGEST_CHUNK
        options = {"chunk_elements": chunk, "lookahead_chunks": lookahead}
        made = plan(sizes, needs_norm, wait_for_all=wait_for_all, **options)
        check(sizes, needs_norm, made, wait_for_all, chunk)


def test_a_hundred_thousand_tensors() -> None:
    torch.manual_seed(1)
    sizes = torch.randint(0, 3 * CHUNK, (100_000,)).tolist()
    needs_norm = (torch.rand(100_000) < 0.5).tolist()
    check(sizes, needs_norm, plan(sizes, needs_norm, lookahead_chunks=100), False)


@pytest.mark.parametrize("damage", ["lost chunk", "chunk twice", "update first"])
def test_the_check_notices_a_wrong_list(damage: str) -> None:
    sizes = [3 * CHUNK, 2 * CHUNK]
    made = plan(sizes)
    items = made["items"]
    if damage == "lost chunk":
        made["items"] = items[:-1]
    elif damage == "chunk twice":
        items[-1] = items[-2]
    else:
        made["items"] = items.flip(0)
    with pytest.raises(AssertionError):
        check(sizes, [True, True], made, False)


def test_no_norm_is_listed_where_none_is_needed() -> None:
    kinds = plan([3 * CHUNK, 5], needs_norm=False)["items"][:, 2]
    assert kinds.tolist() == [UPDATE] * 4


def test_norms_run_ahead_by_the_lookahead_and_no_further() -> None:
    sizes = [CHUNK * 4] * 50
    for lookahead in (0, 4, 12):
        ahead = most = 0
        for kind in plan(sizes, lookahead_chunks=lookahead)["items"][:, 2].tolist():
            ahead += 1 if kind == NORM else -1
            most = max(most, ahead)
        assert most == lookahead + 4


def test_updates_start_with_the_gradients_summed_last() -> None:
    items = plan([4 * CHUNK])["items"]
    assert items[items[:, 2] == UPDATE][:, 1].tolist() == [3, 2, 1, 0]


def test_updates_without_norms_go_forwards() -> None:
    assert plan([4 * CHUNK], needs_norm=False)["items"][:, 1].tolist() == [0, 1, 2, 3]


def test_tree_nodes_of_tensors_do_not_overlap() -> None:
    sizes = [0, 1, 300 * CHUNK, 70_000 * CHUNK, 5]
    made = plan(sizes)
    first = made["tensors"][:, 1].tolist()
    # 300 chunks need 300 + 2 + 1 nodes, 70,000 need 70,000 + 274 + 2 + 1; five tensors 5 + 1.
    assert first == [0, 1, 2, 305, 305 + 70_277]
    assert made["n_nodes"] == 305 + 70_277 + 1 + 6
