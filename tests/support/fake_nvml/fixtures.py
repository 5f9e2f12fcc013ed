"""Fixtures that put the fake driver under this process or its children, and the scripts."""

import json
import os
from pathlib import Path

import pynvml
import pytest

from tests.support.fake_nvml import driver

UUID = "GPU-5ca1ab1e-0000-4000-8000-000000000001"
OTHER_UUID = "GPU-5ca1ab1e-0000-4000-8000-000000000002"
MIG_UUID = "MIG-5ca1ab1e-0000-5000-8000-000000000003"
GIB = 2**30


def card(**changes):
    """An ordinary card; a change to None makes the figure unsupported."""
    return {
        "uuid": UUID,
        "name": "Fake GPU 80GB",
        "total": 80 * GIB,
        "reserved": GIB // 2,
        "used": 3 * GIB,
        "power_mw": 70_500,
        "energy_mj": 1_000_000,
        "busy_percent": 37,
        "sm_mhz": 1980,
        "celsius": 61,
        "throttle": 0,
        "processes": {},
    } | changes


@pytest.fixture
def fake_nvml(monkeypatch):
    """Call with a script (or cards) to put the driver under pynvml in this process."""

    def install(*cards, **script):
        script = {"gpus": list(cards), **script}
        monkeypatch.setattr(pynvml, "CDLL", driver.patched(pynvml.CDLL, script))
        # What pynvml remembers of a library that was loaded before.
        monkeypatch.setattr(pynvml, "nvmlLib", None)
        monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    return install


@pytest.fixture
def fake_nvml_environment(tmp_path):
    """Call with a script (or cards) for the environment of a child that is to have the driver."""

    def environment(*cards, **script):
        path = tmp_path / "driver.json"
        path.write_text(json.dumps({"gpus": list(cards), **script}))
        paths = [str(Path(driver.__file__).parent), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            driver.SCRIPT: str(path),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }

    return environment
