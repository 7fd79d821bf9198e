"""What prunes a search: prototypes, cuts, their slack and their memory, each by a definition of its own."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference

import cusink
from cusink.convergence.options import Options
from cusink.retrieval import bounds as retrieval_bounds
from cusink.retrieval.batches import PairBatches
from cusink.retrieval.collections import check_collections
from cusink.retrieval.facts import DIGEST_BYTES
from cusink.retrieval.ranking import Duplicates, rank_within, smallest_per_row

EPS = 0.1


def clustered(clusters=3, each=20, bins=12, spread=0.05, seed=0):
    """Histograms in a few tight groups, each about a histogram that is far from the others."""
    rng = np.random.default_rng(seed)
    middle = np.repeat(np.eye(clusters, bins) * 4 + 0.2, each, axis=0)
    rows = middle * np.exp(spread * rng.normal(size=middle.shape))
    return rows / rows.sum(axis=1, keepdims=True)


def made(A, B, C, value="cost", eps=EPS):
    pairs = check_collections(A, B, C, eps=eps, check=True)
    return pairs, PairBatches(pairs, value, Options(), 1024)


def prototypes(pairs, batches):
    return retrieval_bounds.prototypes(pairs.B, batches.columns, pairs.xp)


def test_prototypes_are_the_means_of_clusters():
    B = clustered()[np.random.default_rng(1).permutation(60)]
    pairs, batches = made(B[:2], B, 1 - np.eye(12))
    found = prototypes(pairs, batches)
    assert found.shape == (60 // 16, 12)
    top = B.argmax(axis=1)
    want = np.array([B[top == k].mean(axis=0) for k in range(3)])
    # From where they start, two of them may share a cluster; those that have one each are its mean.
    for centre in found:
        near = want[np.abs(want - centre).sum(axis=1).argmin()]
        members = B[top == near.argmax()]
        assert np.abs(centre - near).max() <= np.abs(members - near).max()
    energy = ((B[:, None] - found) ** 2).sum(axis=2).min(axis=1).sum()
    start = B[np.linspace(0, 59, 3).astype(int)]
    assert energy < 0.7 * ((B[:, None] - start) ** 2).sum(axis=2).min(axis=1).sum()


@pytest.mark.parametrize("seed", range(3))
def test_prototypes_are_where_k_means_ends_after_five_rounds(seed):
    B = np.random.default_rng(seed).dirichlet(np.ones(6), 70)
    pairs, batches = made(B[:2], B, 1 - np.eye(6))
    centres = B[np.linspace(0, 69, 4).astype(int)].copy()
    for _ in range(5):
        nearest = ((B[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        for k in range(4):
            if (nearest == k).any():
                centres[k] = B[nearest == k].mean(axis=0)
    np.testing.assert_allclose(prototypes(pairs, batches), centres, rtol=1e-12)
    wide = np.insert(B, [2, 6], 0, axis=1)  # they are on the bins in use
    pairs, batches = made(wide[:2], wide, 1 - np.eye(8))
    assert batches.columns.tolist() == [0, 1, 3, 4, 5, 6]
    np.testing.assert_allclose(prototypes(pairs, batches), centres, rtol=1e-12)


def test_a_prototype_without_items_stays_and_one_with_a_single_item_is_that_item():
    B = np.repeat(np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]), [63, 1], axis=0)
    pairs, batches = made(B[:2], B, 1 - np.eye(3))
    found = prototypes(pairs, batches)
    np.testing.assert_allclose(found, B[[0, 21, 42, 63]], rtol=1e-14)


def test_a_cluster_that_shrinks_to_one_item_has_that_item_for_a_prototype():
    share = np.array([0.0] * 30 + [1.0, 0.3])  # the last item starts a cluster with the one before, and then leaves it
    B = np.stack([share, 1 - share], axis=1)
    pairs, batches = made(B[:2], B, 1 - np.eye(2))
    np.testing.assert_allclose(prototypes(pairs, batches)[:, 0], [0.3 / 31, 1.0], rtol=1e-13)


@pytest.mark.parametrize("sharp", [True, False])
def test_the_first_cuts_are_those_of_some_iterations_with_each_prototype(sharp):
    rng = np.random.default_rng(2)
    A, B, C = rng.dirichlet(np.ones(7), 2), rng.dirichlet(np.ones(7), 40), rng.random((7, 7))
    pairs, batches = made(A, B, C, "cost" if sharp else "reg_cost")
    centres = prototypes(pairs, batches)
    bounds = retrieval_bounds.RowBounds(pairs, batches, np.arange(2), centres, sharp)
    want = np.full((2, 40), -np.inf)
    for row, a in enumerate(A):
        for centre in centres:
            f = np.zeros(7)
            for _ in range(16 if sharp else 8):
                g = reference.softmin(C, f, a, EPS, axis=0)
                f = reference.softmin(C, g, centre, EPS, axis=1)
            g = (C - f[:, None]).min(axis=0) if sharp else reference.softmin(C, f, a, EPS, axis=0)
            want[row] = np.maximum(want[row], a @ f + B @ g)
    np.testing.assert_allclose(bounds.lower, want, rtol=1e-12)
    before = bounds.lower.copy()
    bounds.tighten(np.array([0, 0, 1]), np.array([3, 8, 5]))
    changed = np.argwhere(bounds.lower != before).tolist()
    assert changed == [[0, 3], [0, 8], [1, 5]]
    for row, column in changed:  # two iterations on, from the best cut of the pair
        exact = reference.optimum(A[row], B[column], C, EPS).reg_cost
        if not sharp:
            assert exact - 0.3 * (exact - before[row, column]) <= bounds.lower[row, column] <= exact + 1e-12
    bounds.close(np.array([1]), np.array([6]))
    assert bounds.lower[1, 6] == np.inf and np.isinf(bounds.lower).sum() == 1


def test_the_slack_is_what_tolerance_and_rounding_can_take():
    """By its definition, term by term."""
    for span, mass, smallest, dtype in (((-3.0, 2.0), 5.0, 1e-4, np.float32), ((0.5, 4.0), 0.2, 0.01, np.float64)):
        pairs = SimpleNamespace(span=span, eps=0.25, C=SimpleNamespace(shape=(10, 20), dtype=np.dtype(dtype)))
        unit = 2.0 ** (-24 if dtype == np.float32 else -53)
        width, size = span[1] - span[0], max(map(abs, span))
        of_tol = 0.01 * (width + 0.25 * (1 + math.log(mass / smallest)))
        of_sums = unit * (30 + 32) * (4 * size + 2 * 0.25 * abs(math.log(mass)) + 0.25)
        of_exponents = unit * 4 * width**2 / 0.25
        found = retrieval_bounds.slack(pairs, 0.01, mass, smallest)
        assert found == pytest.approx(mass * (of_tol + of_sums + of_exponents), rel=1e-12)
        # Without a tolerance all of it is rounding, which the tolerance must not hide here.
        found = retrieval_bounds.slack(pairs, 0.0, mass, smallest)
        assert found == pytest.approx(mass * (of_sums + of_exponents), rel=1e-9)


def test_entropies_and_memory():
    A, B = clustered(bins=8)[:5], clustered(bins=8, seed=3)
    B[:, 7] = 0
    pairs, batches = made(A, B / B.sum(axis=1, keepdims=True), 1 - np.eye(8))
    for side, items in ((pairs.A, A), (pairs.B, B / B.sum(axis=1, keepdims=True))):
        want = -np.where(items > 0, items * np.log(np.where(items > 0, items, 1)), 0).sum(axis=1)
        np.testing.assert_allclose(retrieval_bounds.entropies(side, pairs.C), want, rtol=1e-13)
        np.testing.assert_allclose(retrieval_bounds.entropies(side, pairs.C, 3), want[3:], rtol=1e-13)
    fixed, per_row = retrieval_bounds.bytes_needed(pairs, 5)
    # A block of columns and what is made of it; of a row: what is known of its pairs, and cuts of f and g.
    assert fixed == 4 * 60 * pairs.C.shape[1] * 8
    assert per_row == 48 * 60 + 8 * (60 // 16 + 5) * sum(pairs.C.shape) * 8


# ---- ranks, and equal items ----------------------------------------------------------------------------------------


def test_ranks_within_groups_and_the_smallest_of_each_row():
    assert rank_within(np.array([0, 0, 0, 4, 4, 7])).tolist() == [0, 1, 2, 0, 1, 0]
    assert rank_within(np.array([], int)).tolist() == []
    rows, columns = np.array([1, 0, 1, 1, 0]), np.array([5, 9, 2, 7, 3])
    found = smallest_per_row(np.array([0.5, 1.0, 0.5, 0.1, 2.0]), rows, columns, 2)
    assert [x.tolist() for x in found] == [[0, 0, 1, 1], [9, 3, 7, 2]]
    found = smallest_per_row(np.array([0.5, 1.0, 0.5, 0.1, 2.0]), rows, columns, np.array([1, 3]))  # each row its own
    assert [x.tolist() for x in found] == [[0, 1, 1, 1], [9, 7, 2, 5]]


def duplicates(pairs):
    return Duplicates(np.frombuffer(b"".join(pairs.digests(1)), np.uint8).reshape(-1, DIGEST_BYTES))


def test_equal_items_are_found_and_get_one_value():
    B = np.array([[1, 0], [0, 1], [1, 0], [0.5, 0.5], [0, 1], [1, 0]], float)
    pairs, _ = made(B[:1], B, 1 - np.eye(2))
    same = duplicates(pairs)
    assert same.any and same.first.tolist() == [0, 1, 0, 3, 1, 0] and same.size.tolist() == [3, 2, 0, 1, 0, 0]
    which, items = same.of(np.array([1, 3, 0]))
    assert which.tolist() == [0, 0, 1, 2, 2, 2] and items.tolist() == [1, 4, 3, 0, 2, 5]
    seen, whole = {}, np.arange(12.0).reshape(2, 6)
    for columns in (slice(0, 3), slice(3, 6)):  # in two tiles
        same.repeat(columns, [whole[:, columns]], seen)
    np.testing.assert_array_equal(whole, [[0, 1, 0, 3, 1, 0], [6, 7, 6, 9, 7, 6]])
    assert not duplicates(made(B[:1], B[[0, 1, 3]], 1 - np.eye(2))[0]).any
    # Zero bytes count, wherever they are.
    digests = np.array([[0, 1, 0], [0, 1, 2], [1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]], np.uint8)
    assert Duplicates(digests).first.tolist() == [0, 1, 2, 3, 4, 0]


def test_most_pairs_are_spared_where_items_lie_in_clusters():
    """The quality of the bounds is their use: a bound that held but was loose would solve more."""
    B = clustered(4, 40, 12, 0.3)
    A = clustered(4, 2, 12, 0.3, seed=9)
    points = np.arange(12.0)
    found = cusink.nearest(A, B, np.abs(points[:, None] - points), k=2, eps=0.5, full_output=True)
    assert found.finished < 0.4 * found.bounded
