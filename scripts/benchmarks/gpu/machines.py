"""What predictions take of a device: by name, or of the one at hand from its attributes and measured rates."""

import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # this checkout, whatever is installed

from cusink.backends.cupy.launch import Device

SCHEDULERS, EXPONENTIALS = 4, 16  # of a multiprocessor
FAST_HALVES = ("80", "90", "100", "103")  # as in cusink/backends/cupy/run.py, which needs CuPy


class Machine(NamedTuple):
    """A device: what `configure` asks for, and rates for each multiprocessor and clock."""

    device: Device
    clock: float  # Hz
    bandwidth: float  # bytes a second
    shared: int  # bytes of shared memory of a multiprocessor
    float_lanes: int
    capability: str
    halves: int  # multiply-adds of half precision with sums in float
    reached: float = 1.0  # of them by mma.sync
    cache: float = math.inf  # bytes a clock that all multiprocessors together read from the L2 cache


MACHINES = {
    "H100": Machine(Device(132, 232448, True), 1.755e9, 3.35e12, 228 << 10, 128, "sm_90", 2048, 0.629, 4472),
    "H200": Machine(Device(132, 232448, True), 1.755e9, 4.8e12, 228 << 10, 128, "sm_90", 2048, 0.629, 4472),
    "A100": Machine(Device(108, 166912, True), 1.41e9, 1.555e12, 164 << 10, 64, "sm_80", 1024, 1.0, 5120),
    "T4": Machine(Device(40, 65536, False), 1.59e9, 0.32e12, 64 << 10, 64, "sm_75", 512),
}
WARPS = {"sm_75": 32, "sm_80": 64, "sm_90": 64, "sm_100": 64, "sm_120": 48}
BUDGETS = tuple(WARPS)  # the capabilities for which registers are committed
# Float lanes and multiply-adds of half precision of a multiprocessor, by capability, as NVIDIA publishes them.
RATES = {"75": (64, 512), "80": (64, 1024), "86": (128, 512), "89": (128, 512), "90": (128, 2048)}
RATES |= {"100": (128, 4096), "103": (128, 4096), "120": (128, 512)}
MEASURED_OF_MMA = {"90": (0.629, 4472.0), "80": (1.0, 5120.0)}  # see predict.py
KILOHERTZ = 1e3


def machine_of(capability, attributes, rates=None):
    """Return the `Machine` of a device from CuPy's attributes, and from rates that were measured on it.

    Of `rates` (as `kernels.device_rates` gives them) the bytes of a copy are the bandwidth, and the exponentials say at
    what clock the device runs. Without them it is the peak of both.
    """
    multiprocessors = attributes["MultiProcessorCount"]
    clock = KILOHERTZ * attributes["ClockRate"]
    # Twice a clock, and the width of the bus is in bits.
    bandwidth = 2 * KILOHERTZ * attributes["MemoryClockRate"] * attributes["GlobalMemoryBusWidth"] / 8
    if rates:
        bandwidth = rates["bytes_per_s"]
        clock = min(clock, rates["exp_per_s"]["float32"] / (EXPONENTIALS * multiprocessors))
    lanes, halves = RATES.get(capability, (128, 512))
    numbers = multiprocessors, attributes["MaxSharedMemoryPerBlockOptin"]
    # The registers of the nearest capability below that has a budget.
    known = [name for name in BUDGETS if int(name[3:]) <= int(capability)] or [BUDGETS[0]]
    return Machine(
        Device(*numbers, capability in FAST_HALVES),
        *(clock, bandwidth, attributes["MaxSharedMemoryPerMultiprocessor"], lanes, known[-1], halves),
        *MEASURED_OF_MMA.get(capability, (1.0, math.inf)),
    )


def machine_of_report(report):
    """Return the `Machine` that a report of ``gpu_truth.py`` was made on, and its name."""
    steps = report["steps"]
    facts = steps["facts"]["rows"][0]
    rates = next((row["rates"] for row in steps.get("operators", {}).get("rows", ()) if "rates" in row), None)
    return machine_of(facts["capability"], facts["attributes"], rates), facts.get("device", "the device of the report")
