"""A part's seal: a digest over the whole file, so that one flipped bit anywhere in it is found.

Parquet's own checksums are of its pages alone. What says where a column's pages are lies in the
footer, which has none: a bit there can make one column's value another's, without any error.
"""

from hashlib import blake2b

#: the key of the seal in the file's metadata
SEAL = "kdbench_seal"
# not to be met in anybody's text: of a part without a seal, that would be taken for a broken one
_MARK = b"kdbench blake2b:"
_DIGITS = 64
#: what is in its place while the file is digested
BLANK = (_MARK + b"0" * _DIGITS).decode()


def add_seal(content: bytes) -> bytes:
    """Return a file with its seal in the place of the blank one."""
    place = content.rindex(BLANK.encode()) + len(_MARK)
    return content[:place] + _digest(content) + content[place + _DIGITS :]


def has_broken_seal(content: bytes) -> bool:
    """Whether a file has a seal that is not of its content; an older kdbench's has none."""
    place = content.rfind(_MARK) + len(_MARK)
    if place < len(_MARK):
        return False
    blank = content[:place] + b"0" * _DIGITS + content[place + _DIGITS :]
    return _digest(blank) != content[place : place + _DIGITS]


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGITS // 2).hexdigest().encode()
