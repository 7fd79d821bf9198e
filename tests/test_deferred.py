"""Properties and fields that are computed when they are read."""

import copy
import dataclasses
import functools
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cusink.deferred import Deferred, Deferring, cached_property


@dataclasses.dataclass(frozen=True)
class Pair(Deferring):
    known: int
    first: list[int]
    second: list[int]


def pair(asked):
    def compute():
        asked.append(1)
        return {"first": [1], "second": [2]}

    later = Deferred(compute)
    return Pair(3, later, later)


def test_fields_are_computed_together_when_one_is_read():
    asked = []
    made = pair(asked)
    assert made.known == 3 and {"known", "first", "second"} < set(dir(made)) and not asked
    assert made.second == [2] and made.first == [1] and asked == [1]
    assert made.first is made.first and made == Pair(3, [1], [2])


def test_an_attribute_that_is_not_there_computes_nothing():
    asked = []
    made = pair(asked)
    with pytest.raises(AttributeError, match="'Pair' object has no attribute 'third'") as caught:
        _ = made.third
    assert caught.value.name == "third" and not hasattr(made, "__array__") and not asked
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.first = [7]
    assert made.first == [1]


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, dataclasses.replace, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_have_the_values(again):
    asked = []
    made = again(pair(asked))
    assert asked == [1] and vars(made) == {"known": 3, "first": [1], "second": [2]}
    assert vars(again(made)) == vars(made) and vars(again(Pair(3, [1], [2]))) == vars(made)


def test_what_fails_is_computed_again():
    """An interrupt while a field is computed leaves nothing behind."""
    asked = []

    def compute():
        asked.append(1)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return {"first": [1], "second": [2]}

    later = Deferred(compute)
    made = Pair(3, later, later)
    with pytest.raises(KeyboardInterrupt):
        _ = made.first
    assert made.first == [1] and asked == [1, 1]


def test_threads_that_read_at_once_find_the_same_objects():
    barrier, found = threading.Barrier(8), []

    def compute():
        barrier.wait(10)  # all of them are here before one is done
        return {"first": [1], "second": [2]}

    later = Deferred(compute)
    made = Pair(3, later, later)
    threads = [threading.Thread(target=lambda: found.append((made.first, made.second))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({(id(x), id(y)) for x, y in found}) == 1


class Lazy:
    """Something with a property that takes as long as all readers need to meet."""

    def __init__(self, readers):
        self.meeting = threading.Barrier(readers, timeout=10)

    @cached_property
    def value(self):
        self.meeting.wait()
        return object()


def read_at_once(*objects):
    """Return what a thread for each of the objects reads."""
    with ThreadPoolExecutor(len(objects)) as pool:
        return [job.result() for job in [pool.submit(getattr, x, "value") for x in objects]]


def test_properties_of_two_objects_are_computed_at_once():
    first, second = Lazy(2), Lazy(2)
    second.meeting = first.meeting
    assert read_at_once(first, second) == [first.value, second.value]
    assert first.value is not second.value


def test_readers_of_one_property_find_one_value():
    lazy = Lazy(2)
    one, other = read_at_once(lazy, lazy)
    assert one is other
    assert one is lazy.value


def test_a_property_is_documented_as_one_of_python():
    assert isinstance(Lazy.value, functools.cached_property)
    assert Lazy.value.attrname == "value"
