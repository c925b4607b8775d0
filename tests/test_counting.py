"""Ranks by counting: equal to counting by hand, whatever the tiles, the order of items, the form and the type."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_cdsr import counting
from recbole_cdsr.counting import Catalogue, Ranks, count_ranks, count_ranks_tiled
from recbole_cdsr.errors import CDSRError

SMALL = 5  # values of states and tables: products are exact in every float type, and ties are many


def by_hand(scores, item_domain, target_item, target_domain):
    """Rank among all items and among those of the target's domain, one comparison at a time."""
    result = []
    for row, target, own in zip(scores.tolist(), target_item.tolist(), target_domain.tolist(), strict=True):
        counts = [0, 0, 0, 0, 0, 0]  # better, equal, others; the same in the domain
        for item in range(1, len(row)):
            if item == target:
                continue
            for first in (0, 3) if item_domain[item] == own else (0,):
                counts[first] += row[item] > row[target]
                counts[first + 1] += row[item] == row[target]
                counts[first + 2] += 1
        result.append([1 + counts[0] + counts[1] / 2, 1 + counts[3] + counts[4] / 2, 1 + counts[2], 1 + counts[5]])
        result[-1].append(counts[1] > 0)
    return Ranks(*np.array(result, dtype=np.float64).reshape(-1, 5).T)


def assert_equal(left: Ranks, right: Ranks):
    for name in Ranks._fields:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


class Case:
    """Random states, items and domains; some items of no domain, some domains of no item."""

    def __init__(self, seed=0, users=70, items=300, domains=4, dtype=torch.float64, width=3):
        draw = torch.Generator().manual_seed(seed)
        self.item_domain = torch.randint(0, domains + 1, (items,), generator=draw)
        self.item_domain[0] = 0
        self.item_domain[1] = 1
        known = self.item_domain.nonzero()[:, 0]
        self.item = known[torch.randint(0, len(known), (users,), generator=draw)]
        self.domain = self.item_domain[self.item]
        self.states = torch.randint(-SMALL, SMALL + 1, (users, width), generator=draw).to(dtype)
        self.table = torch.randint(-SMALL, SMALL + 1, (items, width), generator=draw).to(dtype)
        self.bias = torch.randint(-SMALL, SMALL + 1, (items,), generator=draw).to(dtype)
        self.scores = self.states @ self.table.T + self.bias

    def matrix(self, **settings) -> Ranks:
        return count_ranks(self.scores, self.item_domain, self.item, self.domain, **settings)

    def tiled(self, **settings) -> Ranks:
        return count_ranks_tiled(
            self.states, self.table, self.item_domain, self.item, self.domain, bias=self.bias, **settings
        )


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    users=st.integers(0, 12),
    items=st.integers(2, 30),
    domains=st.integers(1, 40),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_equals_counting_by_hand(seed, users, items, domains, tile):
    case = Case(seed, users, items, domains)
    if users:
        case.scores[:, seed % items] = float("inf") if seed % 2 else float("-inf")
    with mock.patch.object(counting, "_STEP", 1):  # so that tiles this small exist
        assert_equal(case.matrix(tile=tile), by_hand(case.scores, case.item_domain, case.item, case.domain))
        case.scores = case.states @ case.table.T + case.bias
        assert_equal(case.tiled(tile=tile), by_hand(case.scores, case.item_domain, case.item, case.domain))


@given(st.integers(0, 10**6), st.tuples(st.integers(1, 400), st.integers(1, 400)))
@settings(max_examples=30)
def test_form_and_tile_change_nothing(seed, tile):
    draw = torch.Generator().manual_seed(seed)
    case = Case(seed, users=120, items=330, domains=6)
    case.states, case.table = (torch.randn(x.shape, generator=draw, dtype=x.dtype) for x in (case.states, case.table))
    case.scores = case.states @ case.table.T + case.bias
    assert_equal(case.tiled(tile=tile), case.tiled())
    assert_equal(case.matrix(tile=tile), case.matrix())
    assert_equal(case.tiled(tile=tile), case.matrix())


