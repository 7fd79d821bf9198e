"""The CPU benchmark calls a wrong answer wrong, takes turns, and gets its ratios right. No peer is needed."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference as oracle
import scipy.special

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "benchmarks").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from benchmarks.harness import peers, works  # noqa: E402
from benchmarks.harness import timing as harness  # noqa: E402
from benchmarks.harness.peers import Answer, Competitor  # noqa: E402
from benchmarks.harness.timing import Row, Target  # noqa: E402


def small_pairs(eps=0.05, iterations=7):
    work = works.dirichlet_pairs(eps, count=5)
    return replace(work, iterations=iterations)


def small_retrieval(eps=0.05):
    rng = np.random.default_rng(3)
    weights = rng.dirichlet(np.ones(9), size=7)
    weights[:, 4] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return works.Retrieval("small", weights[:3], weights[3:], works.squared_grid_cost(3, 3), eps)


# ---- the references ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["weights", "ones"])
def test_reference_pairs_is_the_iteration_written_with_scipy(start):
    work = small_pairs()
    p = np.log(work.a) if start == "weights" else np.zeros_like(work.a)
    for _ in range(work.iterations):
        q = np.log(work.b) - scipy.special.logsumexp(p[:, :, None] - work.C / work.eps, axis=1)
        p = np.log(work.a) - scipy.special.logsumexp(q[:, None, :] - work.C / work.eps, axis=2)
    plan = np.exp(p[:, :, None] + q[:, None, :] - work.C / work.eps)
    got = works.reference_pairs(work, start, block=2)
    np.testing.assert_allclose(got, (plan * work.C).sum(axis=(1, 2)), rtol=1e-13)
    np.testing.assert_allclose(plan.sum(axis=2), work.a, rtol=1e-12)


def test_the_two_starts_differ_after_few_iterations_and_agree_after_many():
    few, many = small_pairs(iterations=2), small_pairs(iterations=2000)
    assert np.max(np.abs(works.reference_pairs(few) - works.reference_pairs(few, "ones"))) > 1e-6
    np.testing.assert_allclose(works.reference_pairs(many), works.reference_pairs(many, "ones"), rtol=1e-12)


def test_reference_sample_is_converged_and_measures_what_stopping_costs():
    work = small_retrieval()
    sample = works.reference_sample(work, per_query=4)
    assert sorted(zip(sample.query, sample.item, strict=True)) == [(i, j) for i in range(3) for j in range(4)]
    assert sample.error <= 1e-11
    pairs = works.Pairs("", work.queries[sample.query], work.corpus[sample.item], work.C, work.eps, iterations=3000)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(sample.cost, works.reference_pairs(pairs), rtol=1e-11)
    assert 0 < sample.stopped < 1e-4
    assert works.reference_sample(replace(work, tol=1e-3), per_query=4).stopped > 5 * sample.stopped


def test_the_works_are_what_their_names_say():
    w1, w1g = works.dirichlet_pairs(0.01), works.gaussian_pairs()
    assert w1.a.shape == w1.b.shape == w1g.a.shape == (256, 100)
    assert w1.a.min() > 0 and w1g.b[0].min() < 1e-190
    for work in (w1, w1g):
        np.testing.assert_allclose([work.a.sum(axis=1), work.b.sum(axis=1)], 1, rtol=1e-12)
        assert work.C.min() == 0 and work.C.max() == 1
        np.testing.assert_array_equal(work.C, work.C.T)
    assert {x.dtype for x in (w1.cast("float32").a, w1.cast("float32").b, w1.cast("float32").C)} == {np.dtype("f4")}


# ---- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "options", "text"),
    [
        ([1.0, 2.0, 3.0], {}, "right"),
        ([1.0, 2.0, 3.0001], {}, "right"),
        ([1.0, 2.0, 3.01], {}, "WRONG: off by 3.3e-03"),
        ([1.0, np.nan, 3.0], {}, "WRONG: 1 of 3 not finite"),
        ([np.inf, np.nan, 3.0], {}, "WRONG: 2 of 3 not finite"),
        ([1.0, 2.0], {}, "WRONG: shape (2,) for (3,)"),
        ([1.0, 2.0, 3.0], {"error": [1e-7, 9e-7], "tol": 1e-6}, "right"),
        ([1.0, 2.0, 3.0], {"error": [1e-7, 2e-6], "tol": 1e-6}, "WRONG: marginal error 2.0e-06"),
        ([1.0, 2.0, 3.0], {"error": [1e-7, np.nan], "tol": 1e-6}, "WRONG: marginal error nan"),
    ],
)
def test_judge(cost, options, text):
    right, relative, said = harness.judge(cost, [1.0, 2.0, 3.0], 1e-4, **options)
    assert said == text
    assert right == (text == "right")
    assert np.isfinite(relative) == ("off by" in text or "marginal" in text or right)


# ---- turns, medians, ratios ----------------------------------------------------------------------------------------


def test_schedule_takes_turns_and_slow_ones_leave_early():
    assert harness.schedule({"a": None, "b": None, "c": None}, 2) == list("abcabc")
    assert harness.schedule({"a": None, "b": 1, "c": 2}, 3) == list("abcaca")


def test_compare_gives_ratio_of_medians_and_spread_of_rounds():
    ratio, low, high = harness.compare([1.0, 2.0, 10.0], [4.0, 6.0, 5.0])
    assert (ratio, low, high) == (2.5, 0.5, 4.0)
    # A slow competitor took part in the first rounds only: those are its pairs.
    assert harness.compare([1.0, 2.0, 3.0], [10.0]) == (10.0, 10.0, 10.0)


def test_one_turn_repeats_short_calls_and_runs_a_long_one_once():
    called = []
    harness.one_turn(lambda: called.append(0), seconds=10, calls=4)
    assert len(called) == 4
    harness.one_turn(lambda: called.append(0), seconds=0)
    assert len(called) == 5


class Scripted:
    """Shares of the CPU that others use, as told."""

    def __init__(self, *shares):
        self.shares = list(shares)

    def share(self):
        return self.shares.pop(0)


def test_quiet_turn_repeats_a_disturbed_turn_and_keeps_the_quietest():
    called = []

    def run():
        called.append(0)

    # Before each turn: what was before, then a look at the waiting time; after it: what others used during the turn.
    later = harness.time.perf_counter() + 60
    _, share = harness.quiet_turn(run, later, others=Scripted(0, 0.9, 0.0, 0.9, 0, 0.0, 0.05))
    assert share == 0.05 and len(called) == 10
    _, share = harness.quiet_turn(run, later, tries=2, others=Scripted(0, 0.0, 0.7, 0, 0.0, 0.9))
    assert share == 0.7


def test_quiet_turn_neither_waits_nor_repeats_when_its_time_is_over():
    called = []
    _, share = harness.quiet_turn(lambda: called.append(0), until=0, others=Scripted(0, 1.5))
    assert share == 1.5 and len(called) == 5


def test_own_work_is_not_counted_as_others(monkeypatch):
    tick = 1 / harness.os.sysconf("SC_CLK_TCK")
    # Two readings: wall time, own CPU time, ticks of all cores (user, nice, system, idle, wait, irq, softirq, steal).
    readings = iter([(10.0, 1.0, "cpu  100 0 50 9000 7 0 0 0 0 0"), (12.0, 4.0, "cpu  400 10 60 9000 9 1 1 8 0 0")])

    now = {}

    def read_text(path):
        assert str(path) == "/proc/stat"
        now["wall"], now["own"], text = next(readings)
        return text + "\ncpu0 ..."

    monkeypatch.setattr(harness.Path, "read_text", read_text)
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(harness.time, "process_time", lambda: now["own"])
    others = harness.Others()
    busy = (300 + 10 + 10 + 1 + 1 + 8) * tick
    assert others.share() == pytest.approx((busy - 3.0) / 2.0)


def entry(name, kind, times, right=True, **rest):
    return {"name": name, "kind": kind, "share": 1.0, "times": times, "right": right, "verdict": "", **rest}


def outcome_of(target, *others, **ours):
    entries = [entry("cusink", "ours", [1.0, 1.0, 1.0], **ours), *others]
    return harness.summarise("", entries, [target])["targets"][0]


def test_the_best_peer_is_the_fastest_whose_answer_is_right():
    wrong = entry("fast and wrong", "log", [0.1] * 3, right=False)
    slow, fast = entry("slow", "log", [50.0] * 3), entry("fast", "log", [40.0] * 3)
    kernel = entry("kernel", "kernel", [2.0] * 3)
    met = outcome_of(Target("best log", at_least=30), wrong, slow, fast, kernel)
    assert (met["against"], met["met"], met["measured"]) == ("fast", True, "40 (40 to 40)")
    assert not outcome_of(Target("best log", at_least=41), wrong, slow, fast)["met"]
    assert outcome_of(Target("best library", at_least=2), wrong, slow, fast, kernel)["against"] == "kernel"
    nobody = outcome_of(Target("best log", at_least=1), wrong)
    assert nobody["measured"] is None and not nobody["met"]


def test_at_most_compares_our_time_with_theirs():
    loop = entry("loop", "plain", [0.5, 0.8, 1.0], right=False)
    outcome = outcome_of(Target("loop", at_most=1.25), loop)
    assert (outcome["met"], outcome["measured"]) == (True, "1.25 (1 to 2)")
    assert not outcome_of(Target("loop", at_most=1.2), loop)["met"]


def test_nothing_is_met_by_a_wrong_answer():
    log = entry("log", "log", [90.0] * 3)
    assert outcome_of(Target("best log", at_least=30), log)["met"]
    assert not outcome_of(Target("best log", at_least=30), log, right=False)["met"]
    assert outcome_of(Target("reference", at_most=1e-10), relative=1e-11)["met"]
    assert not outcome_of(Target("reference", at_most=1e-10), relative=1e-9)["met"]
    assert not outcome_of(Target("reference", at_most=1e-10), relative=1e-11, right=False)["met"]
    assert not outcome_of(Target("all to tol", at_most=1e-6), error=[1e-8, 2e-6])["met"]
    assert outcome_of(Target("all to tol", at_most=1e-6), error=[1e-8, 1e-6])["met"]


# ---- a whole row ---------------------------------------------------------------------------------------------------


def test_a_row_shows_right_wrong_and_failing_competitors(capsys):
    work = small_pairs()

    def off(work):
        run, _ = peers.unguarded_loop(work)
        return lambda: run() * 1.01, Answer

    def missing(work):
        raise ModuleNotFoundError("No module named 'nothing'")

    def warner(work):
        run, _ = peers.unguarded_loop(work)

        def warned():
            np.log(np.zeros(1))
            return run()

        return warned, Answer

    competitors = [
        Competitor("loop", "ours", peers.unguarded_loop, start="weights"),
        Competitor("in place", "plain", peers.unguarded_in_place, start="weights"),
        Competitor("other start", "plain", peers.unguarded_loop, start="ones"),
        Competitor("off", "log", off, start="weights"),
        Competitor("missing", "log", missing),
        Competitor("warner", "kernel", warner, rounds=1, start="weights"),
    ]
    row = Row("small: a row", work, work, competitors, [Target("best log", at_least=1)], 1e-9)
    outcome = harness.run_row(row, rounds=2)
    verdicts = {e["name"]: e["verdict"] for e in outcome["entries"]}
    assert verdicts["loop"] == verdicts["in place"] == verdicts["warner"] == "right"
    assert verdicts["off"] == "WRONG: off by 1.0e-02"
    assert verdicts["other start"].startswith("WRONG: off by")
    assert verdicts["missing"] == "FAILED: ModuleNotFoundError: No module named 'nothing'"
    assert {e["name"]: len(e["times"]) for e in outcome["entries"]} == {
        "loop": 2,
        "in place": 2,
        "other start": 2,
        "off": 2,
        "missing": 0,
        "warner": 1,
    }
    assert {e["name"]: e["warnings"] for e in outcome["entries"] if "warnings" in e}["warner"] == 1
    assert outcome["targets"][0]["measured"] is None  # the only log-domain answers were wrong and missing
    harness.print_row(outcome)
    harness.print_targets([outcome])
    printed = capsys.readouterr().out
    assert "| off | WRONG: off by 1.0e-02 | 1.0e-02 |" in printed
    assert "| small | best log | >= 1 x faster |  | not measured |" in printed


def test_a_retrieval_row_judges_shares_of_the_queries_and_hidden_nans():
    work = small_retrieval()

    def share(work):
        asked = works.some_queries(len(work.queries), 0.5)
        run, read = peers.plain_retrieval(replace(work, queries=work.queries[asked]))
        return run, read

    def hidden(work):
        run, read = peers.plain_retrieval(work)

        def spoilt(parts):
            answer = read(parts)
            answer.cost[0, 3] = np.nan
            return answer

        return run, spoilt

    competitors = [
        Competitor("all", "ours", peers.plain_retrieval),
        Competitor("half", "plain", share, share=0.5),
        Competitor("hidden", "plain", hidden),
        Competitor("loose", "plain", lambda w: peers.plain_retrieval(replace(w, tol=1e-2), every=1)),
    ]
    row = Row("small", work, work, competitors, [Target("all to tol", at_most=work.tol)], None, per_query=2)
    outcome = harness.run_row(row, rounds=1)
    verdicts = {e["name"]: e["verdict"] for e in outcome["entries"]}
    assert verdicts["all"] == verdicts["half"] == "right"
    assert verdicts["hidden"].endswith("not finite")
    assert verdicts["loose"].startswith("WRONG")
    assert outcome["targets"][0]["met"]


def test_plain_retrieval_agrees_with_the_oracle_on_every_pair():
    work = replace(small_retrieval(), tol=1e-12)
    run, read = peers.plain_retrieval(work)
    answer = read(run())
    assert answer.cost.shape == (3, 4) and np.max(answer.error) <= 1e-12
    for i, a in enumerate(work.queries):
        for j, b in enumerate(work.corpus):
            solution = oracle.solve(a, b, work.C, work.eps)
            P = oracle.plan(a, b, work.C, work.eps, solution.f, solution.g)
            np.testing.assert_allclose(answer.cost[i, j], oracle.transport_cost(P, work.C), rtol=1e-9)
