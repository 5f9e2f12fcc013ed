"""matplotlib, imported whatever the user's settings say: figures are files, and need no screen.

Its import fails for a backend in MPLBACKEND that there is not, and for a settings or style file
that cannot be read. The house style (`style.drawing`) takes nothing from either.
"""

import atexit
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from importlib.util import find_spec
from pathlib import Path

_NAMES = ("matplotlib", "matplotlib.style", "seaborn")


def load() -> None:
    """Import what figures are drawn with; once more without the user's settings if that fails."""
    try:
        _import()
    except (ValueError, OSError):
        spec = find_spec("matplotlib")
        if spec is None or spec.origin is None:
            raise
        for name in list(sys.modules):
            if name.partition(".")[0] in _NAMES:  # what was imported half
                del sys.modules[name]
        # A settings file in the current folder comes before all others: there, it is matplotlib's.
        own = Path(spec.origin).parent / "mpl-data"
        with chdir(own), _no_settings():
            _import()


@contextmanager
def _no_settings() -> Iterator[None]:
    """Have matplotlib find an empty folder for the user's, and no backend named."""
    folder = tempfile.mkdtemp(prefix="kdbench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    kept = dict(os.environ)
    os.environ |= {"MPLBACKEND": "agg", "MPLCONFIGDIR": folder}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= kept


def _import() -> None:
    for name in _NAMES:
        importlib.import_module(name)


load()
