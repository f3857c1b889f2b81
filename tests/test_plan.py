"""The work list: what it holds, in which order, for which sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertadam_cuda import _ext

NORM, UPDATE, SURVEY = 1, 2, 4
PART = 1024
PER_DRAW = 4
CHUNK = PART * PER_DRAW
LARGEST_PART = 65_536
_C = _ext.load()


def plan(n_elements: list[int], needs_norm: list[bool] | bool = True, **options: Any) -> Any:
    flags = [needs_norm] * len(n_elements) if isinstance(needs_norm, bool) else needs_norm
    settings = {
        "part_elements": PART,
        "items_per_draw": PER_DRAW,
        "wait_for_all": False,
        "in_turn": False,
        "retained_draws": 0,
        **options,
    }
    return _C.plan(n_elements, flags, **settings)


def check(
    n_elements: list[int],
    needs_norm: list[bool],
    made: Any,
    wait_for_all: bool,
    part_elements: int = PART,
    per_draw: int = PER_DRAW,
) -> None:
    """Raise AssertionError unless `made` covers every part once, and waits only for the past."""
    items = made["items"]
    n_draws = len(items) // per_draw
    assert len(items) == n_draws * per_draw
    draw = torch.arange(n_draws).repeat_interleave(per_draw)
    real = items[:, 0] >= 0
    assert bool(real.view(n_draws, per_draw).any(1).all()), "a draw is empty"
    kinds_of_draw = items[:, 2].view(n_draws, per_draw)[:, :1].expand(-1, per_draw).reshape(-1)
    assert torch.equal(items[real, 2], kinds_of_draw[real]), "a draw does different things"
    tensor, part, kinds, whole = items[real].unbind(1)
    ends = (part + 1) * part_elements
    assert torch.equal(whole == 1, ends <= torch.tensor(n_elements)[tensor])
    draw = draw[real]
    chunk = part_elements * per_draw
    n_chunks = torch.tensor([max(1, -(-n // chunk)) for n in n_elements])
    assert torch.equal(made["tensors"][:, 2], n_chunks)
    n_parts = torch.tensor([max(1, -(-n // part_elements)) for n in n_elements])
    normed = torch.tensor([needs or wait_for_all for needs in needs_norm])
    for kind, expected in ((NORM, n_parts * normed), (UPDATE, n_parts)):
        having = (kinds & kind) != 0
        assert torch.equal(torch.bincount(tensor[having], minlength=len(n_elements)), expected)
        pairs = torch.stack([tensor[having], part[having]])
        assert torch.unique(pairs, dim=1).shape == pairs.shape, "a part is listed twice"
    assert bool((part < n_parts[tensor]).all())
    # A chunk lies in one draw, in order: whoever has it adds up its leaves.
    follows = (part[1:] % per_draw != 0) & (tensor[1:] >= 0)
    assert torch.equal(draw[1:][follows], draw[:-1][follows])
    assert torch.equal(part[1:][follows], part[:-1][follows] + 1)
    assert torch.equal(tensor[1:][follows], tensor[:-1][follows])
    is_norm, is_update = (kinds & NORM) != 0, (kinds & UPDATE) != 0
    only_update = is_update & ~is_norm
    if wait_for_all:
        assert not bool(only_update.any()) or draw[is_norm].max() < draw[only_update].min()
        return
    last_norm = torch.full((len(n_elements),), -1)
    last_norm.scatter_reduce_(0, tensor[is_norm], draw[is_norm], "amax")
    first_update = torch.full((len(n_elements),), n_draws)
    first_update.scatter_reduce_(0, tensor[only_update], draw[only_update], "amin")
    assert bool((last_norm < first_update).all()), "an update waits for a later norm"


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
@pytest.mark.parametrize("retained", [0, 7, 10**6, None], ids=lambda n: f"retained {n}")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_part_is_listed_once_and_waits_for_the_past(
    sizes: list[int], retained: int | None, wait_for_all: bool
) -> None:
    for needs_norm in ([True] * len(sizes), [i % 2 == 0 for i in range(len(sizes))]):
        part = PART if sum(sizes) < 2**31 else LARGEST_PART
        in_turn = retained is None
        options = {"part_elements": part, "in_turn": in_turn, "retained_draws": retained or 0}
        made = plan(sizes, needs_norm, wait_for_all=wait_for_all, **options)
        check(sizes, needs_norm, made, wait_for_all, part)


def test_a_hundred_thousand_tensors() -> None:
    torch.manual_seed(1)
    sizes = torch.randint(0, 3 * CHUNK, (100_000,)).tolist()
    needs_norm = (torch.rand(100_000) < 0.5).tolist()
    check(sizes, needs_norm, plan(sizes, needs_norm, retained_draws=100), False)


@pytest.mark.parametrize(
    "damage", ["lost part", "part twice", "update first", "torn chunk", "not whole"]
)
def test_the_check_notices_a_wrong_list(damage: str) -> None:
    sizes = [3 * CHUNK, 2 * CHUNK]
    made = plan(sizes)
    items = made["items"]
    if damage == "lost part":
        items[-1] = torch.tensor([-1, 0, UPDATE, 0])
    elif damage == "part twice":
        items[-1] = items[-2]
    elif damage == "update first":
        made["items"] = items.view(-1, PER_DRAW, 4).flip(0).reshape(-1, 4)
    elif damage == "not whole":
        items[0, 3] = 0
    else:
        items[[0, PER_DRAW]] = items[[PER_DRAW, 0]]
    with pytest.raises(AssertionError):
        check(sizes, [True, True], made, False)


@pytest.mark.parametrize("wait_for_all", [False, True])
def test_norms_alone_come_first_where_gradients_are_kept(wait_for_all: bool) -> None:
    """A GPU's warps take them before there is anything to update."""
    sizes = [5, 3 * CHUNK, 9 * CHUNK, 0, CHUNK + 1, 40 * CHUNK]
    needs_norm = [True, True, True, True, False, True]
    for retained in (0, 2, 7, 100):
        made = plan(sizes, needs_norm, wait_for_all=wait_for_all, retained_draws=retained)
        updates = (made["items"][::PER_DRAW, 2] & UPDATE) != 0
        assert torch.equal(updates, updates.sort(stable=True).values)


