"""What a worker must know and never writes: the hub's token, and passwords in addresses.

A worker that reads from the hub is given these, and the hub's libraries write addresses into their
warnings. Logs and results are passed on.
"""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

_HIDDEN = "[hidden]"
# A shorter one would be found in the middle of words.
_SHORTEST = 6
# how the names end of the variables that have an address
_ADDRESSES = ("_proxy", "_endpoint")
_PASSWORD = re.compile(r"(?<=//)[^/@\s'\"]+@")


class Secrets:
    """The secrets in an environment, to be left out of texts."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        tokens = {
            value.strip()
            for name, value in environment.items()
            if name.startswith(("HF_", "HUGGING")) and "TOKEN" in name
        }
        tokens = {token for token in tokens if len(token) >= _SHORTEST}
        for name, value in environment.items():
            if name.lower().endswith(_ADDRESSES):  # a folder may have an @ in its name as well
                tokens |= _passwords(value)
        self._tokens = sorted(tokens, key=len, reverse=True)

    def left_out(self, text: str) -> str:
        """Return a text without them."""
        for token in self._tokens:
            text = text.replace(token, f"{_HIDDEN}@" if token.endswith("@") else _HIDDEN)
        return _PASSWORD.sub(f"{_HIDDEN}@", text) if "@" in text else text


def _passwords(address: str) -> set[str]:
    """Find what an address says before its `@`, in the ways in which libraries write it.

    Whatever its letters are: texts in general can be searched for the usual ones alone.
    """
    user = address.partition("//")[2] or address
    known = user.rpartition("@")[0]
    if not known:
        return set()
    written = {known, unquote(known)}
    parts = {part.partition(":")[2] for part in written}
    return {f"{part}@" for part in written} | {p for p in parts if len(p) >= _SHORTEST}


SECRETS = Secrets(os.environ)


class _Stream:
    """A text stream that leaves secrets out of what it writes; else it is the one it stands for."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without the secrets in it."""
        self._stream.write(SECRETS.left_out(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write lines without the secrets in them."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def hide() -> None:
    """Keep secrets out of what this process prints, before any library holds its streams."""
    sys.stdout, sys.stderr = _Stream(sys.stdout), _Stream(sys.stderr)
