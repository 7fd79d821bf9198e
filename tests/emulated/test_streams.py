"""The stand-in finds work on the wrong stream, and refuses in a capture what CUDA and CuPy refuse there."""

import threading

import numpy as np
import pytest

import cusink
import emulated
from emulated import EmulationError, cupy_stand_in, device_arrays

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

a, b = np.random.default_rng(0).dirichlet(np.ones(6), (2, 3))
C = np.random.default_rng(1).random((6, 6))


@pytest.fixture
def gpu():
    with device_arrays.device() as (cupy, _):
        yield cupy


def other(cupy, non_blocking=True):
    return cupy.cuda.Stream(non_blocking=non_blocking)


UNORDERED = {
    "a read of what another stream writes": lambda cupy, x, y, s: (x.fill(1), inside(s, lambda: x + 1)),
    "a write of what another stream reads": lambda cupy, x, y, s: (x + 1, inside(s, lambda: x.fill(0))),
    "a write of what another stream writes": lambda cupy, x, y, s: (set_to(x, 1), inside(s, lambda: set_to(x, 2))),
    "a part of it": lambda cupy, x, y, s: (set_to(x[:2], 1), inside(s, lambda: x[1:] + 1)),
    "in place": lambda cupy, x, y, s: (x + 1, inside(s, lambda: x.__iadd__(y))),
    "as an index": lambda cupy, x, y, s: (set_to(y, 0), inside(s, lambda: x[y.astype(int)])),
    "a product": lambda cupy, x, y, s: (set_to(y, 0), inside(s, lambda: cupy.dot(x, y))),
    "a product into": lambda cupy, x, y, s: (x + y, inside(s, lambda: cupy.matmul(x, x, out=y[0]))),
    "a sort in place": lambda cupy, x, y, s: (x + 1, inside(s, x.sort)),
    "a number that the host reads": lambda cupy, x, y, s: (set_to(x, 1), inside(s, lambda: float(x[0]))),
    "a copy to the host": lambda cupy, x, y, s: (set_to(x, 1), inside(s, x.get)),
    "two streams, one of which waited": lambda cupy, x, y, s: (
        inside(s, lambda: set_to(x, 1)),
        other(cupy).synchronize(),
        x + 1,
    ),
    "the same stream of another device": lambda cupy, x, y, s: (set_to(x, 1), inside(cupy.cuda.Device(1), x.copy)),
    "memory that is freed too early": lambda cupy, x, y, s: (too_early(cupy, s), x + 1),
    "memory that is freed too early, and nothing comes after": lambda cupy, x, y, s: too_early(cupy, s),
}


def inside(context, call):
    with context:
        return call()


def set_to(x, value):
    x[...] = value


def too_early(cupy, stream):
    """Free an array of the current stream's pool while another stream may still read it."""
    x = [cupy.arange(3.0)]
    cupy.cuda.Device().synchronize()
    inside(stream, lambda: x[0] + 1)
    x.clear()


def attempt(fault):
    with device_arrays.device() as (cupy, _):
        x, y, stream = cupy.asarray(np.ones(3)), cupy.asarray(np.zeros(3)), other(cupy)
        cupy.cuda.Device().synchronize()
        fault(cupy, x, y, stream)


@pytest.mark.parametrize("fault", UNORDERED)
def test_what_nothing_orders_is_found(fault):
    with pytest.raises(EmulationError, match="nothing orders the two|may still use it"):
        attempt(UNORDERED[fault])


def test_what_is_ordered_is_not_refused(gpu):
    x, stream, blocking = gpu.asarray(np.ones(3)), other(gpu), other(gpu, non_blocking=False)
    x += 1
    gpu.cuda.get_current_stream().synchronize()
    with stream:
        assert gpu.cuda.get_current_stream() is stream
        y = x * 2
        with gpu.cuda.Device(1):  # streams are current for one device each
            assert gpu.cuda.get_current_stream() is gpu.cuda.Stream.null
    stream.synchronize()
    y += x
    with blocking:  # waits for the default stream, and that one for it
        y += 1
    y += 1
    assert y.get().tolist() == [8.0] * 3  # as a copy to the host does
    with stream:
        y += 1
    gpu.cuda.Device().synchronize()
    with gpu.cuda.Device(1):
        z = y.copy()
        gpu.cuda.get_current_stream().synchronize()
    del y
    assert z.get().tolist() == [9.0] * 3


