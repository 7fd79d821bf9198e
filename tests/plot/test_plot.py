"""cusink.plot: what is drawn is what was given, and bad input is refused in one line."""

import subprocess
import sys

import numpy as np
import pytest

import cusink

plot = pytest.importorskip("cusink.plot", exc_type=ImportError)


@pytest.fixture(autouse=True)
def _closed():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def test_a_new_figure_is_one_that_notebooks_show():
    import matplotlib.pyplot as plt

    ax = plot.plan(np.eye(2))
    assert plt.get_fignums() == [ax.figure.number]
    plot.plan(np.eye(2), ax=ax)
    plot.contact_sheet(np.ones((1, 2, 2)), np.ones((1, 2, 2)), [[0]])
    assert len(plt.get_fignums()) == 2


@pytest.fixture
def problem(xp):
    """Arrays of a small problem between points of the plane, of either library, and its result."""
    rng = np.random.default_rng(0)
    x, y = xp(rng.random((4, 2))), xp(rng.random((6, 2)))
    a, b = xp([0.1, 0.2, 0.3, 0.4]), xp(rng.dirichlet(np.ones(6)))
    return a, b, x, y, cusink.sinkhorn(a, b, cusink.cost_matrix(x, y), eps=0.1)


def written(ax):
    """All words in the axes; drawing them raises what is wrong with the picture."""
    ax.figure.canvas.draw()
    return [text.get_text() for text in ax.texts]


# Plans


def test_the_heat_map_is_the_plan_with_its_marginals_beside_it(xp, problem):
    a, b, _, _, result = problem
    from_result, from_array = plot.plan(result), plot.plan(result.plan())
    for ax in (from_result, from_array):
        ax.figure.canvas.draw()
        (mesh,) = ax.collections
        np.testing.assert_array_equal(mesh.get_array(), xp.numpy(result.plan()))
        assert ax.get_xlim() == (-0.5, 5.5) and ax.get_ylim() == (3.5, -0.5)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("target", "source")
    source, target = from_result.child_axes
    for side, weights, axis in ((source, a, 0), (target, b, 1)):
        outline = side.collections[0].get_paths()[0].vertices
        np.testing.assert_allclose(np.unique(outline[:, axis]), np.unique([0, *xp.numpy(weights)]), atol=1e-6)


def test_positions_place_the_bins():
    ax = plot.plan(np.eye(3), x=[0.0, 1.0, 3.0], y=[10.0, 20.0, 30.0], vmax=2.0)
    corners = ax.collections[0].get_coordinates()
    np.testing.assert_array_equal(corners[:, 0, 1], [-0.5, 0.5, 2.0, 4.0])
    np.testing.assert_array_equal(corners[0, :, 0], [5.0, 15.0, 25.0, 35.0])
    assert ax.collections[0].get_clim() == (0, 2)


def test_a_plan_can_be_drawn_into_given_axes_and_with_another_norm():
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert plot.plan([[0.5], [0.5]], ax=ax, norm=PowerNorm(0.5, vmin=0, vmax=1), cmap="magma") is ax
    ax.figure.canvas.draw()
    assert isinstance(ax.collections[0].norm, PowerNorm)


# Lines


def test_lines_join_the_pairs_that_carry_mass_and_are_as_wide_as_it(xp, problem):
    a, b, x, y, result = problem
    ax = plot.transport_lines(result, x, y, least=0.2, linewidth=2.0)
    ax.figure.canvas.draw()
    P, x, y = (xp.numpy(array) for array in (result.plan(), x, y))
    lines, *dots = ax.collections
    drawn = {tuple(map(tuple, segment)) for segment in lines.get_segments()}
    wanted = np.argwhere(P >= 0.2 * P.sum(axis=1, keepdims=True))
    assert drawn == {(tuple(x[i]), tuple(y[j])) for i, j in wanted} and len(drawn) < P.size
    widths = dict(zip((tuple(map(tuple, s)) for s in lines.get_segments()), lines.get_linewidths(), strict=True))
    i, j = np.unravel_index(P.argmax(), P.shape)
    assert widths[tuple(x[i]), tuple(y[j])] == pytest.approx(2.0 * min(4 * P[i, j], 1)) == max(widths.values())
    for scatter, weights in zip(dots, (a, b), strict=True):
        weights = xp.numpy(weights)
        np.testing.assert_allclose(scatter.get_sizes(), 36 * len(weights) * weights, rtol=1e-5)
    assert [dot.get_label() for dot in dots] == ["source", "target"]


def test_lines_alone_and_a_plan_of_nothing():
    assert len(plot.transport_lines(np.eye(2), np.eye(2), -np.eye(2), size=0).collections) == 1
    ax = plot.transport_lines(np.zeros((2, 2)), np.eye(2), -np.eye(2))
    ax.figure.canvas.draw()
    assert len(ax.collections[0].get_segments()) == 0


# Contact sheets


def test_a_sheet_shows_the_images_of_the_indices_and_marks_them(xp):
    rng = np.random.default_rng(0)
    queries, corpus = rng.random((2, 6)), rng.random((5, 6))
    indices = np.array([[4, 0, 2], [1, 3, 0]])
    ax = plot.contact_sheet(
        xp(queries),
        xp(corpus),
        xp(indices),
        distances=xp(np.array([[0.5, 1.25, 2.0], [0.0, 3.0, 4.0]])),
        query_labels=["sun", "moon"],
        corpus_labels=np.array(["moon", "moon", "sun", "star", "sun"]),
        shape=(2, 3),
        title="Title",
        subtitle="Subtitle",
        footnote="Footnote",
    )
    words = written(ax)
    shown = np.concatenate([[queries[row], *corpus[index]] for row, index in enumerate(indices)])
    for image, wanted in zip(ax.images, shown, strict=True):
        np.testing.assert_allclose(image.get_array(), wanted.reshape(2, 3) / wanted.max())
    check, cross = "\N{CHECK MARK}", "\N{MULTIPLICATION X}"
    marks = [word for word in words if word[0] in check + cross]
    assert marks == [check, f"{cross} moon", check, check, f"{cross} star", check]
    assert {"0.5", "1.25", "2", "0", "3", "4", "query", "Title", "Subtitle", "Footnote"} <= set(words)
    assert any("nearest of 5 images" in word for word in words)