def test_order_of_items_and_of_rows_changes_nothing():
    case, expected = Case(1), Case(1).tiled()
    order = torch.cat([torch.zeros(1, dtype=torch.long), torch.randperm(299) + 1])
    case.table, case.bias, case.item_domain = case.table[order], case.bias[order], case.item_domain[order]
    case.item, case.scores = order.argsort()[case.item], case.scores[:, order]
    assert_equal(case.tiled(), expected)
    assert_equal(case.matrix(), expected)
    rows = torch.randperm(70)
    case.states, case.item, case.domain = case.states[rows], case.item[rows], case.domain[rows]
    assert_equal(case.tiled(), Ranks(*(column[rows.numpy()] for column in expected)))


def test_domain_rank_is_never_worse():
    ranks = Case(2).matrix()
    assert (ranks.rank_domain <= ranks.rank_all).all() and (ranks.rank_domain < ranks.rank_all).any()
    assert (ranks.rank_domain <= ranks.candidates_domain).all() and (ranks.rank_all <= ranks.candidates_all).all()
    assert ranks.rank_all.dtype == np.float64


def test_one_domain_makes_both_sets_equal():
    case = Case(3)
    case.item_domain[1:], case.domain = 1, torch.ones_like(case.domain)
    ranks = case.tiled()
    np.testing.assert_array_equal(ranks.rank_domain, ranks.rank_all)
    np.testing.assert_array_equal(ranks.candidates_domain, ranks.candidates_all)


def test_many_small_domains():
    case = Case(4, users=60, items=900, domains=300)
    assert_equal(case.tiled(tile=(48, 240)), by_hand(case.scores, case.item_domain, case.item, case.domain))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "int64"])
