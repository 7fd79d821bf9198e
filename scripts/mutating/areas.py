"""What is mutated, and which tests are asked about it."""

from collections.abc import Iterator
from fnmatch import fnmatch
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
    "certificate": ("cusink/backends/numpy/certificate.py", "cusink/backends/ranges.py"),
    "gradients": ("cusink/gradients/*.py",),
    "bounds": (
        "cusink/retrieval/bounds.py",
        "cusink/retrieval/concavity.py",
        "cusink/retrieval/unbalanced_bounds.py",
        "cusink/retrieval/bounding.py",
        "cusink/retrieval/search.py",
        "cusink/retrieval/ranking.py",
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
_SECOND_ORDER = Tests(
    ("tests/gradients/test_second_order.py", "-k", "not cupy and not memory"),
    ("tests/gradients/test_adjoint.py", "tests/solver/test_eps.py", "-k", "not cupy and not memory"),
)
# The first pattern that fits a file decides.
TESTS: dict[str, Tests] = {
    "cusink/convergence/*": Tests(("tests/convergence",), _SOLVED),
    "cusink/solver/at_once.py": Tests(("tests/backends/cupy/test_at_once.py",), ()),
    "cusink/solver/pairs/*": Tests(("tests/solver/test_pairs.py",), ()),
    "cusink/gradients/pairs.py": Tests(("tests/solver/test_pairs.py",), ()),
    "cusink/solver/unbalanced.py": Tests(("tests/solver/test_unbalanced.py",), ()),
    "cusink/solver/bounds.py": Tests(
        ("tests/solver/test_bounds.py",),
        ("tests/solver/test_unbalanced.py", "tests/solver/test_values.py", "-k", "bounds"),
    ),
    "cusink/solver/values.py": Tests(
        ("tests/solver/test_bounds.py", "tests/solver/test_unbalanced.py"),
        ("tests/solver/test_values.py", "-k", "definition"),
    ),
    "cusink/solver/checks.py": Tests(
        ("tests/solver/test_loop.py", "tests/checks/test_input.py"),
        ("tests/solver/test_unbalanced.py", "tests/solver/test_sinkhorn.py", "tests/solver/test_eps.py"),
    ),
    "cusink/solver/newton.py": Tests(("tests/solver/test_newton.py",), ("tests/solver/test_loop.py",)),
    "cusink/solver/forbidden.py": Tests(
        ("tests/solver/test_forbidden.py",),
        ("tests/truth/test_forbidden.py", "-k", "large_number_forbids or huge_number or off_the_diagonal"),
    ),
    "cusink/solver/gap.py": Tests(("tests/solver/test_gap.py",), ()),
    "cusink/solver/maps.py": Tests(("tests/solver/test_maps.py",), ()),
    "cusink/solver/extension.py": Tests(("tests/solver/test_maps.py",), ()),
    "cusink/solver/each.py": Tests(("tests/solver/test_eps.py",), ()),
    "cusink/solver/*": Tests(("tests/solver/test_loop.py",), _SOLVED),
    "cusink/backends/*": Tests(("tests/backends/numpy/test_certificate.py",), _FIXED),
    "cusink/gradients/at_once.py": Tests(("tests/backends/cupy/test_at_once.py", "-k", "gradients"), ()),
    "cusink/gradients/unbalanced.py": Tests(("tests/gradients/test_unbalanced.py",), ()),
    "cusink/gradients/prices.py": Tests(("tests/gradients/test_unbalanced.py", "-k", "prices or reach"), ()),
    "cusink/gradients/maps.py": Tests(("tests/gradients/test_maps.py", "-k", "not cupy"), ()),
    "cusink/gradients/shares.py": Tests(("tests/gradients/test_maps.py", "-k", "not cupy"), ()),
    "cusink/gradients/extension.py": Tests(("tests/gradients/test_maps.py", "-k", "not cupy"), ()),
    "cusink/gradients/curvature.py": _SECOND_ORDER,
    "cusink/gradients/[hj]vp.py": _SECOND_ORDER,
    "cusink/gradients/motion.py": _SECOND_ORDER,
    "cusink/gradients/through_plan.py": _SECOND_ORDER,
    "cusink/gradients/envelope.py": _SECOND_ORDER,
    "cusink/gradients/*": Tests(
        (
            "tests/gradients/test_adjoint.py",
            "-k",
            "dense_linear or forbidden_pairs or unconverged or bad_input or shorter_side or falls_short",
        ),
        ("tests/gradients", "tests/solver/test_eps.py", "-k", "not cupy and not memory"),
    ),
    "cusink/retrieval/*": Tests(
        ("tests/retrieval/test_bounds.py", "tests/retrieval/test_concavity.py", "tests/retrieval/test_reach.py"),
        ("tests/retrieval/test_search.py", "tests/retrieval/test_nearest.py", "-k", "not cuda and not memory_limit"),
    ),
    "kernels/iterate.cu": Tests(_ITERATED, ()),
    "kernels/at_once.cu": Tests(("tests/backends/cupy/test_at_once.py",), ()),
    "kernels/scaling*": Tests(_ITERATED, ()),
    "kernels/convergence.cuh": Tests(_ITERATED, ()),
    "kernels/documents.cu": Tests(
        ("tests/backends/cupy/test_documents.py", "-k", "float32 and values or stop_by_themselves or rounding"), ()
    ),
    "kernels/kernel_product.cu": Tests(("tests/backends/cupy/test_sums.py", "-k", "float32"), ()),
    "kernels/point_pairs.cuh": Tests(
        ("tests/backends/cupy/test_sums.py", "-k", "float32"), ("tests/backends/cupy/test_clouds.py", "-k", "agree")
    ),
    "kernels/point*": Tests(
        ("tests/backends/cupy/test_clouds.py", "-k", "agree or tensor or far_points or follow and float32"), ()
    ),
    "kernels/grid.cu": Tests(("tests/backends/cupy/test_fused_steps.py", "-k", "oracle and grid"), ()),
    "kernels/unbalanced.cu": Tests(("tests/backends/cupy/test_fused_steps.py", "-k", "oracle and unbalanced"), ()),
    "kernels/softmin.cu": Tests((_REDUCTIONS, "-k", "softmin and float32 or half_precision"), ()),
    "kernels/apply_plan.cu": Tests((_REDUCTIONS, "-k", "apply_plan and float32"), ()),
    "kernels/c_transform.cu": Tests((_REDUCTIONS, "-k", "c_transform and float32"), ()),
    "kernels/plan.cu": Tests((_REDUCTIONS, "-k", "plan and not apply_plan and float32"), ()),
    "kernels/*": Tests(_REDUCED, ()),
}


def tests_of(path: str) -> Tests:
    """Return the tests of a source."""
    return next(tests for pattern, tests in TESTS.items() if fnmatch(path, pattern))


def mutants(root: Path, names: list[str]) -> Iterator[Mutant]:
    """Yield every mutant of some areas."""
    for name in names:
        for pattern in AREAS[name]:
            for file in sorted(root.glob(pattern)):
                make = python.mutants if file.suffix == ".py" else cuda.mutants
                yield from make(name, file.relative_to(root).as_posix(), file.read_text("utf-8"))
