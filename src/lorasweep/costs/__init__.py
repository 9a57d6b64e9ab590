"""What a trial costs, from shapes alone: parameters, memory, seconds. Loads no library."""

from lorasweep.costs.devices import Device
from lorasweep.costs.memory import Memory
from lorasweep.costs.seconds import Calibration, Data, Seconds, calibrate
from lorasweep.methods.base import Parameters

__all__ = [
    "Calibration",
    "Data",
    "Device",
    "Memory",
    "Parameters",
    "Seconds",
    "calibrate",
]
