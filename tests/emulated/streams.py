"""Streams and graphs of the stand-in, as ``cupy.cuda`` has them; `order` keeps the books."""

import emulated

from .order import HERE, LOCK, Address, Line, Work, broken, default, refuse, submit, wait


class Graph:
    """As ``cupy.cuda.Graph``: what a stream has captured, to be done in the stream that is current at a launch."""

    def __init__(self, launches):
        self.launches = launches

    def launch(self):
        refuse("a graph is launched")
        Work.count += 1
        for run, held, reads, writes in self.launches:
            submit(*([address.memory() for address in addresses] for addresses in (reads, writes)))
            run(*(x.array() if isinstance(x, Address) else x for x in held))


class Stream:
    """As ``cupy.cuda.Stream``: current for the thread, and for the device that it was made on."""

    def __init__(self, null=False, non_blocking=False):
        with LOCK:
            self.device_id = -1 if null else HERE.device
            self._line = None if null else Line(HERE.device, not non_blocking, self)

    def _on(self, device):
        return self._line or default(device)

    def _here(self):
        if self.device_id not in (-1, HERE.device):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with the current device "
                f"({HERE.device})"
            )
        return HERE.entered.setdefault(HERE.device, [])

    def __enter__(self):
        self._here().append(self)
        HERE.entered.setdefault(None, []).append(HERE.device)  # to be left, whichever device is current then
        return self

    def __exit__(self, *_):
        HERE.entered[HERE.entered[None].pop()].pop()

    def use(self):
        entered = self._here()
        entered[-1:] = [self]
        return self

    def synchronize(self):
        wait(line=self._on(HERE.device))

    def begin_capture(self):
        if self._line is None:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        with LOCK:
            if self._line.captures:
                raise broken(self._line, "another capture begins")
            self._line.launches, self._line.broken = [], None

    def end_capture(self):
        with LOCK:
            line = self._on(HERE.device)
            if not line.captures:
                raise emulated.EmulationError("a capture ends that has not begun")
            launches, line.launches = line.launches, None
            if line.broken:
                raise emulated.EmulationError(f"a capture gives no graph: {line.broken} while it lasted")
            if not launches:
                raise emulated.EmulationError("a capture saw no launch: they went to another stream")
            return Graph(launches)

    def is_capturing(self):
        return self._on(HERE.device).captures


Stream.null = Stream(null=True)


def get_current_stream():
    """As ``cupy.cuda.get_current_stream``."""
    entered = HERE.entered.get(HERE.device)
    return entered[-1] if entered else Stream.null
