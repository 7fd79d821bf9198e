"""Tiles of a distance matrix shared out to several devices of one process, on emulated ones."""

import inspect
import re
import threading
import time

import emulated
import numpy as np
import pytest
from emulated import cupy_stand_in, device_arrays

import cusink
from cusink.retrieval import devices, engine, tiles

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

RNG = np.random.default_rng(0)
A, B = RNG.dirichlet(np.ones(6), 5).astype("f"), RNG.dirichlet(np.ones(6), 7).astype("f")
x = RNG.random((6, 2)).astype("f")
C = ((x[:, None] - x) ** 2).sum(axis=2)
SMALL = {"eps": 0.1, "tol": 1e-4}


def matrix(cupy, at, devices, second=B, cost=None, **options):
    """Return a matrix of arrays on device `at`, computed on `devices`, and where the arrays of the result are."""
    with cupy.cuda.Device(at):
        given = cupy.asarray(A), None if second is None else cupy.asarray(second)
        C_there = cupy.asarray(C) if cost is None else cost(cupy)
    return cusink.distance_matrix(*given, C_there, **SMALL | options, devices=devices)


@pytest.fixture
def tiles_of(monkeypatch):
    """Note which device solves which tile, and let `before` (device) run first."""
    solved, hooks, tile = [], [], tiles.PairValues.tile
    for name, most in (("ROWS_PER_TILE", 2), ("ROWS_PER_SQUARE", 2), ("COLUMNS_PER_TILE", 3)):
        monkeypatch.setattr(tiles, name, most)

    def noted(self, rows, columns, *rest):
        device = cupy_stand_in.HERE.device
        for hook in hooks:
            hook(device)
        found = tile(self, rows, columns, *rest)
        solved.append((device, rows.start, columns.start))
        return found

    monkeypatch.setattr(tiles.PairValues, "tile", noted)
    return solved, hooks


def meeting():
    """Return a hook that makes the first tiles of two devices wait for each other, so that both have some."""
    both, met = threading.Barrier(2, timeout=20), set()

    def wait(device):
        if device not in met:
            met.add(device)
            both.wait()

    return wait


def cloud(cupy):
    return cusink.PointCloud(cupy.asarray(x), cupy.asarray(x))


@pytest.mark.parametrize(
    ("second", "options"),
    [
        (B, {"full_output": True}),
        (None, {}),
        (None, {"value": "divergence"}),
        (B, {"value": "divergence", "cost": cloud}),
    ],
)
def test_the_same_bytes_as_one_device_and_the_result_is_where_the_arrays_are(tiles_of, second, options):
    solved, hooks = tiles_of
    with device_arrays.device() as (cupy, _):
        one = matrix(cupy, 0, None, second, **options)
        alone = sorted(part[1:] for part in solved)
        for at, devices in ((0, "all"), (1, [1, 0]), (0, (1,))):
            solved.clear()
            hooks[:] = [meeting()] if len(devices) > 1 else []
            many = matrix(cupy, at, devices, second, **options)
            assert sorted(part[1:] for part in solved) == alone and len(alone) > 3
            assert {part[0] for part in solved} == ({0, 1} if len(devices) > 1 else {1})
            assert cupy.cuda.Device().id == 0
            pairs = (
                [(one, many)]
                if second is None or not options.get("full_output")
                else [
                    (getattr(one, name), getattr(many, name)) for name in ("distances", "error", "n_iter", "converged")
                ]
            )
            for left, right in pairs:
                assert right.device.id == at
                np.testing.assert_array_equal(left.get(), right.get())


def test_a_store_takes_tiles_of_all_devices(tiles_of, tmp_path):
    solved, hooks = tiles_of
    hooks.append(meeting())
    with device_arrays.device() as (cupy, _):
        stored = matrix(cupy, 0, "all", out=str(tmp_path / "d.npy"))
        assert {part[0] for part in solved} == {0, 1}
        np.testing.assert_array_equal(stored, matrix(cupy, 0, None).get())