def test_no_norm_is_listed_where_none_is_needed() -> None:
    kinds = plan([3 * CHUNK, 5], needs_norm=False)["items"][:, 2]
    assert set(kinds.tolist()) == {UPDATE}


def kinds_of(made: Any, tensor: int) -> list[int]:
    """The kinds of a tensor's draws in list order."""
    items = made["items"]
    return items[(items[:, 0] == tensor) & (items[:, 1] % PER_DRAW == 0)][:, 2].tolist()


def test_what_fits_is_kept_from_norm_to_update() -> None:
    made = plan([8 * CHUNK, 5], retained_draws=8)
    assert kinds_of(made, 0) == [NORM | UPDATE] * 8
    assert kinds_of(made, 1) == [NORM | UPDATE]


def test_of_what_does_not_fit_the_first_has_all_the_room_and_others_half() -> None:
    made = plan([9 * CHUNK, 3 * CHUNK, 10 * CHUNK], retained_draws=8)
    assert kinds_of(made, 0) == [NORM] * 1 + [NORM | UPDATE] * 8 + [UPDATE] * 1
    assert kinds_of(made, 1) == [NORM | UPDATE] * 3
    assert kinds_of(made, 2) == [NORM] * 6 + [NORM | UPDATE] * 4 + [UPDATE] * 6


@pytest.mark.parametrize("retained", [0, 4, 100])
def test_where_all_norms_are_waited_for_nothing_is_kept(retained: int) -> None:
    made = plan([9 * CHUNK, 5], wait_for_all=True, retained_draws=retained)
    kinds = made["items"][::PER_DRAW, 2]
    assert kinds.tolist() == [NORM] * 10 + [UPDATE] * 10
    assert made["n_leading"] == 10


def test_the_norms_that_lead_are_counted() -> None:
    sizes = [9 * CHUNK, 5, 0]
    assert plan(sizes, retained_draws=7)["n_leading"] == 2
    assert plan(sizes, retained_draws=100)["n_leading"] == 0
    assert plan(sizes, needs_norm=False)["n_leading"] == 0
    assert plan(sizes, surveys=True, needs_norm=False)["n_leading"] == 0
    assert plan(sizes, wait_for_all=True, surveys=True, retained_draws=7)["n_leading"] == 10


