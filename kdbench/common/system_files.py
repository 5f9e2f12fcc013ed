"""What Linux says of this process in files: read as text, and its control groups found."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Version = Literal[1, 2]


def read_text(file: Path) -> str:
    """Read a file of the system; empty where it is not there, or not for us."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def group_folders(controller: str, root: Path) -> Iterator[tuple[Path, Version, str]]:
    """Find this process's control groups of a controller, from its own up.

    Yields each one's folder, its version, and its path below the mount. A machine may mount both
    versions, the second below `unified`.
    """
    mount = root / "sys/fs/cgroup"
    version: Version
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            version, tops = 2, [mount, mount / "unified"]
        elif controller in controllers.split(","):
            folders = (mount / controllers, mount / controller)
            version, tops = 1, [next((f for f in folders if f.is_dir()), mount / controller)]
        else:
            continue
        for top in tops:
            own = top / path.strip("/")
            for folder in (own, *own.parents):
                if folder == top or top in folder.parents:
                    name = "/" + str(folder.relative_to(top)).lstrip(".")
                    yield folder, version, name
