"""scripts/examples/recipes.py: its losses by hand, its table, and that it trains."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "examples").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
sys.path.insert(0, str(SCRIPTS))

from examples import recipes  # noqa: E402

RECIPES = {(recipe.name, recipe.eps): recipe for recipe in recipes.RECIPES}


def test_labels_that_are_one_class_leave_one_plan():
    """Costs are then linear in the probabilities, whatever eps is, and entropies are those of the probabilities."""
    scores = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    labels = torch.tensor([0, 3, 9, 4, 4, 1])
    q = scores.softmax(dim=1)
    cost = float((q * (torch.arange(10) - labels[:, None]).abs() / 9).sum(dim=1).mean())
    crossed = float(-q[range(6), labels].log().mean())
    entropy = float(-(q * q.log()).sum(dim=1).mean())
    expected = {
        ("cross-entropy", None): crossed,
        ("`cost` alone", 0.01): cost,
        ("`cost` alone", 0.1): cost,
        ("`reg_cost` alone", 0.1): cost,
        ("`cost`, and 0.1 cross-entropy", 0.1): cost + 0.1 * crossed,
        ("`reg_cost`, and 0.1 cross-entropy", 0.1): cost + 0.1 * crossed,
        ("`entropic_cost` alone", 0.1): cost - 0.1 * entropy,
    }
    for key, value in expected.items():
        assert float(recipes.loss_of(RECIPES[key], scores, labels)) == pytest.approx(value, rel=1e-4), key
    certain = 100 * torch.nn.functional.one_hot(labels, 10).float()
    divergence = RECIPES["Sinkhorn divergence alone", 1.0]
    assert abs(float(recipes.loss_of(divergence, certain, labels))) < 1e-5
    assert float(recipes.loss_of(divergence, scores, labels)) > 0.1


def test_cross_entropy_learns_and_a_cost_alone_learns_less():
    data = recipes.draw_data(0)
    assert [len(part) for part in data] == [500, 500, 1297, 1297]
    accuracy = {
        key: recipes.train(RECIPES[key], data, 60, 0) for key in (("cross-entropy", None), ("`cost` alone", 0.1))
    }
    assert accuracy["cross-entropy", None] > 0.85
    assert accuracy["`cost` alone", 0.1] < accuracy["cross-entropy", None] - 0.2


def test_the_table_has_a_row_for_each_recipe(capsys):
    assert recipes.main(["--draws", "1", "--steps", "1"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(recipes.RECIPES)
    assert all(0 <= float(row[2].rstrip(" |")) <= 1 for row in rows[1:])
    assert recipes.main(["--steps", "0"]) == 2
    assert capsys.readouterr().err == "recipes: --draws and --steps must be at least 1\n"
