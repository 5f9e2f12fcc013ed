"""Python runs this at the start of every interpreter that has this folder on PYTHONPATH."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _load(name, spec):
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _run_the_next_one():
    # Only one sitecustomize is imported: the environment's own, further down the path, is ours
    # to run.
    elsewhere = [p for p in sys.path if Path(p or ".").resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec and spec.loader:
        _load("the_next_sitecustomize", spec)


_load(
    "fake_nvml_driver",
    importlib.util.spec_from_file_location("fake_nvml_driver", _HERE / "driver.py"),
).install_from_environment()
_run_the_next_one()
