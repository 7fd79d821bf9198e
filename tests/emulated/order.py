"""Streams of the stand-in's devices: which is current, what comes before what, and what a capture forbids.

Work is done at once here, so that values are right in any order. What a device would be free to exchange is found by
bookkeeping instead: each stream numbers its operations and knows how many of every other stream's come before its next
one, the host knows how many have ended, and each array remembers who wrote it and who has read it since. An operation
that meets an array of another stream's which nothing orders before it is an error, and so is memory that goes back to
the pool of its stream while another stream may still use it.

The rules of captures are those of CUDA's programming guide ("prohibited and unhandled operations"), in the relaxed
mode that CuPy takes. One is stricter: nothing is allocated in a capture. CUDA allows it, but a graph would then write
to memory that the pool has given to somebody else.
"""

import contextlib
import threading
import weakref

import numpy as np

import emulated

LOCK = threading.RLock()  # of all that follows; an array may be freed at any time, in the middle of it too


class Here(threading.local):
    """What each thread has for itself: the device that is current, and the streams made current, of each device."""

    def __init__(self):
        self.device, self.entered = 0, {}


HERE = Here()


class Work:
    """How many things were given to a device to do: launches, graphs, operations on arrays, copies from the host.

    `waits` are the times that the host waited for a device: copies to the host, and numbers that it read.
    """

    count, waits = 0, 0


class Line:
    """The operations of one stream of one device, in their order."""

    def __init__(self, device, blocking, stream=None):
        self.device, self.blocking, self.legacy = device, blocking, stream is None
        self.stream = weakref.ref(stream) if stream is not None else None
        self.count, self.ended, self.before = 0, 0, {}  # before: by line, how many come before the next operation
        self.launches, self.broken = None, None  # of a capture: what it has seen, and what has ended it
        self.name = "the default stream" if stream is None else f"stream {len(State.lines)}"
        State.lines.append(self)

    @property
    def captures(self):
        return self.launches is not None and (self.stream is None or self.stream() is not None)

    def wait_for(self, other):
        """Let what is added from now on come after all that `other` has."""
        for line, count in ((other, other.count), *other.before.items()):
            self.before[line] = max(count, self.before.get(line, 0))

    def follows(self, access):
        """Whether what is added next comes after an access, (line, number), or None."""
        return access is None or access[0] is self or access[1] <= max(access[0].ended, self.before.get(access[0], 0))

    def end(self):
        """Note that the host has seen the end of all of this, and so of all that came before."""
        self.ended = self.count
        for line, count in self.before.items():
            line.ended = max(line.ended, count)


class State:
    """Of all devices."""

    lines, defaults, cells, faults = [], {}, {}, []

    @classmethod
    def clear(cls):
        with LOCK:
            cls.lines, cls.defaults, cls.cells, cls.faults = [], {}, {}, []
            HERE.device, HERE.entered = 0, {}


class Cell:
    """What is known of the memory of an array: whose pool it came from, who wrote it, and who has read it since."""

    def __init__(self, owner, home):
        self.what, self.home = f"{owner.dtype} {owner.shape}", home
        self.written, self.read = None, {}
        key = id(owner)
        self.kept = weakref.ref(owner, lambda _: freed(key))


def default(device):
    """Return the default (legacy) stream of a device."""
    if device not in State.defaults:
        State.defaults[device] = Line(device, True)
    return State.defaults[device]


def current(device=None):
    """Return the line of the stream that is current for this thread, on the current device or on another."""
    device = HERE.device if device is None else device
    entered = HERE.entered.get(device)
    return entered[-1]._on(device) if entered else default(device)


def broken(line, what):
    """Return the error of an operation that a capture forbids, and with which it ends."""
    line.broken = what
    return emulated.EmulationError(f"{what} while a stream captures")


def refuse(what, device=None):
    """Refuse what needs more than a place in the stream while the current one captures."""
    with LOCK:
        line = current(device)
        if line.captures:
            raise broken(line, what)


def neighbours(line):
    """Return the streams that the default stream waits for, or of one of those the default stream."""
    if not line.blocking:
        return []
    found = [other for other in State.lines if other.device == line.device and other.blocking and other is not line]
    return found if line.legacy else [other for other in found if other.legacy]