def test_a_stream_is_current_for_its_device_and_thread_alone(gpu):
    stream, seen = other(gpu), []
    with stream:
        thread = threading.Thread(target=lambda: seen.append(gpu.cuda.get_current_stream()))
        thread.start()
        thread.join()
    assert seen == [gpu.cuda.Stream.null]
    with gpu.cuda.Device(1), pytest.raises(RuntimeError, match="does not match with the current device"):
        stream.use()


# The current stream `s` captures; x and y are arrays of the device, and i holds integers.
REFUSED = {
    "a new array": lambda cupy, s, x, i: cupy.empty(3),
    "an operation": lambda cupy, s, x, i: x + 1,
    "a method": lambda cupy, s, x, i: x.sum(),
    "a copy": lambda cupy, s, x, i: x.copy(),
    "another dtype": lambda cupy, s, x, i: cupy.asarray(x, np.float32),
    "a copy that makes contiguous": lambda cupy, s, x, i: cupy.ascontiguousarray(x.reshape(3, 2).T),
    "a reshape that copies": lambda cupy, s, x, i: x.reshape(3, 2).T.reshape(6),
    "an array from the host": lambda cupy, s, x, i: cupy.asarray(np.ones(3)),
    "a list from the host": lambda cupy, s, x, i: cupy.array([1.0]),
    "an index by an array": lambda cupy, s, x, i: x[i],
    "an index by a list": lambda cupy, s, x, i: x[[0, 1]],
    "entries by an array": lambda cupy, s, x, i: x.__setitem__(i, 0.0),
    "int": lambda cupy, s, x, i: int(x[0]),
    "float": lambda cupy, s, x, i: float(x[0]),
    "bool": lambda cupy, s, x, i: bool(x[0]),
    "a format": lambda cupy, s, x, i: f"{x[0]:.1f}",
    "get": lambda cupy, s, x, i: x.get(),
    "asnumpy": lambda cupy, s, x, i: cupy.asnumpy(x),
    "item": lambda cupy, s, x, i: x.item(0),
    "tolist": lambda cupy, s, x, i: x.tolist(),
    "cuBLAS": lambda cupy, s, x, i: cupy.dot(x, x),
    "a wait for the stream": lambda cupy, s, x, i: s.synchronize(),
    "a wait for the device": lambda cupy, s, x, i: cupy.cuda.Device().synchronize(),
    "another capture of the stream": lambda cupy, s, x, i: s.begin_capture(),
    "a graph": lambda cupy, s, x, i: cupy_stand_in.Graph([]).launch(),
}


def arrays(cupy):
    return cupy.asarray(np.arange(6.0)), cupy.asarray(np.array([1, 2]))


@pytest.mark.parametrize("fault", REFUSED)
def test_what_a_capture_forbids_is_refused_and_ends_it(gpu, fault):
    given, stream = arrays(gpu), other(gpu)
    gpu.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        given[0][...] = 1.0
        with pytest.raises(EmulationError, match="while a stream captures"):
            REFUSED[fault](gpu, stream, *given)
        with pytest.raises(EmulationError, match="gives no graph"):
            stream.end_capture()
        assert not stream.is_capturing()
        if fault != "another capture of the stream" and fault != "a graph":
            REFUSED[fault](gpu, stream, *given)  # which nothing forbids now
    gpu.cuda.Device().synchronize()


def test_a_capture_takes_what_allocates_nothing_and_what_other_streams_do(gpu):
    (x, _), stream, apart = arrays(gpu), other(gpu), other(gpu)
    gpu.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        x[:2] = 7.0
        x[2:4] += x[4:]
        x.reshape(2, 3)[1, 2] = x[0]
        apart.synchronize()  # a capture of its own mode minds nothing else
        with apart:
            assert gpu.arange(3.0).get().tolist() == [0.0, 1.0, 2.0]
        graph = stream.end_capture()
    assert x.get().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]  # nothing has run
    for found in ([7.0, 7.0, 6.0, 8.0, 4.0, 7.0], [7.0, 7.0, 10.0, 15.0, 4.0, 7.0]):
        graph.launch()
        assert x.get().tolist() == found
    graph.launch()
    with pytest.raises(EmulationError, match="nothing orders the two"):
        inside(other(gpu), graph.launch)


def test_the_default_stream_does_not_capture_and_is_idle_while_a_blocking_stream_does(gpu):
    (x, _), stream = arrays(gpu), other(gpu, non_blocking=False)
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        gpu.cuda.Stream.null.begin_capture()
    for use in (lambda: x.fill(0), lambda: gpu.cuda.Stream.null.synchronize(), lambda: x.get()):
        with stream:
            stream.begin_capture()
            x[...] = 1.0
        with pytest.raises(EmulationError, match="while a stream captures"):
            use()
        with pytest.raises(EmulationError, match="gives no graph"):
            stream.end_capture()


