"""NVML's error codes in words, each with what can be done about it.

The codes are nvml.h's own: how many of them a binding knows depends on its age.
"""

from dataclasses import dataclass

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND = 3, 4, 9, 12
GPU_IS_LOST, OPERATING_SYSTEM, GPU_NOT_FOUND = 15, 17, 28

_ASK_ADMIN = "ask whoever runs the machine"
_DMESG = "look at dmesg for Xid messages; restart the machine"
_UPDATE = "update the driver"
_UPGRADE = "pip install --upgrade nvidia-ml-py; if it persists, update the driver"
_OPEN = (
    "under a scheduler ask for the card (Slurm: --gres=gpu:1), in a container start it with the "
    "card (--gpus all); elsewhere let your user open /dev/nvidia*"
)
# What NVIDIA's container toolkit documents of it.
_CONTAINER = (
    "restart the container: it loses its cards when the host reloads systemd, as any update may. "
    "To prevent that, pass each node (--device=/dev/nvidia0 --device=/dev/nvidiactl "
    "--device=/dev/nvidia-uvm) or use CDI (--device=nvidia.com/gpu=all). Elsewhere look at dmesg"
)


@dataclass(frozen=True)
class Fault:
    """What an error code says."""

    name: str  #: NVML's own words, by which others have asked about it
    meaning: str  #: what that means for whoever measures
    remedy: str | None = None  #: what to do; None: nothing can be done

    def __str__(self) -> str:
        return f"{self.meaning} ({self.name})"


_FAULTS = {
    1: Fault("Uninitialized", "NVML was not started"),
    2: Fault("Invalid Argument", "the driver does not know what it was asked", _UPDATE),
    3: Fault("Not Supported", "this card or driver does not tell it"),
    4: Fault("Insufficient Permissions", "this process may not open it", _OPEN),
    5: Fault("Already Initialized", "NVML was started twice"),
    6: Fault("Not Found", "there is no such card or process"),
    7: Fault("Insufficient Size", "the driver's answer is longer than it may be", _UPGRADE),
    8: Fault(
        "Insufficient External Power",
        "the card's power cables are not connected",
        "connect the card's external power",
    ),
    9: Fault(
        "Driver Not Loaded",
        "the NVIDIA driver is installed, but not loaded",
        "sudo modprobe nvidia; where that fails, look at dmesg",
    ),
    10: Fault("Timeout", "the driver did not answer in time", _DMESG),
    11: Fault("Interrupt Request Issue", "the kernel gives the card no interrupt", _DMESG),
    12: Fault(
        "NVML Shared Library Not Found",
        "no NVIDIA driver: libnvidia-ml.so.1 cannot be loaded",
        "for a card install its driver; in a container start it with the card (--gpus all)",
    ),
    13: Fault("Function Not Found", "the driver is too old, or has no such function", _UPDATE),
    14: Fault(
        "Corrupted infoROM",
        "the card's own records are damaged",
        "nvidia-smi -q -d INFOROM says which; the card's vendor can restore them",
    ),
    15: Fault("GPU is lost", "the card fell off the bus, or its driver has given it up", _DMESG),
    16: Fault(
        "GPU requires restart",
        "the card needs a reset",
        "sudo nvidia-smi --gpu-reset when nobody uses it, or restart the machine",
    ),
    17: Fault(
        "Operating System blocks the request",
        "the system keeps this process from the card, as by a container's or cgroup's rules",
        _OPEN,
    ),
    18: Fault(
        "Driver/library version mismatch",
        "the NVIDIA library and kernel module are of different versions, as after an update",
        "restart the machine, or reload the module; restart a container that was there before",
    ),
    19: Fault("In use", "the card is in use", "wait until it is free"),
    20: Fault("Insufficient Memory", "the system has no memory left", "free some memory"),
    21: Fault("No Data", "the driver has no figure yet"),
    22: Fault("vGPU ECC not supported", "a virtual card cannot be used with ECC on", _ASK_ADMIN),
    23: Fault("Insufficient Resources", "the card has nothing left to give", "free the card"),
    24: Fault("Frequency not supported", "the card has no such clock"),
    25: Fault(
        "Argument version mismatch",
        "driver and nvidia-ml-py do not know each other's structures",
        _UPGRADE,
    ),
    26: Fault("Deprecated", "the driver has dropped the function", _UPGRADE),
    27: Fault("Not Ready", "the card is not ready yet", "try again in a minute"),
    28: Fault("GPU not found", "the card is gone", _DMESG),
    29: Fault("Invalid State", "the card is in a state that forbids it", _DMESG),
    30: Fault("Reset type not supported", "the card cannot be reset like this"),
    999: Fault(
        "Unknown Error",
        "the driver gives no reason, as in a container that has lost its cards",
        _CONTAINER,
    ),
}


def fault(code: int) -> Fault:
    """Return what an NVML error code says; one that is newer than this table by its number."""
    return _FAULTS.get(code) or Fault(f"NVML error {code}", "the driver refuses", _UPGRADE)
