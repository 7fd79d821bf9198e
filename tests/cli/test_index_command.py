"""The command `cusink index`: what an index keeps, candidates, additions, and that none is lost."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import problems
import pytest
from scipy import sparse

import cusink
from cusink.cli import commands as cli

EPS = 0.05
COST = problems.grid_cost(3, 4)
OPTIONS = {"eps": EPS, "value": "reg_cost"}


def command(text):
    """Run `cusink index` in this process with the words of `text`, and return its exit status."""
    return cli.main(["index", *text.split()])


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Make a current folder with weights of any mass: queries.npy (3, 12), items.npy (40, 12), more.npy (5, 12)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    made = {name: rng.random((count, 12)) for name, count in (("queries", 3), ("items", 40), ("more", 5))}
    for name, array in made.items():
        np.save(f"{name}.npy", array)
        sparse.save_npz(f"{name}.npz", sparse.csr_array(array))
    np.save("cost.npy", COST)
    return made


def built(more="--normalise", items="items.npy"):
    line = f"build {items} --cost cost.npy --eps {EPS} --value reg_cost {more} -o one.index"
    assert command(line) == 0


def of_mass_one(x):
    return x / x.sum(axis=1, keepdims=True)


def nearest_of_the_matrix(A, B, k):
    """Return the distances and indices of a stable sort of all distances."""
    D = cusink.distance_matrix(of_mass_one(A), of_mass_one(B), COST, **OPTIONS)
    order = np.argsort(D, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(D, order, 1), order


def found(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("more", ["", "--normalise"])
def test_an_index_remembers_that_it_normalises(sets, ending, more):
    built(items=f"items.{ending}")
    assert command(f"search one.index queries.{ending} {more} -k 2 -o N.npz") == 0
    distances, order = nearest_of_the_matrix(sets["queries"], sets["items"], 2)
    np.testing.assert_array_equal(found("N.npz")["indices"], order)
    np.testing.assert_allclose(found("N.npz")["distances"], distances, rtol=1e-6)
    queries = 5 * sets["queries"]
    queries = sparse.csr_array(queries) if ending == "npz" else queries
    assert cusink.Index.load("one.index").search(queries, 2)[1].tolist() == order.tolist()


def test_an_index_of_one_mass_refuses_another(sets, capsys):
    np.save("items.npy", of_mass_one(sets["items"]))
    built("")
    assert command("search one.index queries.npy -k 2") == 2
    assert "'A' row 0 has" in capsys.readouterr().err
    assert command("search one.index queries.npy -k 2 --normalise") == 0


def test_candidates_are_looked_at_alone(sets, capsys):
    built()
    proposed = np.array([[3, 7, 9, 3], [1, 2, 3, 4], [39, 0, 8, 5]])
    np.save("proposed.npy", proposed)
    assert command("search one.index queries.npy -k 2 --candidates proposed.npy -o N.npz") == 0
    D = cusink.distance_matrix(of_mass_one(sets["queries"]), of_mass_one(sets["items"]), COST, **OPTIONS)
    for row, named in enumerate(proposed):
        own = np.unique(named)
        want = own[np.argsort(D[row, own], kind="stable")[:2]]
        np.testing.assert_array_equal(found("N.npz")["indices"][row], want)
    assert found("N.npz")["proved"].dtype == bool and found("N.npz")["undercut"].shape == (3,)
    np.save("wrong.npy", np.full((3, 4), 40))
    np.save("floats.npy", np.zeros((3, 4)))
    capsys.readouterr()
    for name, said in (("wrong", "from 0 to 39; got 40"), ("floats", "must hold integers"), ("none", "no such file")):
        assert command(f"search one.index queries.npy -k 2 --candidates {name}.npy") == 2
        out, err = capsys.readouterr()
        assert said in err and out == "" and err.count("\n") == 1
    line = "search one.index queries.npy -k 2 --candidates proposed.npz --force -o proposed.npz"
    os.rename("proposed.npy", "proposed.npz")
    assert command(line) == 2 and "is one of the inputs" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_additions_are_those_of_an_index_of_all(sets, capsys, ending):
    built(items=f"items.{ending}")
    capsys.readouterr()
    assert command(f"add one.index more.{ending} queries.{ending} --json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["items"] == 48 and told["output"] == "one.index" and told["shape"] == [8, 48]
    every = np.concatenate([sets["items"], sets["more"], sets["queries"]])
    assert command(f"search one.index queries.{ending} -k 3 -o N.npz") == 0
    distances, order = nearest_of_the_matrix(sets["queries"], every, 3)
    np.testing.assert_array_equal(found("N.npz")["indices"], order)
    np.testing.assert_allclose(found("N.npz")["distances"], distances, rtol=1e-6, atol=1e-9)
    capsys.readouterr()
    assert command(f"add one.index more.{ending}") == 0
    assert capsys.readouterr().out.startswith("one.index: 5 added, an index of 53 items, ")


def files(folder="one.index"):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_bad_additions_leave_the_index(sets, capsys):
    built()
    before = files()
    np.save("negative.npy", -np.ones((2, 12)))
    np.save("narrow.npy", np.ones((2, 11)))
    capsys.readouterr()
    for line, said in (
        ("none.index more.npy", "there is no"),
        ("one.index none.npy", "none.npy: there is no such file"),
        ("one.index more.npy negative.npy", "negative"),
        ("one.index narrow.npy", "12"),
        ("one.index", "required: items"),
    ):
        assert command(f"add {line}") == 2
        out, err = capsys.readouterr()
        assert said in err and out == "" and err.count("\n") == 1
        assert files() == before


def test_a_full_disk_leaves_the_index(sets, capsys):
    """No file may grow beyond 2048 bytes: the kernel's own error."""
    built()
    before, names = files(), sorted(os.listdir())
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        status = command("add one.index more.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    out, err = capsys.readouterr()
    assert status == 4 and out == "" and err.startswith("cusink: one.index: ") and "File too large" in err
    assert files() == before and sorted(os.listdir()) == names


KILLED = """
import os, signal, sys
from cusink.cli import main

move, count = os.rename, 0

def counted(*args, **keywords):
    global count
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    return move(*args, **keywords)

os.rename = os.replace = counted
main(["index", "add", "one.index", "more.npy"])
"""


@pytest.mark.parametrize("moves", [0, 1])
def test_an_addition_that_is_killed_at_any_rename_loses_no_item(sets, moves):
    built()
    environment = os.environ | {"PYTHONPATH": str(Path(cusink.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", KILLED, str(moves)], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL and len(list(Path().glob(".cusink-*"))) == 1
    assert Path("one.index").exists() == (moves == 0)
    assert len(cusink.Index.load("one.index")) == 40  # which puts the old one back
    assert command("add one.index more.npy") == 0
    assert len(cusink.Index.load("one.index")) == 45 and not list(Path().glob(".cusink-*"))


def test_an_index_is_built_and_added_to_by_so_many_workers(sets, monkeypatch):
    from cusink import workers
    from cusink.retrieval import facts

    told, each = [], facts.each
    monkeypatch.setattr(facts, "each", lambda *given: told.append(workers.workers()) or each(*given))
    line = f"build items.npy --cost cost.npy --eps {EPS} --value divergence --normalise --workers"
    for count in (1, 3):
        told.clear()
        assert command(f"{line} {count} -o {count}.index") == 0
        assert command(f"add {count}.index more.npy --normalise --workers {count}") == 0
        assert told == [count, count]


def test_workers_do_not_change_the_answer(sets, capsys):
    built("--normalise --workers 2")
    for name, line in {
        "distance-matrix": "queries.npy items.npy --cost cost.npy --eps 0.05 --normalise -o {}.npy",
        "nearest": "queries.npy items.npy --cost cost.npy --eps 0.05 --normalise -k 2 -o {}.npz",
        "index": "search one.index queries.npy -k 2 -o {}.npz",
    }.items():
        written = []
        for workers in (1, 2):
            words = line.format(f"{name}{workers}").split()
            assert cli.main([name, *words, "--workers", str(workers)]) == 0
            written.append(np.load(words[-1]) if words[-1].endswith("npy") else found(words[-1])["distances"])
        np.testing.assert_array_equal(*written)
    capsys.readouterr()
    assert command("search one.index queries.npy -k 2 --workers 0") == 2
    assert "--workers" in capsys.readouterr().err