def test_no_thread_waits_for_a_device_while_a_stream_of_it_captures(gpu):
    (x, _), stream, found = arrays(gpu), other(gpu), []

    def wait(number):
        try:
            gpu.cuda.Device(number).synchronize()
        except EmulationError as error:
            found.append((number, str(error)))

    with stream:
        stream.begin_capture()
        x[...] = 1.0
        for number in (0, 1):
            thread = threading.Thread(target=wait, args=[number])
            thread.start()
            thread.join()
    assert found == [(0, "the host waits for a device while a stream captures")]


def test_a_capture_of_a_stream_that_is_not_current_sees_nothing(gpu):
    stream = other(gpu)
    stream.begin_capture()
    gpu.arange(3.0)
    with pytest.raises(EmulationError, match="saw no launch: they went to another stream"):
        stream.end_capture()
    with pytest.raises(EmulationError, match="has not begun"):
        stream.end_capture()


def solve(cupy, iterations=120):
    """Solve in the log domain by graphs, as no problem here fits into shared memory."""
    given = [cupy.asarray(x) for x in (a, b, C)]
    return cusink.sinkhorn(*given, eps=0.01, tol=1e-12, max_iter=iterations, method="log", check_every=10)


@pytest.mark.filterwarnings("ignore::cusink.errors.ConvergenceWarning")
def test_a_solve_stays_on_the_caller_s_stream():
    with device_arrays.device(1900) as (cupy, launched):
        wanted = solve(cupy).cost.get()
        assert "logit_update" in launched and not any(name.startswith("iterate") for name in launched)
        stream = other(cupy)
        with stream:
            found = solve(cupy)
        stream.synchronize()
        np.testing.assert_array_equal(found.cost.get(), wanted)


def captured_elsewhere(patch, cupy):
    def captured(launch):
        stream = other(cupy)
        stream.begin_capture()
        launch()
        return stream.end_capture()

    patch.setattr(cupy_stand_in.part("forms"), "captured", captured)


def launched_elsewhere(patch, cupy):
    launch = cupy_stand_in.Graph.launch
    patch.setattr(cupy_stand_in.Graph, "launch", lambda self: inside(other(cupy), lambda: launch(self)))


def kernels_elsewhere(name):
    def plant(patch, cupy):
        run = cupy_stand_in.CapturingKernel.__call__

        def astray(self, *given, **options):
            with other(cupy) if self.name.startswith(name) else cupy.cuda.get_current_stream():
                run(self, *given, **options)

        patch.setattr(cupy_stand_in.CapturingKernel, "__call__", astray)

    return plant


ASTRAY = {
    "a capture of a stream that is not current": (captured_elsewhere, 1900),
    "a graph": (launched_elsewhere, 1900),
    "the first kernel": (kernels_elsewhere("begin_at_once"), 166912),
    "the iterations": (kernels_elsewhere("iterate"), 166912),
    "the last kernel": (kernels_elsewhere("end_at_once"), 166912),
    "a half-step": (kernels_elsewhere("logit_update"), 1900),
    "no kernel": (kernels_elsewhere("none"), 166912),
}


def solve_with(plant, memory):
    with device_arrays.device(memory) as (cupy, _), pytest.MonkeyPatch.context() as patch:
        plant(patch, cupy)
        if memory > 1900:
            return cusink.sinkhorn(*(cupy.asarray(x) for x in (a, b, C)), eps=0.1).cost.get()
        return solve(cupy)


@pytest.mark.parametrize("fault", ASTRAY)
def test_what_goes_to_another_stream_is_found(fault):
    if fault == "no kernel":
        assert np.isfinite(solve_with(*ASTRAY[fault])).all()
        return
    with pytest.raises(EmulationError, match="to another stream|nothing orders the two|may still use it"):
        solve_with(*ASTRAY[fault])


def test_a_capture_that_is_interrupted_is_ended(monkeypatch):
    """Else nothing could wait for the device while the error is held, as it is in a notebook."""
    with device_arrays.device(1900) as (cupy, _):
        forms = cupy_stand_in.part("forms")
        log_sums = forms.reductions.log_sums

        def failing(*given):
            if cupy.cuda.get_current_stream().is_capturing():
                raise KeyboardInterrupt
            return log_sums(*given)

        monkeypatch.setattr(forms.reductions, "log_sums", failing)
        with pytest.raises(KeyboardInterrupt) as held:
            solve(cupy)
        cupy.cuda.Device().synchronize()
        assert held.value.__traceback__ is not None