def test_behind_the_last_norm_or_survey_there_are_updates_alone() -> None:
    sizes = [9 * CHUNK, 5, 0]
    assert plan(sizes, wait_for_all=True)["n_preparing"] == 10  # each of them leads
    assert plan(sizes, retained_draws=7)["n_preparing"] == 2 + 8  # kept: 7 and the small ones'
    assert plan(sizes, needs_norm=False)["n_preparing"] == 0
    assert plan(sizes, surveys=True, needs_norm=False, retained_draws=7)["n_preparing"] == 10
    assert plan(sizes, wait_for_all=True, surveys=True, retained_draws=7)["n_preparing"] == 10 + 10


def test_small_tensors_share_draws_and_none_is_divided() -> None:
    made = plan([3 * PART, PART, 2 * PART, 5, 2 * PART, 4 * PART])
    assert made["items"].view(-1, PER_DRAW, 4)[:, :, 0].tolist() == [
        [0, 0, 0, 1],
        [2, 2, 3, -1],
        [4, 4, -1, -1],
        [5, 5, 5, 5],
    ]


def test_in_turn_updates_start_with_the_gradients_summed_last() -> None:
    items = plan([4 * CHUNK], in_turn=True, items_per_draw=1, part_elements=CHUNK)["items"]
    assert items[items[:, 2] == UPDATE][:, 1].tolist() == [3, 2, 1, 0]


def test_in_turn_updates_without_norms_go_forwards() -> None:
    options = {"in_turn": True, "items_per_draw": 1, "part_elements": CHUNK}
    assert plan([4 * CHUNK], needs_norm=False, **options)["items"][:, 1].tolist() == [0, 1, 2, 3]


def test_tree_nodes_of_tensors_do_not_overlap() -> None:
    sizes = [0, 1, 600 * CHUNK, 70_000 * CHUNK, 5]
    made = plan(sizes)
    first = made["tensors"][:, 1].tolist()
    # 600 chunks need 600 + 19 + 1 nodes, 70,000 need 70,000 + 2,188 + 69 + 3 + 1; five tensors 6.
    assert first == [0, 1, 2, 622, 622 + 72_261]
    assert made["n_nodes"] == 622 + 72_261 + 1 + 6


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("retained", [0, 5, 10**6])
def test_surveys_stand_between_norms_and_updates(in_turn: bool, norms: bool, retained: int) -> None:
    sizes = [0, 5, 1024, 4096, 5000, 40_000, 3, 300_000, 1025]
    made = plan(
        sizes,
        norms,
        surveys=True,
        wait_for_all=norms,
        in_turn=in_turn,
        retained_draws=retained,
        items_per_draw=1 if in_turn else PER_DRAW,
    )
    items, per_draw = made["items"], 1 if in_turn else PER_DRAW
    draw = torch.arange(len(items)) // per_draw
    real = items[:, 0] >= 0
    tensor, part, kinds, _ = items[real].unbind(1)
    draw = draw[real]
    n_parts = torch.tensor([max(1, -(-n // PART)) for n in sizes])
    for kind, expected in ((NORM, n_parts * norms), (SURVEY, n_parts), (UPDATE, n_parts)):
        having = (kinds & kind) != 0
        assert torch.equal(torch.bincount(tensor[having], minlength=len(sizes)), expected)
        assert len(set(zip(tensor[having].tolist(), part[having].tolist(), strict=True))) == int(
            expected.sum()
        )
    surveys = (kinds & SURVEY) != 0
    if norms:
        assert draw[kinds == NORM].max() < draw[surveys].min()
    assert bool((kinds[(kinds & NORM) != 0] == NORM).all())
    for index in range(len(sizes)):
        last_survey = draw[surveys & (tensor == index)].max()
        assert bool((draw[(kinds == UPDATE) & (tensor == index)] > last_survey).all())
    if not in_turn and retained == 10**6:
        assert not bool((kinds == UPDATE).any()), "all updates are kept"
    if not in_turn and retained == 0:
        large = n_parts > PER_DRAW
        assert not bool(large[tensor[kinds == (SURVEY | UPDATE)]].any())