def test_every_type_of_scores(dtype):
    case, dtype = Case(5), getattr(torch, dtype)
    expected, case.scores = case.matrix(), case.scores.to(dtype)
    assert_equal(case.matrix(), expected)
    if dtype.is_floating_point:
        case.states, case.table = case.states.to(dtype), case.table.to(dtype)
        assert_equal(case.tiled(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_equal_scores_give_the_middle_rank(dtype):
    """More than 2,048 of them, where float16 can count no further."""
    scores = torch.ones(2, 6002, dtype=dtype)
    ranks = count_ranks(scores, torch.tensor([0] + [1] * 3001 + [2] * 3000), torch.tensor([1, 6001]))
    assert ranks.rank_all.tolist() == [3001, 3001] and ranks.rank_domain.tolist() == [1501, 1500.5]
    assert ranks.ties.all()


@pytest.mark.parametrize("users", [1, 2, 7, 60])
@pytest.mark.parametrize("width", [3, 50, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_collapsed_model_is_not_rewarded_by_rounding(users, width, dtype):
    """All items have one vector: the target's score must be rounded as its rivals' are, or some targets come first."""
    torch.manual_seed(0)
    states, item = torch.randn(users, width, dtype=dtype), torch.randn(1, width, dtype=dtype)
    table = item.repeat(1001, 1)
    ranks = count_ranks_tiled(
        states, table, torch.arange(1001) % 7 + 1, torch.randint(1, 1001, (users,)), tile=(48, 300)
    )
    assert (abs(ranks.rank_all - 500.5) <= 50).all()  # exactly 500.5 with the libraries of today


def test_infinities_are_ordinary_scores():
    infinity = float("inf")
    scores = torch.tensor([[9, infinity, 1, -infinity, infinity, -infinity]] * 3)
    ranks = count_ranks(scores, torch.tensor([0, 1, 1, 1, 2, 2]), torch.tensor([1, 2, 3]))
    assert ranks.rank_all.tolist() == [1.5, 3, 4.5]
    assert ranks.rank_domain.tolist() == [1, 2, 3]
    bias = torch.tensor([0, 0, 0, -infinity, 0, -infinity])  # takes items out of the race
    ranks = count_ranks_tiled(torch.ones(1, 2), torch.ones(6, 2), torch.ones(6).long(), torch.tensor([1]), bias=bias)
    assert ranks.rank_all.tolist() == [2]


@pytest.mark.parametrize("column", [0, 5, 299, "target"])
def test_nan_in_scores_is_an_error(column):
    case = Case(6)
    case.scores[33, case.item[33] if column == "target" else column] = float("nan")
    with pytest.raises(CDSRError, match="NaN"):
        case.matrix()


@pytest.mark.parametrize("name", ["states", "table", "bias"])
@pytest.mark.parametrize("row", [0, 40, -1])
def test_nan_in_a_factor_is_an_error(name, row):
    case = Case(6)
    getattr(case, name)[row] = float("nan")
    with pytest.raises(CDSRError, match="NaN"):
        case.tiled(tile=(48, 96))


def test_nan_that_arises_in_the_product_is_an_error():
    case = Case(6)
    case.table[7], case.states[:] = float("inf"), 0
    with pytest.raises(CDSRError, match="NaN"):
        case.tiled()


def test_an_event_may_name_another_domain_than_its_item():
    """Then the items of that domain compete, and the target itself."""
    scores = torch.tensor([[0.0, 1, 2, 3, 4]])
    ranks = count_ranks(scores, torch.tensor([0, 1, 1, 2, 2]), torch.tensor([1]), torch.tensor([2]))
    assert (ranks.rank_domain.tolist(), ranks.candidates_domain.tolist()) == ([3], [3])
    ranks = count_ranks(scores, torch.tensor([0, 1, 1, 2, 2]), torch.tensor([1]), torch.tensor([9]))
    assert (ranks.rank_domain.tolist(), ranks.candidates_domain.tolist()) == ([1], [1])


def test_inputs_stay_as_they_are():
    case, same = Case(7), Case(7)
    case.item_domain = case.item_domain.sort().values  # then blocks are views of the scores
    case.domain = case.item_domain[case.item].clamp(min=1)
    case.states.requires_grad_()
    case.matrix()
    case.tiled()
    assert torch.equal(case.scores, same.scores) and torch.equal(case.states, same.states)
    assert torch.equal(case.table, same.table)


def test_a_catalogue_serves_many_batches():
    case, catalogue = Case(8), Catalogue(Case(8).item_domain)
    parts = [slice(0, 30), slice(30, 70)]
    ranks = [count_ranks(case.scores[part], catalogue, case.item[part], case.domain[part]) for part in parts]
    assert_equal(Ranks(*(np.concatenate(column) for column in zip(*ranks, strict=True))), case.matrix())


@pytest.mark.parametrize(
    "change",
    [
        {"target_item": torch.tensor([0])},
        {"target_item": torch.tensor([4])},
        {"target_item": torch.tensor([1, 2])},
        {"target_item": torch.tensor([3])},  # of the unknown domain 0
        {"target_domain": torch.tensor([0])},
        {"target_domain": torch.tensor([1, 1])},
        {"scores": torch.ones(1, 5)},
        {"scores": torch.ones(4)},
        {"catalogue": torch.tensor([0])},
        {"catalogue": torch.tensor([0, 1, 1, -1])},
    ],
)
def test_wrong_input_is_told(change):
    good = {"scores": torch.ones(1, 4), "catalogue": torch.tensor([0, 1, 1, 0]), "target_item": torch.tensor([1])}
    count_ranks(**good)
    with pytest.raises(CDSRError):
        count_ranks(**{**good, **change})


def test_wrong_shapes_of_factors_are_told():
    with pytest.raises(CDSRError, match="table"):
        count_ranks_tiled(torch.ones(1, 3), torch.ones(4, 2), torch.tensor([0, 1, 1, 1]), torch.tensor([1]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    case, expected = Case(9), Case(9).tiled()
    for name in ("states", "table", "bias", "scores"):
        setattr(case, name, getattr(case, name).cuda())
    assert_equal(case.tiled(), expected)
    assert_equal(case.matrix(), expected)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_million_items_fit_in_two_gigabytes():
    """4,096 users x 1,000,000 items: the matrix alone would take 16 GB."""
    program = """
        import torch
        from recbole_cdsr.counting import count_ranks_tiled
        torch.manual_seed(0)
        table, states = torch.randn(1_000_001, 64), torch.randn(4096, 64)
        domain, item = torch.randint(1, 6, (1_000_001,)), torch.randint(1, 1_000_001, (4096,))
        ranks = count_ranks_tiled(states, table, domain, item)
        scores = (states[:4].double() @ table.double().T)[:, 1:]
        better = (scores > scores.gather(1, item[:4, None] - 1)).sum(1).numpy()
        assert abs(ranks.rank_all[:4] - 1 - better).max() <= 10, (ranks.rank_all[:4], better)
        # Not ru_maxrss: a child inherits that of its parent.
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(int(peak.split()[1]) / 2**20)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2
