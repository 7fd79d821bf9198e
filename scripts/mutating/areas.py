"""What is mutated, and which tests are asked about it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutating import cuda, python
from mutating.mutant import Mutant


class Tests(NamedTuple):
    """Arguments of pytest: those that answer within seconds, and those that are asked if these find nothing."""

    quick: tuple[str, ...]
    thorough: tuple[str, ...]


AREAS: dict[str, tuple[str, ...]] = {
    "solver": ("cusink/solver/*.py", "cusink/solver/pairs/*.py", "cusink/convergence/*.py"),
    "certificate": (
        "cusink/backends/numpy/certificate.py",
        "cusink/backends/ranges.py",
        "cusink/costs/exponentials.py",
        "cusink/costs/heap.py",
    ),
    "gradients": ("cusink/gradients/*.py",),
    "bounds": (
        "cusink/retrieval/bounds.py",
        "cusink/retrieval/concavity.py",
        "cusink/retrieval/unbalanced_bounds.py",
        "cusink/retrieval/bounding.py",
        "cusink/retrieval/search.py",
        "cusink/retrieval/ranking.py",
    ),
    "grids": (
        "cusink/backends/numpy/cells.py",
        "cusink/backends/numpy/shifts.py",
        "cusink/backends/cupy/grid_logs.py",
        "cusink/backends/cupy/grid_passes.py",
    ),
    "kernels": ("kernels/*.cu", "kernels/*.cuh"),
}

# Fast, and of every kind; the order is that in which they fail most often.
_SOLVED = (
    "tests/solver/test_stopping.py",
    "tests/truth/test_equal_rows.py",
    "-k",
    "not twice_the_plain and not max_iter_is_kept and not cuda",
)
_FIXED = ("tests/solver/test_properties.py", "-k", "oracle or loop or swapping or marginals")
# One dtype: a mutant of a template is in both.
_REDUCTIONS = "tests/kernels/test_reductions.py"
_REDUCED = (_REDUCTIONS, "-k", "test_reduction and float32 or where_a_cost_lies")
_ITERATED = (
    "tests/backends/cupy/test_operators.py",
    "-k",
    "(any_launch or oracle and zero) and float32 or checks_on_the",
)
_LOOP = ("tests/solver/test_loop_pieces.py", "tests/solver/test_loop.py")
_AROUND = "tests/solver/test_checks_and_values.py"
_PAIRS = Tests(("tests/solver/test_pair_pieces.py", "tests/solver/test_pairs.py"), ())
_DIVERGENCES_RAGGED = ("tests/backends/cupy/test_ragged_divergences.py",)
_SOLVED_RAGGED = Tests(("tests/backends/cupy/test_ragged.py",), _DIVERGENCES_RAGGED)
_RAGGED = Tests(("tests/backends/cupy/test_ragged_gradients.py",), ("tests/backends/cupy/test_ragged.py",))
_OF_GRADIENTS = "tests/gradients/test_gradient_pieces.py"
_WITHOUT_CUPY = ("-k", "not cupy and not memory")
_SECOND_ORDER = Tests((_OF_GRADIENTS, "tests/gradients/test_second_order.py", *_WITHOUT_CUPY), ())
_FIRST_ORDER = Tests(
    (
        _OF_GRADIENTS,
        "tests/gradients/test_adjoint.py",
        "-k",
        "pieces or dense_linear or forbidden_pairs or unconverged or bad_input or shorter_side or falls_short",
    ),
    ("tests/gradients/test_adjoint.py", *_WITHOUT_CUPY),
)
_OUT_OF_REACH = Tests(("tests/gradients/test_log_shares.py", "tests/gradients/test_out_of_reach.py"), ())
_OF_MAPS = Tests((_OF_GRADIENTS, "tests/gradients/test_maps.py", *_WITHOUT_CUPY), ())
_OF_SEARCH = "tests/retrieval/test_search_pieces.py"
_SEARCHED = (
    "tests/retrieval/test_search.py",
    "tests/retrieval/test_nearest.py",
    "-k",
    "not cuda and not memory_limit",
)
_BETWEEN_POINTS = Tests(
    ("tests/backends/cupy/test_clouds.py", "-k", "agree or tensor or far_points or follow and float32"), ()
)
_LARGE = Tests(("tests/backends/cupy/test_near.py", "-k", "all_pairs or left_out or lacks"), ())
_FUSED = "tests/backends/cupy/test_fused_steps.py"
_ON_GRIDS = ("tests/backends/numpy/test_grid.py", "-k", "cupy and (follow or repeated or operators)")
_OF_SHIFTS = Tests(
    ("tests/backends/numpy/test_cells.py", "-k", "of_shifts or forms_of or certified_sum or means_are"),
    ("tests/backends/numpy/test_cells.py", "-k", "(operators or iterations) and not device"),
)
_OF_LINES = Tests(
    (_FUSED, "-k", "oracle and grid_logs and float64 or lost_digits"),
    (_FUSED, "-k", "oracle and grid_logs and float32 or for_each_axis and log or second_check and log"),
)
_SPLIT = Tests(("tests/backends/cupy/test_split_step.py", "-k", "digits or oracle and zero or log_sum or gives_up"), ())
# Every file has an entry of its own, or a new one would be asked of tests that know nothing of it.
TESTS: dict[str, Tests] = {
    "cusink/convergence/marginals.py": Tests(("tests/convergence",), _SOLVED),
    "cusink/convergence/options.py": Tests(("tests/convergence", _AROUND), _SOLVED),
    "cusink/convergence/rules.py": Tests(("tests/convergence",), _SOLVED),
    "cusink/solver/annealing.py": Tests(_LOOP, _SOLVED),
    "cusink/solver/bounds.py": Tests(
        ("tests/solver/test_bounds.py", _AROUND),
        ("tests/solver/test_unbalanced.py", "tests/solver/test_values.py", "-k", "bounds"),
    ),
    "cusink/solver/checks.py": Tests(
        (_AROUND, "tests/solver/test_loop.py", "tests/checks/test_input.py"),
        ("tests/solver/test_unbalanced.py", "tests/solver/test_sinkhorn.py", "tests/solver/test_eps.py"),
    ),
    "cusink/costs/exponentials.py": Tests(("tests/backends/numpy/test_exponentials.py",), ()),
    "cusink/costs/heap.py": Tests(("tests/backends/numpy/test_heap.py",), ()),
    "cusink/solver/balance.py": Tests(("tests/solver/test_balance.py",), ()),
    "cusink/solver/coarse.py": Tests(("tests/solver/test_loop_pieces.py",), ()),
    "cusink/solver/each.py": Tests(("tests/solver/test_loop_pieces.py", "tests/solver/test_eps.py"), ()),
    "cusink/solver/near.py": Tests(("tests/divergence/test_large_clouds.py", "-k", "values or near_potentials"), ()),
    "cusink/solver/at_once.py": Tests(("tests/backends/cupy/test_at_once.py",), ()),
    "cusink/solver/ending.py": Tests(("tests/solver/test_loop_pieces.py", "tests/solver/test_unread.py"), _LOOP),
    "cusink/solver/extension.py": Tests(("tests/solver/test_maps.py",), ()),
    "cusink/solver/form.py": Tests(("tests/solver/test_form.py",), ()),
    "cusink/solver/forbidden.py": Tests(
        ("tests/solver/test_forbidden.py",),
        ("tests/truth/test_forbidden.py", "-k", "large_number_forbids or huge_number or off_the_diagonal"),
    ),
    "cusink/solver/gap.py": Tests((_AROUND, "tests/solver/test_gap.py"), ()),
    "cusink/solver/gauge.py": Tests((_AROUND, "tests/solver/test_loop.py"), _SOLVED),
    "cusink/solver/known.py": Tests(("tests/solver/test_maps.py",), ("tests/solver/test_values.py",)),
    "cusink/solver/loop.py": Tests(_LOOP, _SOLVED),
    "cusink/solver/maps.py": Tests((_AROUND, "tests/solver/test_maps.py"), ()),
    "cusink/solver/newton.py": Tests(("tests/solver/test_newton.py",), _LOOP),
    "cusink/solver/prices.py": Tests(("tests/divergence/test_two_prices.py",), ()),
    "cusink/solver/problem.py": Tests((_AROUND, "tests/solver/test_maps.py"), ("tests/solver/test_eps.py",)),
    "cusink/solver/result.py": Tests(
        (_AROUND, "tests/solver/test_maps.py", "tests/solver/test_loop.py"),
        ("tests/solver/test_pair_pieces.py", "tests/solver/test_pairs.py"),
    ),
    "cusink/solver/semidual.py": Tests(("tests/solver/test_newton.py",), _LOOP),
    "cusink/solver/sinkhorn.py": Tests(
        (
            "tests/solver/test_loop_pieces.py",
            "tests/solver/test_unread.py",
            "tests/solver/test_pair_pieces.py",
            "tests/solver/test_gap.py",
        ),
        ("tests/solver/test_loop.py",),
    ),
    "cusink/solver/solution.py": Tests(_LOOP, ()),
    "cusink/solver/symmetric.py": Tests(
        (_AROUND, "tests/solver/test_loop.py"), ("tests/divergence/test_divergence.py",)
    ),
    "cusink/solver/unbalanced.py": Tests((_AROUND, "tests/solver/test_unbalanced.py"), ()),
    "cusink/solver/values.py": Tests(
        (_AROUND, "tests/solver/test_bounds.py", "tests/solver/test_unbalanced.py"),
        ("tests/solver/test_values.py", "-k", "definition"),
    ),
    "cusink/solver/pairs/at_once.py": _RAGGED,
    "cusink/solver/pairs/batches.py": _PAIRS,
    "cusink/solver/pairs/checks.py": _PAIRS,
    "cusink/solver/pairs/given.py": _PAIRS,
    "cusink/solver/pairs/ragged.py": _PAIRS,
    "cusink/solver/pairs/selves.py": Tests(_DIVERGENCES_RAGGED, ()),
    "cusink/solver/pairs/single.py": _PAIRS,
    "cusink/solver/pairs/solve.py": _PAIRS,
    "cusink/solver/pairs/tiles.py": _PAIRS,
    "cusink/solver/pairs/together.py": _PAIRS,
    "cusink/backends/numpy/certificate.py": Tests(("tests/backends/numpy/test_certificate.py",), _FIXED),
    "cusink/backends/ranges.py": Tests(
        ("tests/backends/numpy/test_certificate.py",),
        (_FIXED[0], _FUSED, "-k", f"properties and ({_FIXED[-1]}) or second_check and log"),
    ),
    "cusink/backends/numpy/cells.py": _OF_SHIFTS,
    "cusink/backends/numpy/shifts.py": _OF_SHIFTS,
    "cusink/backends/cupy/grid_logs.py": _OF_LINES,
    "cusink/backends/cupy/grid_passes.py": _OF_LINES,
    "cusink/gradients/adjoint.py": _FIRST_ORDER,
    "cusink/gradients/affine.py": Tests(
        ("tests/gradients/test_affine.py",), ("tests/gradients/test_second_order.py", *_WITHOUT_CUPY)
    ),
    "cusink/gradients/balanced.py": _FIRST_ORDER,
    "cusink/gradients/bins.py": _FIRST_ORDER,
    "cusink/gradients/blocks.py": _SECOND_ORDER,
    "cusink/gradients/chebyshev.py": _OUT_OF_REACH,
    "cusink/gradients/conditional.py": _OUT_OF_REACH,
    "cusink/gradients/potentials.py": _OUT_OF_REACH,
    "cusink/gradients/solution.py": _SECOND_ORDER,
    "cusink/gradients/first_bits.py": _SECOND_ORDER,
    "cusink/gradients/products.py": _SECOND_ORDER,
    "cusink/gradients/checks.py": _FIRST_ORDER,
    "cusink/gradients/curvature.py": _SECOND_ORDER,
    "cusink/gradients/envelope.py": _SECOND_ORDER,
    "cusink/gradients/at_once.py": Tests(("tests/backends/cupy/test_at_once.py", "-k", "gradients"), ()),
    "cusink/gradients/field.py": _OF_MAPS,
    "cusink/gradients/extension.py": _OF_MAPS,
    "cusink/gradients/hvp.py": _SECOND_ORDER,
    "cusink/gradients/jvp.py": _SECOND_ORDER,
    "cusink/gradients/maps.py": _OF_MAPS,
    "cusink/gradients/motion.py": _SECOND_ORDER,
    "cusink/gradients/pairs.py": Tests((_OF_GRADIENTS, "tests/solver/test_pairs.py"), ()),
    "cusink/gradients/parts.py": _FIRST_ORDER,
    "cusink/gradients/prices.py": Tests(
        (_OF_GRADIENTS, "tests/gradients/test_unbalanced.py", "-k", "pieces or prices or reach"), ()
    ),
    "cusink/gradients/ragged.py": _RAGGED,
    "cusink/gradients/shares.py": _OF_MAPS,
    "cusink/gradients/system.py": _FIRST_ORDER,
    "cusink/gradients/terms.py": _FIRST_ORDER,
    "cusink/gradients/through_plan.py": _SECOND_ORDER,
    "cusink/gradients/unbalanced.py": Tests((_OF_GRADIENTS, "tests/gradients/test_unbalanced.py"), ()),
    "cusink/retrieval/bounding.py": Tests(
        (_OF_SEARCH, "tests/retrieval/test_reach.py", "tests/retrieval/test_forbidden.py", "-k", "not documents"),
        _SEARCHED,
    ),
    "cusink/retrieval/bounds.py": Tests(
        (
            _OF_SEARCH,
            "tests/retrieval/test_bounds.py",
            "tests/retrieval/test_concavity.py",
            "tests/retrieval/test_forbidden.py",
            "-k",
            "not documents",
        ),
        _SEARCHED,
    ),
    "cusink/retrieval/concavity.py": Tests((_OF_SEARCH, "tests/retrieval/test_concavity.py"), _SEARCHED),
    "cusink/retrieval/ranking.py": Tests((_OF_SEARCH, "tests/retrieval/test_bounds.py"), _SEARCHED),
    "cusink/retrieval/search.py": Tests((_OF_SEARCH, "tests/retrieval/test_reach.py"), _SEARCHED),
    "cusink/retrieval/unbalanced_bounds.py": Tests((_OF_SEARCH, "tests/retrieval/test_reach.py"), _SEARCHED),
    "kernels/apply_plan.cu": Tests((_REDUCTIONS, "-k", "apply_plan and float32"), ()),
    "kernels/c_transform.cu": Tests((_REDUCTIONS, "-k", "c_transform and float32"), ()),
    "kernels/convergence.cuh": Tests(_ITERATED, ()),
    "kernels/cost_reduction.cuh": Tests(_REDUCED, ()),
    "kernels/documents.cu": Tests(
        ("tests/backends/cupy/test_documents.py", "-k", "float32 and values or stop_by_themselves or rounding"), ()
    ),
    "kernels/grid.cu": Tests((_FUSED, "-k", "oracle and grid.cu"), _ON_GRIDS),
    "kernels/grid_logs.cu": Tests((_FUSED, "-k", "oracle and grid_logs or lost_digits"), _ON_GRIDS),
    "kernels/grid_tiles.cuh": Tests((_FUSED, "-k", "oracle and grid and float32"), _ON_GRIDS),
    "kernels/at_once.cu": Tests(("tests/backends/cupy/test_at_once.py",), ()),
    "kernels/adjoint_held.cu": Tests(("tests/backends/cupy/test_adjoint_held.py",), ()),
    "kernels/held_kernel.cuh": Tests(("tests/backends/cupy/test_held.py",), ()),
    "kernels/held_matrix.cuh": Tests(
        ("tests/backends/cupy/test_held.py",), ("tests/backends/cupy/test_adjoint_held.py",)
    ),
    "kernels/iterate.cu": Tests(_ITERATED, ()),
    "kernels/small_problem.cuh": Tests(_ITERATED, ("tests/backends/cupy/test_held.py",)),
    "kernels/kernel_product.cu": Tests(("tests/backends/cupy/test_sums.py", "-k", "float32"), ()),
    "kernels/kernel_profile.cuh": Tests(
        ("tests/backends/cupy/test_sums.py", "-k", "float32"), ("tests/backends/cupy/test_strip_sums.py",)
    ),
    "kernels/near_points.cu": _LARGE,
    "kernels/near_tiles.cuh": _LARGE,
    "kernels/online_softmax.cuh": Tests(_REDUCED, ()),
    "kernels/marginal_system.cuh": Tests(
        ("tests/backends/cupy/test_at_once.py",), ("tests/backends/cupy/test_ragged_gradients.py", "-k", "price")
    ),
    "kernels/pair_steps.cuh": _SOLVED_RAGGED,
    "kernels/plan.cu": Tests((_REDUCTIONS, "-k", "plan and not apply_plan and float32"), ()),
    "kernels/point_pairs.cuh": Tests(
        ("tests/backends/cupy/test_sums.py", "-k", "float32"),
        (
            "tests/backends/cupy/test_sums.py",
            "tests/backends/cupy/test_clouds.py",
            "-k",
            "every_kernel and float64 or agree",
        ),
    ),
    "kernels/point_products.cu": _BETWEEN_POINTS,
    "kernels/point_products.cuh": _BETWEEN_POINTS._replace(
        thorough=("tests/backends/cupy/test_strip_sums.py", "-k", "hard_clouds")
    ),
    "kernels/point_reduction.cuh": _BETWEEN_POINTS,
    "kernels/points.cu": _BETWEEN_POINTS,
    "kernels/ragged.cu": _SOLVED_RAGGED,
    "kernels/ragged.cuh": _SOLVED_RAGGED,
    "kernels/ragged_adjoint.cu": _RAGGED,
    "kernels/ragged_course.cuh": _SOLVED_RAGGED,
    "kernels/ragged_unbalanced.cu": _SOLVED_RAGGED,
    "kernels/reduction_terms.cuh": Tests(_REDUCED, ()),
    "kernels/scaling.cu": Tests(_ITERATED, ()),
    "kernels/scaling.cuh": Tests(_ITERATED, ()),
    "kernels/damping.cuh": Tests(("tests/backends/cupy/test_fused_steps.py", "-k", "oracle and unbalanced"), ()),
    "kernels/half.cuh": _SPLIT,
    "kernels/half_parts.cuh": _SPLIT,
    "kernels/strip_products.cuh": _SPLIT,
    "kernels/split_step.cu": _SPLIT,
    "kernels/strip_sums.cu": Tests(("tests/backends/cupy/test_strip_sums.py", "-k", "not planted"), ()),
    "kernels/softmin.cu": Tests((_REDUCTIONS, "-k", "softmin and float32 or half_precision"), ()),
    "kernels/totals.cuh": Tests(("tests/backends/cupy/test_at_once.py",), ()),
    "kernels/unbalanced.cu": Tests((_FUSED, "-k", "oracle and unbalanced"), ()),
}


def tests_of(path: str) -> Tests:
    """Return the tests of a source."""
    if (tests := TESTS.get(path)) is None:
        raise LookupError(f"{path} must have an entry in TESTS of scripts/mutating/areas.py: which tests hold it?")
    return tests


def mutants(root: Path, names: list[str]) -> Iterator[Mutant]:
    """Yield every mutant of some areas."""
    for name in names:
        for pattern in AREAS[name]:
            for file in sorted(root.glob(pattern)):
                make = python.mutants if file.suffix == ".py" else cuda.mutants
                path = file.relative_to(root).as_posix()
                every = list(make(name, path, file.read_text("utf-8")))
                if every:
                    tests_of(path)  # before anything is tried
                yield from every