def test_a_slow_device_takes_fewer_tiles(tiles_of):
    solved, hooks = tiles_of
    hooks += [meeting(), lambda device: time.sleep(0.5 * device)]
    with device_arrays.device() as (cupy, _):
        matrix(cupy, 0, "all", np.concatenate([B, B]))
    count = [sum(part[0] == device for part in solved) for device in (0, 1)]
    assert count[0] > 2 * count[1] > 0


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_on_one_device_ends_all(tiles_of, broken):
    solved, hooks = tiles_of

    def fail(device):
        if device == broken:
            raise cupy_stand_in.OutOfMemoryError("Out of memory allocating 512 bytes")

    hooks += [meeting(), fail]
    with device_arrays.device() as (cupy, _):
        with pytest.raises(MemoryError, match="memory_limit"):
            matrix(cupy, 0, "all", np.concatenate([B, B, B]))
        after = len(solved)
        assert after <= 2 and cupy.cuda.Device().id == 0  # the other one finished what it was at
        time.sleep(0.05)
        assert len(solved) == after
        hooks.clear()
        np.testing.assert_array_equal(matrix(cupy, 0, "all").get(), matrix(cupy, 0, None).get())


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        (1, TypeError, r"'devices' must be None, \"all\", or the numbers of GPUs, as \[0, 1\]; got int"),
        ("every", TypeError, "'devices' must be .* got 'every'"),
        ([], ValueError, "one at least"),
        ([0, 0], ValueError, "each once; got"),
        ([-1], ValueError, "from 0 up"),
        ([0.5], TypeError, "got float among them"),
        ([0, 2], ValueError, "'devices' must be below 2, the GPUs that this process sees; got 2"),
    ],
)
def test_bad_devices_are_refused_before_any_work(tiles_of, devices, error, message):
    with device_arrays.device() as (cupy, launched):
        with pytest.raises(error, match=message):
            matrix(cupy, 0, devices)
        assert not launched and not tiles_of[0]


def test_devices_are_for_histograms_on_a_gpu():
    with pytest.raises(ValueError, match="'devices' must be None for NumPy arrays"):
        cusink.distance_matrix(A, B, C, eps=0.1, devices="all")
    with device_arrays.device() as (cupy, _):
        clouds = cusink.Measures([0, 2, 6], None, cupy.asarray(x))
        with pytest.raises(ValueError, match="'devices' must be None for documents"):
            cusink.distance_matrix(clouds, None, "euclidean", eps=0.1, devices=[0])


@pytest.mark.parametrize("itself", [False, True])
def test_the_rows_of_a_search_are_shared_out(monkeypatch, itself):
    served, find = [], engine.find

    def noted(pairs, corpus, query, *rest):
        if query.rows is None:
            return find(pairs, corpus, query, *rest)
        device = cupy_stand_in.HERE.device
        meet(device)
        served.append((device, query.rows.start, int(pairs.C.data.device.id), int(pairs.B[:1].device.id)))
        return find(pairs, corpus, query, *rest)

    monkeypatch.setattr(engine, "find", noted)
    corpus = np.concatenate([np.random.default_rng(1).dirichlet(np.ones(6), 32).astype("f"), A[:2]])
    how = SMALL | ({"value": "divergence"} if itself else {"value": "reg_cost", "reach": 0.5})
    with device_arrays.device() as (cupy, _):
        given = cupy.asarray(A), None if itself else cupy.asarray(corpus)
        cost, meet = cupy.asarray(C), meeting()
        one = cusink.nearest(*given, cost, **how, k=2, full_output=True)
        many = cusink.nearest(*given, cost, **how, k=2, full_output=True, devices="all")
        assert {device for device, *_ in served} == {0, 1}
        assert all(device == costs == columns for device, _, costs, columns in served)
        assert sorted(row for _, row, *_ in served) == [0, 2, 4]
        assert many.distances.device.id == 0 and many.pruning == one.pruning and many.proved.get().all()
        np.testing.assert_array_equal(many.indices.get(), one.indices.get())
        np.testing.assert_allclose(many.distances.get(), one.distances.get(), rtol=1e-4, atol=1e-6)
        if not itself:
            index, meet = cusink.Index(given[1][:20], cost, **how), meeting()
            index.add(given[1][20:])
            np.testing.assert_array_equal(index.search(given[0], 2, devices=[1, 0])[1].get(), one.indices.get())


