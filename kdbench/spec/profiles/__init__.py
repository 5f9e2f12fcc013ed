"""The device profiles that come with kdbench, as files; `device_profile` reads them."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def known_profiles() -> tuple[str, ...]:
    """List the profiles that come with kdbench, by name."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))


def profile_text(name: str) -> str:
    """Return the TOML of one of them."""
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