def reach(line, what):
    """Order an operation of `line` among those of the streams that CUDA orders it with by itself."""
    if State.faults:
        raise emulated.EmulationError(State.faults.pop(0))
    for other in neighbours(line):
        if line.legacy and other.captures:
            raise broken(other, f"{what} on the default stream")
        line.wait_for(other)


def owner_of(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def cell_of(array, home=None):
    owner = owner_of(array)
    cell = State.cells.get(id(owner))
    if cell is None or cell.kept() is not owner:
        cell = State.cells[id(owner)] = Cell(owner, home)
    return cell


def made(array, device=None):
    """Note that memory of the pool of the current stream is an array's now; nobody has written it."""
    with LOCK:
        refuse("memory is allocated", device)
        cell_of(array, current(device))


def freed(key):
    """Note that memory went back to the pool of its stream, which may give it away at once."""
    with LOCK:
        cell = State.cells.pop(key, None)
        if cell is None or cell.home is None:
            return
        for access in (cell.written, *cell.read.items()):
            if not cell.home.follows(access):
                State.faults.append(f"{cell.what} of {cell.home.name} is freed while {access[0].name} may still use it")
                return


def submit(reads=(), writes=(), new=(), device=None, line=None):
    """Add an operation to the current stream: it reads, writes, and writes into `new` memory of the pool."""
    with LOCK:
        line = line or current(device)
        reach(line, "an operation")
        for array in reads:
            meet(line, cell_of(array), "reads", False)
        for array in writes:
            meet(line, cell_of(array), "writes", True)
        line.count += 1
        for array in reads:
            cell_of(array).read[line] = line.count
        for array in (*writes, *new):
            cell = cell_of(array, line)
            cell.written, cell.read = (line, line.count), {}


def meet(line, cell, does, writing):
    for access in (cell.written, *(cell.read.items() if writing else ())):
        if not line.follows(access):
            verb = "writes" if access is cell.written else "reads"
            raise emulated.EmulationError(
                f"{line.name} of device {line.device} {does} {cell.what}, which {access[0].name} of device "
                f"{access[0].device} {verb}: nothing orders the two"
            )


def wait(device=None, line=None):
    """Let the host wait for the current stream, or another."""
    with LOCK:
        line = line or current(device)
        if line.captures:
            raise broken(line, "the host waits")
        reach(line, "the host waits")
        line.end()


def read(array, device):
    """Let the host wait for a copy of an array, which the current stream of its device makes."""
    refuse("the host reads an array", device)
    submit([array], device=device)
    wait(device)


def wait_for_device(device):
    with LOCK:
        for line in (lines := [line for line in State.lines if line.device == device]):
            if line.captures:
                raise broken(line, "the host waits for a device")
        for line in lines:
            line.end()
        if State.faults:
            raise emulated.EmulationError(State.faults.pop(0))


def add(run, arguments, reads, writes):
    """Let the current stream do ``run(*arguments)``: now, or whenever the graph is launched that it captures.

    `reads` and `writes` are those of the arguments, NumPy arrays of a device, that it reads and writes.
    """
    with LOCK:
        line = current()
        if line.captures:
            held = [Address(x) if isinstance(x, np.ndarray) else x for x in arguments]
            line.launches.append((run, held, *([Address(x) for x in arrays] for arrays in (reads, writes))))
            return
        submit(reads, writes)
    Work.count += 1
    run(*arguments)


class Address:
    """What a captured launch knows of an array: where its memory is, which it does not keep alive."""

    def __init__(self, array):
        owner = owner_of(array)
        self.owner = weakref.ref(owner)
        place = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        self.view = array.shape, array.dtype, place, array.strides

    def memory(self):
        """Return the array that has the memory, if it is still its own."""
        owner = self.owner()
        if owner is None:
            raise emulated.EmulationError("a graph writes or reads an array that has been freed")
        return owner

    def array(self):
        """Return the array."""
        shape, dtype, place, strides = self.view
        return np.ndarray(shape, dtype, self.memory().data, place, strides)


@contextlib.contextmanager
def bookkeeping():
    """Within it all is new, and what was found where nobody could be told is an error at the end."""
    State.clear()
    try:
        yield
        if State.faults:
            raise emulated.EmulationError(State.faults[0])
    finally:
        State.clear()