def test_devices_of_a_search_are_checked():
    for call in (
        lambda **how: cusink.nearest(A, B, C, k=1, eps=0.1, **how),
        lambda **how: cusink.Index(B, C, eps=0.1).search(A, 1, **how),
    ):
        with pytest.raises(ValueError, match="'devices' must be None for NumPy arrays"):
            call(devices="all")
        with pytest.raises(TypeError, match="'devices' must be None"):
            call(devices=0.5)


def without_wait(patch, function, number):
    """Take the `number`-th wait for a stream or a device out of a function."""
    lines = inspect.getsource(function).splitlines()
    at = [k for k, line in enumerate(lines) if ".synchronize()" in line][number]
    lines[at] = re.sub(r"\S.*", "pass", lines[at])
    namespace = dict(vars(inspect.getmodule(function)))
    exec("\n".join(lines), namespace)
    patch.setattr(function, "__code__", namespace[function.__name__].__code__)


def unfinished(patch, given, hooks):
    """Let the input still be written when it is shared out, and a tile, or what a search keeps, when it is taken.

    Return what searches on the device of the input keep.
    """
    kept = []

    def written(array):
        array[...] = array * 1

    def noted(holder, name, arrays):
        real = getattr(holder, name)

        def call(*args, **options):
            found = real(*args, **options)
            for array in arrays(found):
                written(array)
            return found

        patch.setattr(holder, name, call)

    noted(devices, "tiles", lambda _: given)  # the last that the caller's thread does before it shares out
    noted(engine, "blocks", lambda _: given)
    noted(tiles.PairValues, "tile", lambda tile: tile.fields.values())
    find = engine.find

    def find_and_keep(*args):
        for hook in hooks:
            hook(cupy_stand_in.HERE.device)
        found = find(*args)
        if cupy_stand_in.HERE.device == 0:
            kept.append(given[0] * 1)
        return found

    patch.setattr(engine, "find", find_and_keep)
    return kept


def shared_out(patch, function, hooks):
    """Divide a matrix or a search among both devices, for a caller with a stream of its own."""
    with device_arrays.device() as (cupy, _), cupy.cuda.Stream(non_blocking=True):
        given = cupy.asarray(A), cupy.asarray(np.concatenate([B] * 3)), cupy.asarray(C)
        kept = unfinished(patch, given, hooks)
        if function is devices.solve_on_devices:
            return cusink.distance_matrix(*given, **SMALL, devices="all").get()
        distances, _ = cusink.nearest(*given, **SMALL, value="reg_cost", k=2, devices="all")
        assert kept and all(array.get().shape == A.shape for array in kept)
        return distances.get()


WAITS = {devices.solve_on_devices: 3, engine.find_on_devices: 2}


@pytest.mark.parametrize(
    ("function", "number"), [(of, number) for of, count in WAITS.items() for number in (*range(count), None)]
)
def test_a_wait_that_is_left_out_is_found(tiles_of, function, number, monkeypatch):
    tiles_of[1].extend([] if number == 0 else [meeting()])  # without the first wait, both fail before
    assert inspect.getsource(function).count(".synchronize()") == WAITS[function]
    if number is None:
        assert np.isfinite(shared_out(monkeypatch, function, tiles_of[1])).all()
        return
    without_wait(monkeypatch, function, number)
    with pytest.raises(emulated.EmulationError, match="nothing orders the two|may still use it"):
        shared_out(monkeypatch, function, tiles_of[1])


def test_a_device_takes_tiles_while_a_stream_of_the_other_captures(tiles_of):
    """No thread may wait for a whole device then: CUDA would end the capture, and the call with it."""
    both, taken = threading.Barrier(2, timeout=20), []

    def capture(device):
        if taken.count(device) == 0:
            both.wait()
        taken.append(device)
        if device == 0 and taken.count(0) == 1:
            x, stream = cupy.zeros(1), cupy.cuda.Stream(non_blocking=True)
            cupy.cuda.get_current_stream().synchronize()
            with stream:
                stream.begin_capture()
                x[...] = 1.0
                until = time.monotonic() + 20
                while taken.count(1) < 2 and time.monotonic() < until:  # the other one has handed its first tile over
                    time.sleep(0.01)
                stream.end_capture().launch()
            stream.synchronize()

    tiles_of[1].append(capture)
    with device_arrays.device() as (cupy, _):
        found = matrix(cupy, 0, "all", np.concatenate([B] * 3))
        assert np.isfinite(found.get()).all() and taken.count(1) > 1
