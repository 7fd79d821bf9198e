"""A search with bounds and values that are scripted, and the pieces of its bounds by their definitions."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference

from cusink.convergence.options import Options
from cusink.convergence.rules import overrelaxed
from cusink.operand import dense_cost
from cusink.retrieval import bounds as dual
from cusink.retrieval import concavity, search
from cusink.retrieval.batches import PairBatches
from cusink.retrieval.bounding import Bounding, why_not_prune
from cusink.retrieval.collections import check_collections
from cusink.retrieval.pairs import Solved
from cusink.retrieval.query import Certificate, Counts, Query
from cusink.retrieval.ranking import Duplicates, TopK
from cusink.retrieval.search import PrunedSearch
from cusink.retrieval.unbalanced_bounds import Margins, UnbalancedBounds, margins

TOL = 1e-6


def query(k=2, **given):
    given = {"value": "reg_cost", "excludes_self": False, "memory_limit": None, **given}
    return Query(k=k, options=Options(tol=TOL), **given)


# ---- the nearest so far --------------------------------------------------------------------------------------------


def test_the_nearest_are_kept_in_order_and_ties_by_column():
    best = TopK(3, 2, 9)
    assert best.columns.tolist() == [[9, 9]] * 3 and np.isinf(best.values).all() and not best.converged.any()
    rows, columns = np.array([2, 0, 2, 2]), np.array([5, 1, 3, 4])
    best.add(rows, columns, np.array([1.0, 7.0, 1.0, 2.0]), np.arange(4.0), np.array([True, False, True, True]))
    assert best.columns.tolist() == [[1, 9], [9, 9], [3, 5]] and best.values[2].tolist() == [1, 1]
    assert best.error[2].tolist() == [2, 0] and best.error[0].tolist() == [1, np.inf]
    assert best.converged.tolist() == [[False, False], [False, False], [True, True]]
    best.add(np.array([0, 0, 2]), np.array([2, 0, 7]), np.array([np.nan, np.inf, 0.5]), np.zeros(3), np.ones(3, bool))
    assert best.columns.tolist() == [[1, 0], [9, 9], [7, 3]]  # an infinite value is one, and nothing is none
    best.add(np.array([1]), np.array([2]), np.array([np.nan]), np.zeros(1), np.ones(1, bool))
    assert best.columns[1].tolist() == [2, 9] and np.isnan(best.values[1, 0])
    other = TopK(3, 2, 9)
    other.take(slice(1, 3), best)
    assert other.columns.tolist() == [[9, 9], [2, 9], [7, 3]] and other.values[2].tolist() == [0.5, 1]
    assert other.error[2].tolist() == [0, 2] and other.converged[2].all()


def test_blocks_of_pairs_leave_out_an_item_itself():
    for excludes, want in ((False, [[0, 1], [1, 0], [2, 1]]), (True, [[1, 2], [0, 2], [1, 0]])):
        best = TopK(3, 2, 3)
        block = [
            np.abs(np.arange(3.0)[:, None] - np.arange(3) * 1.1),
            np.arange(9.0).reshape(3, 3),
            np.ones((3, 3), bool),
        ]
        search._add_block(best, slice(0, 3), slice(0, 3), block, excludes)
        assert [row[:1] for row in best.columns.tolist()] == [row[:1] for row in want]
        assert (best.columns == np.arange(3)[:, None]).any() != excludes
        np.testing.assert_array_equal(best.error[0], [best.columns[0, 0], best.columns[0, 1]])


# ---- which pairs come next -----------------------------------------------------------------------------------------


class Scripts:
    """Bounds (rows, D) from row `first` on, which tightening raises by a share of what they lack."""

    def __init__(self, lower, values, enclosed=False):
        self.lower, self.values, self.first = lower.copy(), values, 0
        self.by_concavity = object() if enclosed else None
        self.tightened, self.added, self.enough = [], [], []

    def raised(self, rows, columns):
        return (self.values[rows, columns] - self.lower[rows, columns]) * (0.3 + 0.6 * ((columns * 7) % 10) / 10)

    def tighten(self, rows, columns):
        self.tightened += columns.tolist()
        self.lower[rows, columns] += self.raised(rows, columns)

    def enclose(self, rows, columns, enough):
        self.enough += enough.tolist()
        self.tighten(rows, columns)

    def close(self, rows, columns):
        self.lower[rows - self.first, columns] = np.inf

    def add(self, potentials):
        self.added.append(potentials.shape)


class Search(PrunedSearch):
    """A search whose values are known, and which notes the pairs that it solves."""

    def __init__(self, values, asked, equal=None, floor=0.0):
        rows, columns = values.shape
        self.pairs = SimpleNamespace(shape=values.shape, xp=np, dtype=np.dtype(float), masses=None, symmetric=False)
        self.query, self.value, self.known, self.log = asked, asked.value, values, []
        self.best, self.counts, self.certificate = TopK(rows, asked.k, columns), Counts(), Certificate(rows)
        labels = np.arange(columns) if equal is None else np.asarray(equal)
        digests = np.stack([labels // 256, labels % 256], axis=1).astype(np.uint8)
        self.duplicates, self.itself, self.self_terms = Duplicates(digests), False, None
        self.bounding = SimpleNamespace(slack=floor, first=lambda rows: self.bounds)

    def _values(self, rows, columns, potentials):
        self.log.append((rows.tolist(), columns.tolist()))
        found = self.known[rows, columns]
        f = np.stack([rows, columns, found], axis=1) if potentials else None
        return Solved(found, 0.1 * found, np.zeros(len(rows), int), found < 5), f


def drawn(rows=1, columns=300, seed=0, loose=0.6):
    rng = np.random.default_rng(seed)
    values = rng.random((rows, columns)) + 0.2
    return values, values - loose * rng.random((rows, columns))


def lowest(lower, count, kth, slack):
    """Return the columns of one row with the lowest bounds, of those that may be nearest."""
    may = [j for j in range(len(lower)) if lower[j] - slack <= kth and lower[j] < np.inf]
    return sorted(may, key=lambda j: (lower[j], j))[:count]


def plain_search(values, lower, k, slack, first, sample, budget=np.inf):
    """Return the columns in the order they are solved, and those that are tightened, by the rules written out."""
    script = Scripts(lower[None], values[None])
    low, solved, left, started = script.lower[0], [], budget, set()

    def kth():
        return sorted(values[j] for j in solved)[k - 1] if len(solved) >= k else np.inf

    def solve(columns):
        solved.extend(sorted(columns))
        low[columns] = np.inf

    count = min(first, budget)
    solve(sorted(np.argsort(low, kind="stable")[:count].tolist()))
    left, reach, count = budget - len(solved), None, first
    started |= set(solved)
    while True:
        count *= 3
        chosen = lowest(low, count, kth(), slack) if left > 0 else []
        height = {j: kth() - (low[j] - slack) for j in chosen}
        if reach is None:
            some = np.array(chosen[:: 1 + len(chosen) // sample], int)
            before = low[some].copy()
            script.tighten(np.zeros(len(some), int), some)
            reach = np.quantile(low[some] - before, 0.8) if chosen else 0.0
            started |= set(some.tolist())
        near = np.array([j for j in chosen if height[j] <= reach and j not in started], int)
        script.tighten(np.zeros(len(near), int), near)
        started |= set(near.tolist())
        chosen = lowest(low, min(count, left), kth(), slack) if left > 0 else []
        if not chosen:
            return solved, script.tightened, started | set(solved)
        solve(chosen)
        started |= set(chosen)
        left -= len(chosen)


@pytest.mark.parametrize("sample", [512, 20])
@pytest.mark.parametrize(("seed", "loose", "most"), [(0, 0.6, None), (1, 0.9, None), (2, 0.9, 40), (3, 0.9, 5)])
def test_pairs_are_solved_in_rounds_by_their_bounds(monkeypatch, seed, loose, most, sample):
    monkeypatch.setattr(search, "TIGHTENED_SAMPLE", sample)
    values, lower = drawn(seed=seed, loose=loose)
    one = Search(values, query(3, solve_at_most=most), floor=0.01)
    one.bounds = Scripts(lower, values)
    one.find(np.arange(1))
    budget = values.shape[1] if most is None else most
    solved, tightened, started = plain_search(values[0], lower[0], 3, 0.01, 8, sample, budget)
    assert [column for _, columns in one.log for column in columns] == solved
    assert one.bounds.tightened == tightened
    assert one.counts.finished == len(solved) and one.counts.bounded == 300 and one.counts.started == len(started)
    if most is None:
        np.testing.assert_array_equal(one.best.columns[0], np.argsort(values[0], kind="stable")[:3])
        assert len(solved) < 150 and one.certificate.proved.all()
    assert one.bounds.added == [(1, min(8, budget), 3)]
    floor, kth = one.bounds.lower[0].min() - 0.01, one.best.values[0, -1]
    assert one.certificate.proved.tolist() == [bool(floor > kth or floor == np.inf)] == [most is None]
    assert one.certificate.undercut[0] == pytest.approx(max(kth - floor, 0) if not one.certificate.proved[0] else 0)


def plain_enclosed(values, lower, k, slack, first):
    script = Scripts(lower[None], values[None])
    low, solved, started, enough = script.lower[0], [], set(), []
    count, looked = first, 3 * first
    while True:
        kth = sorted(values[j] for j in solved)[k - 1] if len(solved) >= k else np.inf
        chosen = lowest(low, looked, kth, slack)
        if not chosen:
            return solved, script.tightened, enough
        new = np.array([j for j in chosen if j not in started], int)
        script.tighten(np.zeros(len(new), int), new)
        enough += [kth] * len(new)
        started |= set(chosen)
        count *= 1 if len(new) else 3
        may = np.array([low[j] if j in started else np.inf for j in range(len(low))])
        some = lowest(may, count, kth, slack)
        solved.extend(sorted(some))
        low[some] = np.inf
        looked *= 9


@pytest.mark.parametrize(("seed", "loose"), [(0, 0.6), (1, 0.95), (5, 1.5)])
def test_bounds_by_concavity_come_before_any_pair_is_solved(seed, loose):
    values, lower = drawn(columns=700, seed=seed, loose=loose)
    one = Search(values, query(3), floor=0.01)
    one.bounds = Scripts(lower, values, enclosed=True)
    one.find(np.arange(1))
    solved, enclosed, enough = plain_enclosed(values[0], lower[0], 3, 0.01, 8)
    assert [column for _, columns in one.log for column in columns] == solved
    assert one.bounds.tightened == enclosed and one.bounds.enough == enough and one.bounds.added == []
    np.testing.assert_array_equal(one.best.columns[0], np.argsort(values[0], kind="stable")[:3])


@pytest.mark.parametrize("excludes", [False, True])
def test_candidates_come_first_and_then_the_others(excludes):
    values, lower = drawn(rows=3, columns=60, seed=4)
    candidates = np.array([[5, 7, 0], [8, 1, 9], [2, 3, 4]])
    one = Search(values, query(2, candidates=candidates, solve_at_most=10, excludes_self=excludes))
    one.bounds = Scripts(lower, values)
    mask = one._allowed(np.arange(1, 3))
    want = [[1, 8, 9], [2, 3, 4]] if not excludes else [[8, 9], [3, 4]]
    assert [np.flatnonzero(row).tolist() for row in mask] == want
    assert one._budget(np.arange(3)).tolist() == [10] * 3
    one.find(np.arange(3))
    count = [
        len({c for rows, columns in one.log for r, c in zip(rows, columns, strict=True) if r == k}) for k in range(3)
    ]
    assert max(count) <= 10 and min(count) > 3
    least = 2 if excludes else 3  # as many of each row as the row with fewest candidates has
    assert [len(columns) for _, columns in one.log[:1]] == [3 * least]
    for r, c in zip(*one.log[0], strict=True):
        assert c in candidates[r] and (not excludes or c != r)
    assert one.counts.bounded == 180 - (3 if excludes else 0)
    if excludes:
        assert all(r != c for rows, columns in one.log for r, c in zip(rows, columns, strict=True))
    alone = Search(values, query(2, candidates=candidates, excludes_self=excludes))
    assert alone._budget(np.arange(3)).tolist() == ([2, 2, 2] if excludes else [3, 3, 3])
    assert Search(values, query(2))._budget(np.arange(2)).tolist() == [60, 60]
    alone.solve_candidates(np.arange(3))
    assert alone.counts.started == alone.counts.finished == (6 if excludes else 9)
    assert not alone.certificate.proved.any() and np.isinf(alone.certificate.undercut).all()
    every = Search(values[:, :3], query(2, candidates=np.array([[0, 1, 2]] * 3), excludes_self=excludes))
    every.solve_candidates(np.arange(3))
    assert every.certificate.proved.all()


def test_a_pair_stands_for_those_of_its_row_with_equal_columns():
    values, _ = drawn(rows=2, columns=6)
    equal = [0, 1, 0, 3, 1, 0]
    values = values[:, equal]
    one = Search(values, query(6), equal)
    bounds = Scripts(values, values)
    rows, f = one._solve(bounds, np.array([1, 1, 0]), np.array([5, 4, 2]), None, 0, potentials=True)
    assert one.log == [([0, 1, 1], [0, 0, 1])] and rows.tolist() == [0, 1, 1]
    assert f[:, :2].tolist() == [[1, 0], [1, 1], [0, 0]]  # in the order of the call
    assert one.best.columns[0].tolist() == [0, 2, 5, 6, 6, 6] and set(one.best.columns[1]) == {0, 2, 5, 1, 4, 6}
    assert np.isinf(bounds.lower).tolist() == [
        [True, False, True, False, False, True],
        [True, True, True, False, True, True],
    ]
    np.testing.assert_allclose(one.best.error[0, :3], 0.1 * values[0, 0])
    mask = np.zeros((2, 6), bool)
    mask[1, [2, 4]] = True
    few = Search(values, query(6, excludes_self=True), equal)
    _, f = few._solve(None, np.array([1, 1]), np.array([2, 4]), mask, 0)
    assert f is None and set(few.best.columns[1]) == {2, 4, 6}
    itself = Search(values, query(6, excludes_self=True), equal)
    itself._solve(None, np.array([1]), np.array([4]), None, 0)
    assert set(itself.best.columns[1]) == {4, 6}  # not 1, which is the row
    later = Search(np.repeat(values, 2, axis=0), query(6), equal)
    later._solve(None, np.array([3]), np.array([2]), np.eye(6)[:2, :] > 0, 2)  # the mask begins with row 2
    assert set(later.best.columns[3]) == {6}


def test_a_floor_is_what_the_reported_value_cannot_fall_below():
    lower, rows = np.arange(6.0).reshape(2, 3), np.array([1, 2])
    ours, theirs = np.array([9.0, 0.5, 0.25]), np.array([0.1, 0.2, 0.3])
    pairs = SimpleNamespace(masses=None, eps=0.5, dtype=np.dtype(np.float32))
    one = SimpleNamespace(bounding=SimpleNamespace(slack=0.01), offsets=None, value="reg_cost", pairs=pairs)
    want = lower - 0.01
    floor = PrunedSearch._floor(one, rows, lower)
    assert floor.dtype == np.float64
    np.testing.assert_array_equal(floor, want.astype(np.float32))
    one.offsets = ours, theirs
    want = want - ours[rows][:, None] - theirs
    np.testing.assert_allclose(PrunedSearch._floor(one, rows, lower), want, rtol=1e-6)
    pairs.masses = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 5.0])
    np.testing.assert_allclose(PrunedSearch._floor(one, rows, lower), want, rtol=1e-6)
    one.value = "divergence"
    excess = 0.25 * (np.array([2.0, 4.0])[:, None] - np.array([1.0, 3.0, 5.0])) ** 2
    np.testing.assert_allclose(PrunedSearch._floor(one, rows, lower), want + excess, rtol=1e-6)
    lower[0, 0] = 1e300
    assert PrunedSearch._floor(one, rows, lower)[0, 0] == np.inf


def test_which_pairs_are_open():
    lower = np.array([[0.1, 0.5, 0.3, np.inf], [0.2, 0.1, 0.4, 0.3]])
    one = Search(np.ones((2, 4)), query(2))
    progress = search._Rows(np.arange(2), SimpleNamespace(lower=lower), None, np.array([3, 3]))
    one.best.values[:] = [[0.2, 0.3], [0.1, 0.3]]
    at, columns, height = one._lowest(progress, 9)
    assert at.tolist() == [0, 0, 1, 1, 1] and columns.tolist() == [0, 2, 1, 0, 3]  # at the k-th value a tie may win
    np.testing.assert_allclose(height, [0.2, 0, 0.2, 0.1, 0], atol=1e-15)
    assert one._lowest(progress, np.array([1, 2]))[1].tolist() == [0, 1, 0]
    progress.left = np.array([0, 1])
    assert one._lowest(progress, 9)[0].tolist() == [1, 1, 1]
    among = np.ones((2, 4), bool)
    among[1, 1] = False
    assert one._lowest(progress, 9, among)[1].tolist() == [0, 3]
    progress.candidates = ~among
    assert one._lowest(progress, 9)[1].tolist() == [1]
    one.best.values[:] = np.inf
    progress.left, progress.candidates = np.array([1, 1]), None
    assert one._lowest(progress, 9)[0].tolist() == [0, 0, 0, 1, 1, 1, 1]  # but what is closed


def test_what_distances_are_less_than_bounded_values_by():
    one = Search(np.ones((2, 3)), query(2))
    assert one.offsets is None
    one = Search(np.ones((2, 3)), query(2, value="entropic_cost"))
    weights = np.array([[0.5, 0.5], [1.0, 0.0]])
    one.pairs.eps, one.pairs.A, one.pairs.C = 0.25, weights, SimpleNamespace(xp=np, to_host=np.asarray)
    one.corpus = SimpleNamespace(entropies=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(one.offsets[0], [0.25 * np.log(2), 0])
    np.testing.assert_allclose(one.offsets[1], [0.25, 0.5, 0.75])
    same = Search(np.ones((3, 3)), query(2, value="entropic_cost"))
    same.pairs.eps, same.corpus, same.itself = 0.25, one.corpus, True
    np.testing.assert_allclose(same.offsets[0], [0.25, 0.5, 0.75])
    own = Search(np.ones((2, 3)), query(2, value="divergence"))
    own.self_terms = tuple(Solved(np.arange(1.0, n + 1), None, None, None) for n in (2, 3))
    assert [x.tolist() for x in own.offsets] == [[0.5, 1], [0.5, 1, 1.5]]


def test_rows_are_searched_in_blocks_that_memory_holds(monkeypatch):
    asked = []

    class Recorded:
        def __init__(self, pairs, corpus, query, width):
            self.best, self.counts, self.certificate = "best", "counts", "certificate"

        def find(self, rows):
            asked.append(rows.tolist())

        def solve_candidates(self, rows):
            asked.append(rows.tolist())

    monkeypatch.setattr(search, "PrunedSearch", Recorded)
    monkeypatch.setattr(search, "tile_shape", lambda pairs, share: (1, 7))
    monkeypatch.setattr(search, "bytes_needed", lambda pairs, solved: (1000, 10 * solved))
    monkeypatch.setattr(search, "ROWS_PER_BLOCK", 4)
    pairs, done = SimpleNamespace(shape=(10, 3)), []
    for limit, sizes in ((2 * (1000 + 80 * 4), [4, 4, 2]), (2 * (1000 + 80 * 4) - 2, [3, 3, 3, 1]), (None, [10])):
        asked.clear()
        done.clear()
        found = search.search_pruned(pairs, None, query(3, memory_limit=limit), done.append)
        assert [len(rows) for rows in asked] == sizes and sum(asked, []) == list(range(10))
        assert done == [3 * size for size in sizes] and found == ("best", "counts", "certificate")
    asked.clear()
    search.search_pruned(pairs, None, query(3, memory_limit=2 * 1000), done.append)
    assert [len(rows) for rows in asked] == [1] * 10
    asked.clear()
    done.clear()
    search.search_listed(pairs, None, query(3, rows=slice(1, 7)), done.append)
    assert asked == [[1, 2, 3, 4], [5, 6]] and done == [12, 6]


class Tiles:
    """All pairs of a matrix, in tiles."""

    def __init__(self, matrix, symmetric=False):
        self.matrix = matrix
        self.pairs = SimpleNamespace(shape=matrix.shape, symmetric=symmetric, to_host=np.asarray)

    def tile(self, rows, columns, names, progress):
        assert names == ("distances", "error", "converged")
        part = self.matrix[rows, columns].copy()
        return dict(zip(names, (part, part / 10, part < 0.9), strict=True)), None


@pytest.mark.parametrize(("rows", "excludes"), [(None, True), (None, False), (slice(2, 5), False)])
def test_all_pairs_are_looked_at_in_tiles(rows, excludes):
    rng = np.random.default_rng(0)
    matrix = rng.random((7, 7))
    equal = Duplicates(np.array([[0], [1], [2], [1], [4], [5], [0]], np.uint8))
    repeated = matrix.copy()
    matrix = matrix[:, equal.first]
    repeated[:, [3, 6]] = 0.0  # which are not to be read
    found = search.search_all(Tiles(repeated), query(3, rows=rows, excludes_self=excludes), (2, 3), equal, None)
    want = matrix + np.where(np.eye(7) > 0, 9, 0) if excludes else matrix
    order = np.argsort(want, axis=1, kind="stable")[:, :3]
    at = slice(None) if rows is None else rows
    np.testing.assert_array_equal(found.best.columns[at], order[at])
    np.testing.assert_array_equal(found.best.error[at], np.take_along_axis(matrix, order, 1)[at] / 10)
    assert found.counts.started == found.counts.finished == (49 if rows is None else 21)
    assert found.certificate.proved.all()


@pytest.mark.parametrize("tile", [(1, 7), (1, 2), (1, 3)])
def test_a_symmetric_matrix_is_looked_at_once(tile):
    rng = np.random.default_rng(1)
    whole = rng.random((7, 7))
    whole = whole + whole.T
    given = np.triu(whole) + np.tril(np.full((7, 7), -1.0), -1)  # below the diagonal nothing is known
    values = Tiles(given, symmetric=True)
    found = search.search_all(values, query(3, excludes_self=True), tile, None, None)
    np.fill_diagonal(whole, 9)
    np.testing.assert_array_equal(found.best.columns, np.argsort(whole, axis=1, kind="stable")[:, :3])


def solver_of(symmetric, **given):
    """Return the state of a search whose pairs have the value ``10 row + column``, and what it solved."""
    asked = []

    def solve(rows, columns, potentials):
        asked.append((rows.tolist(), columns.tolist(), potentials))
        f, g = (np.stack([x, x + 0.5], axis=1) for x in (rows, columns))
        return SimpleNamespace(values=10.0 * rows + columns, error=rows / 10, converged=columns < 3, f=f, g=g)

    pairs = SimpleNamespace(
        xp=np,
        symmetric=symmetric,
        B=range(5),
        dtype=np.dtype(np.float32),
        masses=None,
        reach=None,
        eps=0.5,
        mass=1.0,
        span=(0.0, 1.0),
    )
    one = SimpleNamespace(pairs=pairs, batches=SimpleNamespace(solve=solve), self_terms=None)
    for name, x in given.items():
        setattr(one, name, x)
    return one, asked


def test_both_orders_of_a_symmetric_pair_are_one():
    rows, columns = np.array([3, 1, 2, 4]), np.array([1, 3, 2, 0])
    one, asked = solver_of(True)
    found, f = PrunedSearch._values(one, rows, columns, True)
    assert asked == [([0, 1, 2], [4, 3, 2], True)]
    assert found.distances.tolist() == [13, 13, 22, 4] and found.distances.dtype == np.float64
    assert found.error.tolist() == [0.1, 0.1, 0.2, 0] and found.converged.tolist() == [False, False, True, False]
    assert f[:, 0].tolist() == [3, 1, 2, 4]  # each that of its own row
    assert PrunedSearch._values(one, rows, columns, False)[0].distances.tolist() == [13, 13, 22, 4]
    one, asked = solver_of(False)
    found, f = PrunedSearch._values(one, rows, columns, True)
    assert asked == [([3, 1, 2, 4], [1, 3, 2, 0], True)] and found.distances.tolist() == [31, 13, 22, 40]
    assert f[:, 0].tolist() == [3, 1, 2, 4] and not found.n_iter.any()


def test_divergences_of_a_search_are_less_the_terms_of_both_items():
    own = Solved(np.arange(5.0), np.full(5, 0.05), np.zeros(5, int), np.arange(5) != 1)
    other = Solved(2 * np.arange(5.0), np.full(5, 0.25), np.zeros(5, int), np.ones(5, bool))
    labels = np.array([7, 8, 9, 10, 11]), np.array([1, 2, 9, 4, 5])
    rows, columns = np.array([3, 1, 2, 4]), np.array([1, 3, 2, 0])
    one, _ = solver_of(False, self_terms=(own, other), labels=labels)
    found, _ = PrunedSearch._values(one, rows, columns, False)
    assert found.distances.tolist() == [31 - (3 + 2) / 2, 13 - (1 + 6) / 2, 0, 40 - 4 / 2]
    assert found.error.tolist() == [0.3, 0.25, 0.25, 0.4] and found.converged.tolist() == [True, False, True, True]
    one.pairs.masses = np.arange(5.0), np.array([2.0, 2, 2, 0, 0])
    found, _ = PrunedSearch._values(one, rows, columns, False)
    excess = 0.25 * np.array([1, 1, 0, 4.0])
    np.testing.assert_allclose(found.distances, np.array([28.5, 9.5, 0, 38]) + excess * [1, 1, 0, 1])
    one.pairs.reach = 0.3, 0.7  # equal items have a divergence like others
    found, _ = PrunedSearch._values(one, rows, columns, False)
    np.testing.assert_allclose(found.distances, np.array([28.5, 9.5, 22 - (2 + 4) / 2, 38]) + excess)


# ---- whether and how to bound --------------------------------------------------------------------------------------


def test_why_pairs_are_not_left_out():
    cost = dense_cost(np.ones((5, 6)))
    pairs = SimpleNamespace(shape=(3, 32), C=cost, xp=np, reach=None)
    assert why_not_prune(pairs, query(8)) is None
    pairs.shape = (3, 31)
    assert "k is not small" in why_not_prune(pairs, query(8))  # less than twice the columns of a prototype
    pairs.shape = (3, 36)
    assert why_not_prune(pairs, query(9)) is None and "k is not small" in why_not_prune(pairs, query(10))
    assert why_not_prune(pairs, query(10, solve_at_most=3)) is None
    assert why_not_prune(pairs, query(10, candidates=np.zeros((3, 1), int))) is None
    loose = Query(k=1, value="cost", options=Options(tol=None), excludes_self=False, memory_limit=None)
    assert "tol=None" in why_not_prune(pairs, loose)
    needed = sum(dual.bytes_needed(pairs, 8))
    assert why_not_prune(pairs, query(8, memory_limit=2 * needed)) is None
    assert "'memory_limit'" in why_not_prune(pairs, query(8, memory_limit=2 * needed - 2))
    pairs.C = dense_cost(np.where(np.eye(5, 6) > 0, np.inf, 1.0))
    assert why_not_prune(pairs, query(8, value="cost")) is None
    assert why_not_prune(pairs, query(8)) is None is why_not_prune(pairs, query(8, value="divergence"))
    pairs.reach = (1.0, 1.0)
    assert "forbidden" in why_not_prune(pairs, query(8))
    pairs.C = cost
    assert why_not_prune(pairs, query(8)) is None is why_not_prune(pairs, query(8, value="divergence"))
    for value in ("cost", "entropic_cost"):
        assert "with 'reach'" in why_not_prune(pairs, query(8, value=value))


@pytest.mark.parametrize("forbid", [False, True])
def test_bounds_of_a_search_allow_for_the_tolerance_once(forbid):
    rng = np.random.default_rng(0)
    A, B, C = 2 * rng.dirichlet(np.ones(5), 3), 2 * rng.dirichlet(np.ones(6), 40), rng.random((5, 6))
    if forbid:
        C[0, 1] = np.inf
    pairs = check_collections(A, B, C, eps=0.1, check=True)
    batches = PairBatches(pairs, "cost", Options(), 1024)
    corpus = SimpleNamespace(smallest=float(B.min()), centres=B[:2])
    found = Bounding(pairs, batches, corpus, query(2, value="cost"))
    assert found.sharp and found.margins is None
    assert found.missed == (pytest.approx(2 * TOL) if forbid else 0)
    want = dual.slack(pairs, 0.0 if forbid else TOL, 2.0, corpus.smallest)
    assert found.slack == pytest.approx(want, rel=1e-12, abs=0)
    rows = found.first(np.arange(1, 3))
    assert rows.missed == found.missed and (rows.by_concavity is None) == forbid
    assert rows.lower.shape == (2, 40) and rows.first == 1
    other = Bounding(pairs, batches, corpus, query(2))
    assert not other.sharp and other.missed == found.missed
    assert other.slack == pytest.approx(dual.slack(pairs, TOL, 2.0, corpus.smallest, bounded=not forbid), rel=1e-12)
    if forbid:  # a cut allows for half of what was missed times the range of its potentials
        plain = dual.RowBounds(pairs, batches, np.arange(1, 3), B[:2], True)
        g = plain.slopes
        allowed = TOL * (g.max(axis=2) - g.min(axis=2))
        np.testing.assert_allclose(rows.constant, plain.constant - allowed, rtol=1e-12)
        assert (rows.lower < plain.lower).all()


def test_bounds_of_a_search_with_prices_have_margins():
    rng = np.random.default_rng(0)
    A, B, C = rng.random((3, 5)), rng.random((40, 6)), rng.random((5, 6))
    pairs = check_collections(A, B, C, eps=0.1, check=True, reach=(0.4, 0.7))
    corpus = SimpleNamespace(smallest=float(B.min()), centres=B[:2])
    found = Bounding(pairs, PairBatches(pairs, "reg_cost", Options(), 1024), corpus, query(2))
    assert found.margins == margins(pairs, TOL, corpus.smallest) and found.slack == found.margins.slack > 0
    rows = found.first(np.arange(2))
    assert isinstance(rows, UnbalancedBounds) and rows.allowed is found.margins and not rows.sharp


def test_margins_of_unbalanced_values_term_by_term():
    masses = np.array([0.5, 2.0]), np.array([1.0, 3.0, 0.25])
    eps, (low, high), tol, smallest = 0.2, (-0.5, 1.5), 1e-4, 1e-3
    for reach in ((0.4, 0.7), (math.inf, 0.7), (0.4, math.inf)):
        for dtype in (np.float32, np.float64):
            C = SimpleNamespace(dtype=np.dtype(dtype), shape=(3, 4))
            pairs = SimpleNamespace(reach=reach, masses=masses, span=(low, high), eps=eps, C=C)
            found = margins(pairs, tol, smallest)
            most_a, most_b = np.log(2), np.log(3)
            ratio = max(most_a - np.log(0.25), most_b - np.log(0.5))
            size = 1.5 + 4 * 2.0 + min(reach) * ratio + 2 * eps * (np.log(2) + np.log(4))
            if math.inf in reach:
                log_mass = most_a if reach[0] == math.inf else most_b
            else:
                log_mass = (eps * (most_a + most_b) + reach[0] * most_a + reach[1] * most_b + 0.5 + tol * size) / (
                    eps + sum(reach)
                )
            unit = float(np.finfo(dtype).eps) / 2
            rounding = unit * ((7 + 32) * (size + eps) + 4 * 4.0 / eps)
            of_bins = eps * (1 + log_mass - np.log(smallest) + size / reach[1])
            carried = np.exp(log_mass)
            slack = carried * tol * (size + of_bins) + max(carried, 3.0) * rounding
            assert found.slack == pytest.approx(slack, rel=1e-12)
            assert found.by_potential == pytest.approx(carried * tol, rel=1e-12)
            assert found.rounding == pytest.approx(unit * 39, abs=0) and found.mass == pytest.approx(3)
    huge = SimpleNamespace(reach=(1.0, 1.0), masses=masses, span=(-1e5, 1.5), eps=eps, C=C)
    assert np.isfinite(margins(huge, tol, smallest).slack)
    assert margins(huge, 1e200, smallest).slack == dual.MOST_SLACK


@pytest.mark.parametrize("reach", [(0.4, 0.7), (None, 0.7), (0.4, None)])
def test_cuts_of_unbalanced_values(reach):
    rng = np.random.default_rng(1)
    A, B, C = rng.random((2, 5)), rng.random((20, 6)), rng.random((5, 6))
    A[0, 2] = B[3, 1] = 0
    eps, prices = 0.1, tuple(math.inf if rho is None else rho for rho in reach)
    pairs = check_collections(A, B, C, eps=eps, check=True, reach=prices)
    batches, allowed = PairBatches(pairs, "reg_cost", Options(), 1024), Margins(0.0, 0.01, 1e-3, 5.0)
    found = UnbalancedBounds(pairs, batches, np.arange(2), B[:2], allowed)
    kappa = [1.0 if rho == math.inf else rho / (rho + eps) for rho in prices]
    want = np.full((2, 20), -np.inf)

    def cut(a, f):
        g = kappa[1] * reference.softmin(C, f, a, eps, axis=0)
        gain = g if prices[1] == math.inf else -(prices[1] + eps) * np.expm1(-g / prices[1])
        slopes = gain + eps * (a.sum() - 1)
        price = a @ (f if prices[0] == math.inf else prices[0] * -np.expm1(-f / prices[0]))
        lost = 0.01 * abs(g).max() + 1e-3 * (abs(slopes).max() * 5 + abs(price))
        return price - lost, slopes

    def iterated(a, b, f, count):
        for _ in range(count):
            g = kappa[1] * reference.softmin(C, f, a, eps, axis=0)
            masses = [
                w @ (np.exp(-p / rho) if rho < math.inf else np.ones_like(p))
                for w, p, rho in ((a, f, prices[0]), (b, g, prices[1]))
            ]
            t = np.log(masses[0] / masses[1]) / (1 / prices[0] + 1 / prices[1])
            f = kappa[0] * reference.softmin(C, g - t, b, eps, axis=1)
        return f

    for k, a in enumerate(A):
        for centre in B[:2]:
            constant, slopes = cut(a, iterated(a, centre, np.zeros(5), 8))
            want[k] = np.maximum(want[k], constant + B @ slopes)
    np.testing.assert_allclose(found.lower, want, rtol=1e-9, atol=1e-12)
    assert found.potentials.shape == (2, 2, 5) and found.slopes.shape == (2, 2, 6)
    before = found.lower.copy()
    found.tighten(np.array([0, 1]), np.array([4, 3]))
    assert np.argwhere(found.lower != before).tolist() in ([[0, 4], [1, 3]], [[0, 4]], [[1, 3]])
    for k, j in ((0, 4), (1, 3)):
        best = found.slopes[k] @ B[j] + found.constant[k]
        constant, slopes = cut(A[k], iterated(A[k], B[j], found.potentials[k, best.argmax()], 2))
        assert found.lower[k, j] == pytest.approx(max(before[k, j], constant + B[j] @ slopes), rel=1e-9)
    if reach[0] is not None:  # beyond the range of exp a cut says nothing
        steep, g = found._cut(A[:1], np.full((1, 5), -1e306))
        assert np.isneginf(steep).all() and not g.any()


# ---- cuts of balanced values ---------------------------------------------------------------------------------------


def rows_of(sharp=True, used=slice(None), items=20):
    rng = np.random.default_rng(2)
    A, B, C = rng.dirichlet(np.ones(7), 3), rng.dirichlet(np.ones(6), items), rng.random((7, 6))
    mask = np.zeros(7)
    mask[used] = 1
    A = A * mask / (A * mask).sum(axis=1, keepdims=True)
    pairs = check_collections(A, B, C, eps=0.1, check=True)
    batches = PairBatches(pairs, "cost" if sharp else "reg_cost", Options(), 1024)
    return A, B, C, dual.RowBounds(pairs, batches, np.arange(3), B[:2], sharp)


@pytest.mark.parametrize("sharp", [True, False])
def test_solved_pairs_give_cuts_and_the_best_of_all_counts(sharp):
    A, B, C, found = rows_of(sharp, used=[0, 2, 3, 6])
    assert found.bins.tolist() == [0, 2, 3, 6]
    before, slopes = found.lower.copy(), found.slopes.copy()
    f = np.random.default_rng(3).normal(size=(3, 4, 7)) * 0.1
    found.add(f)
    assert found.slopes.shape == (3, 6, 6) and found.constant.shape == (3, 6)
    np.testing.assert_array_equal(found.slopes[:, :2], slopes)
    want = before
    for k, a in enumerate(A):
        for own in f[k]:
            used = a > 0
            g = (C[used] - own[used, None]).min(axis=0) if sharp else reference.softmin(C, own, a, 0.1, axis=0)
            want[k] = np.maximum(want[k], a[used] @ own[used] + B @ g)
    np.testing.assert_allclose(found.lower, want, rtol=1e-12)
    rows, columns = np.array([0, 0, 2]), np.array([3, 5, 1])
    best = found._best(found.slopes, found.constant, rows, B[columns], found.slopes)
    for k, (row, column) in enumerate(zip(rows, columns, strict=True)):
        at = (found.slopes[row] @ B[column] + found.constant[row]).argmax()
        np.testing.assert_array_equal(best[k], found.slopes[row, at])


def test_tightening_takes_two_iterations_from_the_best_cut():
    A, B, C, found = rows_of(True)
    before, cuts = found.lower.copy(), (found.slopes.copy(), found.constant.copy())
    rows, columns = np.array([0, 1, 1]), np.array([3, 5, 8])
    found.tighten(rows, columns)
    for k, j in zip(rows, columns, strict=True):
        g = cuts[0][k, (cuts[0][k] @ B[j] + cuts[1][k]).argmax()]
        for _ in range(2):
            f = reference.softmin(C, g, B[j], 0.1, axis=1)
            g = reference.softmin(C, f, A[k], 0.1, axis=0)
        f = (C - g).min(axis=1)
        g = (C - f[:, None]).min(axis=0)
        assert found.lower[k, j] == pytest.approx(max(before[k, j], A[k] @ f + B[j] @ g), rel=1e-12)


@pytest.mark.parametrize(("items", "count"), [(3, 1), (31, 1), (32, 2), (600, 32)])
def test_how_many_prototypes_there_are(items, count):
    B = np.random.default_rng(8).dirichlet(np.ones(4), items)
    found = dual.prototypes(B, np.arange(4), np)
    assert found.shape == (count, 4)
    if count == 1:
        np.testing.assert_allclose(found[0], B.mean(axis=0), rtol=1e-13)


def test_starts_of_bounds_by_concavity():
    rng = np.random.default_rng(4)
    A, B, C = rng.dirichlet(np.ones(5), 2), rng.dirichlet(np.ones(6), 20), rng.random((5, 6))
    pairs = check_collections(A, B, C, eps=0.1, check=True)
    batches = PairBatches(pairs, "cost", Options(), 1024)
    found = dual.RowBounds(pairs, batches, np.arange(2), B[:3], True, 1e-9)
    assert found.starts.dtype == found.scalings.dtype == np.float32 and found.starts.shape == (2, 3, 6)
    for k, a in enumerate(A):
        for r, centre in enumerate(B[:3]):
            f = np.zeros(5)
            for _ in range(8):  # fewer than where the transport cost alone rules pairs out
                f = reference.softmin(C, reference.softmin(C, f, a, 0.1, axis=0), centre, 0.1, axis=1)
            want = reference.softmin(C, f, a, 0.1, axis=0) / 0.1
            np.testing.assert_allclose(found.starts[k, r], want, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found.scalings[k, r], np.exp(want - want.max()), rtol=1e-4)
    assert dual.RowBounds(pairs, batches, np.arange(2), B[:3], True).by_concavity is None
    assert dual.RowBounds(pairs, batches, np.arange(2), B[:3], False, 1e-9).by_concavity is None


# ---- bounds by concavity -------------------------------------------------------------------------------------------


def both_sides(K=4, seed=5):
    rng = np.random.default_rng(seed)
    a, b, C = rng.dirichlet(np.ones(5), K), rng.dirichlet(np.ones(6), K), 3 * rng.random((5, 6))
    a[0, 1] = b[1, 2] = 0
    return a / a.sum(axis=1, keepdims=True), b / b.sum(axis=1, keepdims=True), C


def test_the_lower_half_is_the_dual_value():
    a, b, C = both_sides()
    found = concavity.ConcavityBounds(np, C + 7, 0.5, 0.0)
    assert found.lowest == pytest.approx((C + 7).min())
    E = (C - C.min()) / 0.5
    V = np.random.default_rng(6).random((6, 4))
    for t in (1.5, 1.1):
        below = found._below(t, a.T, b.T, V)
        for k in range(4):
            sums = np.exp(-t * E) @ V[:, k]
            columns = np.exp(-t * E).T @ (a[k] / sums)
            assert below[k] == pytest.approx(-a[k] @ np.log(sums) - b[k] @ np.log(columns), rel=1e-13)


def test_the_upper_half_is_the_value_of_a_plan_or_more():
    """The plan of the scalings with its columns cut, and a product of what is lacking: by its terms."""
    a, b, C = both_sides()
    found = concavity.ConcavityBounds(np, C, 0.5, 0.0)
    E = (C - C.min()) / 0.5
    K = np.exp(-E)
    V = b.T * np.exp(0.3 * np.random.default_rng(7).normal(size=(6, 4)))
    above, log_V = found._above(a.T.copy(), b.T.copy(), V.copy())
    for k in range(4):
        U = a[k] / (K @ V[:, k])
        cut = np.minimum(V[:, k], b[k] / (K.T @ U))
        P = U[:, None] * K * cut
        used, some = b[k] > 0, P > 0
        np.testing.assert_allclose(log_V[used, k], np.log(cut[used] / b[k][used]), rtol=1e-10, atol=1e-13)
        value = (P * E).sum() + (P[some] * np.log(P[some] / np.outer(a[k], b[k])[some])).sum()
        no_row, no_column = a[k] - P.sum(axis=1), b[k] - P.sum(axis=0)
        lacking = no_column.sum()
        value += no_row @ E @ no_column / lacking
        shares = (no_column[used] ** 2 / b[k][used]).sum() / lacking
        shares *= (no_row[a[k] > 0] ** 2 / a[k][a[k] > 0]).sum() / lacking
        value += lacking * np.log(shares / lacking**2) - (1 - lacking) * np.log(1 - lacking)
        assert above[k] == pytest.approx(value, rel=1e-10)


def test_a_stage_divides_what_both_halves_leave():
    a, b, C = both_sides()
    found = concavity.ConcavityBounds(np, C, 0.5, 0.0)
    narrow = a.T.astype(np.float32).copy(), b.T.astype(np.float32).copy()
    V = narrow[1] * np.float32(1.1)
    for stage in (concavity.Stage(3, 1.5, 2, np.float64), concavity.Stage(3, 1.5, 1, np.float32)):
        weights = (a.T.copy(), b.T.copy()) if stage.dtype == np.float64 else narrow
        above, log_V = found._above(*(w.copy() for w in weights), V.astype(stage.dtype))
        start = np.exp((1.5 * log_V).astype(np.float32)) * narrow[1]
        _, then = found._iterate(1.5, *narrow, None, start, stage.at_smaller)
        below = found._below(1.5, *(w.copy() for w in weights), then.astype(stage.dtype))
        unit = float(np.finfo(stage.dtype).eps) / 2
        largest = (C.max() - C.min()) / 0.5
        rounding = unit * (11 + 32) * (largest + 4 * concavity.LARGEST_LOG) * 2.5
        want = ((below - above).astype(float) - rounding) / 0.5
        found_bound = found._bound(stage, tuple(w.copy() for w in weights), V.copy(), narrow)
        np.testing.assert_allclose(found_bound, want, rtol=1e-6)
        assert stage.sensitivity == pytest.approx(2.5)
    assert concavity.Stage(1, 1.1, 1, None).sensitivity == pytest.approx(2.1 / 0.2)


def test_iterations_are_over_relaxed_but_for_the_first():
    a, b, C = both_sides()
    found = concavity.ConcavityBounds(np, C, 0.5, 0.0)
    narrow = a.T.astype(np.float32).copy(), b.T.astype(np.float32).copy()
    K = np.exp(-1.5 * (C - C.min()) / 0.5)
    U, V = None, narrow[1].astype(float)
    for _ in range(3):
        plain = a.T / (K @ V)
        U = plain if U is None else overrelaxed(np, U, plain, concavity.OMEGA - 1)
        V = overrelaxed(np, V, b.T / (K.T @ U), concavity.OMEGA - 1)
    for count, begun in ((3, None),):
        u, v = found._iterate(1.5, *narrow, begun, narrow[1].copy(), count)
        np.testing.assert_allclose(u, U, rtol=1e-5)
        np.testing.assert_allclose(v, V, rtol=1e-5)
    u, v = found._iterate(1.5, *narrow, None, narrow[1].copy(), 1)
    u, v = found._iterate(1.5, *narrow, u, v, 2)
    np.testing.assert_allclose(v, V, rtol=1e-5)


def test_rows_of_bounds_by_concavity_are_those_of_their_costs():
    a, b, C = both_sides()
    found = concavity.ConcavityBounds(np, C, 0.5, 1e-3)
    some = found.at(np.array([0, 3, 4]))
    assert some.C[np.float64].shape == (3, 6) and some.K[1.0, np.float32].shape == (3, 6)
    np.testing.assert_allclose(some.K[1.5, np.float64], np.exp(-1.5 * (C - C.min()) / 0.5)[[0, 3, 4]], rtol=1e-13)
    assert (some.eps, some.slack, some.lowest) == (0.5, 1e-3, C.min()) and some.roundings == found.roundings
    tiny = concavity.ConcavityBounds(np, np.array([[0.0, 88.0], [44.0, 0.0]]), 1.0, 0.0)
    assert tiny.K[1.0, np.float32][0, 1] == 0 < tiny.K[1.0, np.float64][0, 1]  # no denormals
    start = np.ones((4, 6), np.float32)
    whole = found.bounds(a, b, start, np.full(4, np.inf))
    scaled = found.bounds(3 * a, 3 * b, start, np.full(4, np.inf))
    np.testing.assert_allclose(scaled + 10.5e-3, 3 * (whole + 10.5e-3), rtol=1e-6)  # the slack is not one of mass 1
    exact = [reference.optimum(p, q, C, 0.5).cost for p, q in zip(a, b, strict=True)]
    assert (whole <= exact).all()