def test_colour_images_and_images_of_nothing():
    colours = np.random.default_rng(0).random((3, 4, 4, 3))
    ax = plot.contact_sheet(colours[:1], colours, [[0, 2]], heading="alike")
    assert "alike" in written(ax)
    np.testing.assert_array_equal(ax.images[2].get_array(), colours[2])
    ax = plot.contact_sheet(np.zeros((1, 2, 2)), np.ones((1, 2, 2)), [[0]])
    assert ax.images[0].get_array().max() == 0 and ax.images[1].get_array().min() == 1


# Convergence


def test_a_curve_is_the_history_of_the_callback():
    C, history = cusink.cost_matrix(np.linspace(0, 1, 8)), []
    a, b = np.random.default_rng(0).dirichlet(np.ones(8), size=(2, 3))
    cusink.sinkhorn(a, b, C, eps=0.01, callback=lambda *check: history.append(check))
    ax = plot.convergence(history, tol=1e-6, label="three problems")
    plot.convergence([(1, 0.5), (2, np.inf), (3, 0.0)], label="one", ax=ax, tol=1e-6)
    assert written(ax) == ["tol = 1e-06"] and ax.get_yscale() == "log"
    curves = [line for line in ax.lines if len(line.get_xdata()) == len(history)]
    for k, curve in enumerate(curves[:3]):
        np.testing.assert_array_equal(curve.get_ydata(), [error[k] for _, error in history])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["three problems", "one"]
    colours = [line.get_color() for line in ax.lines if line.get_label() in ("three problems", "one")]
    assert len(set(colours)) == 2


def test_many_problems_are_a_median_with_shades():
    errors = np.random.default_rng(0).random((6, 40))
    errors[3] = np.inf
    ax = plot.convergence(list(enumerate(errors)))
    ax.figure.canvas.draw()
    (median,) = (line for line in ax.lines if len(line.get_xdata()))
    keep = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(median.get_xdata(), keep)
    np.testing.assert_allclose(median.get_ydata(), np.median(errors[keep], axis=1))
    assert len(ax.collections) == 2
    plot.convergence(list(enumerate(errors)), label="again", ax=ax)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["again", "all problems", "half of the problems"]


def test_two_tolerances_are_two_lines():
    ax = plot.convergence([(1, 0.5), (2, 0.1)], tol=1e-6)
    for tol in (1e-6, 1e-3, 1e-3):
        plot.convergence([(1, 0.4), (2, 0.2)], tol=tol, ax=ax)
    assert written(ax) == ["tol = 1e-06", "tol = 0.001"] and ax.get_legend() is None


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: plot.plan(np.ones(3)), ValueError, r"'P' must be a matrix.*\(3,\)"),
        (lambda: plot.plan([[np.nan]]), ValueError, "'P' must be finite"),
        (lambda: plot.plan(batch()), TypeError, r"one of 2\. Pass one plan: result.plan\(\)\[k\]"),
        (lambda: plot.plan(np.eye(2), x=[0.0]), ValueError, r"'x' must have shape \(2,\)"),
        (lambda: plot.plan(np.eye(2), y=[1.0, 0.0]), ValueError, "'y' must increase"),
        (lambda: plot.transport_lines(np.eye(2), np.ones((2, 3)), np.eye(2)), ValueError, r"'x'.*\(2, 2\)"),
        (lambda: sheet(queries=np.ones((1, 5))), ValueError, r"rows of 5 numbers.*shape=\(height, width\)"),
        (lambda: sheet(corpus=np.ones((2, 2, 2, 2))), ValueError, r"'corpus' must have shape.*\(2, 2, 2, 2\)"),
        (lambda: sheet(indices=[[0], [0]]), ValueError, r"'indices'.*\(1, k\).*\(2, 1\)"),
        (lambda: sheet(indices=[[0.0]]), ValueError, "'indices' must be whole numbers"),
        (lambda: sheet(indices=[[2]]), ValueError, "'indices' must be from 0 to 1; got 2 to 2"),
        (lambda: sheet(distances=[[1.0, 2.0]]), ValueError, r"'distances' must have shape \(1, 1\)"),
        (lambda: sheet(query_labels="ab"), ValueError, "'query_labels' must have length 1"),
        (lambda: sheet(corpus_labels="a"), ValueError, "'corpus_labels' must have length 2"),
        (lambda: plot.convergence([]), ValueError, "'history' must hold at least one"),
        (lambda: plot.convergence([(1, [0.5]), (2, [0.5, 0.2])]), ValueError, "'history'.*same problems"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def batch():
    return cusink.sinkhorn(np.eye(2), np.eye(2), np.ones((2, 2)), eps=1.0)


def sheet(queries=np.ones((1, 4)), corpus=np.ones((2, 4)), indices=((0,),), **options):  # noqa: B008, read only
    return plot.contact_sheet(queries, corpus, np.array(indices), **options)


def test_without_matplotlib_the_error_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; import cusink.plot"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ImportError: cusink.plot needs matplotlib: pip install matplotlib"
