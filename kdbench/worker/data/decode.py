"""From an encoded picture to pixels: checked, coloured, resized to the stored side."""

import importlib
import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kdbench.common.errors import InputError, first_line
from kdbench.worker.data.untrusted import is_pointer
from kdbench.worker.out_of_memory import is_shortage

#: Pixels of the largest picture that is decoded: the square of the largest side that a matrix file
#: may ask for. A few kilobytes can claim to be more than the memory holds.
MOST_PIXELS = 8192 * 8192

# Raster formats that a file's first bytes show. Of the others that Pillow knows some start programs
# to be read (EPS), some are taken for whatever lies there (TGA), and some are no pictures (MPEG).
_NAMES = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP")


# Their readers make themselves known to Pillow when they are imported; no others are.
_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Jpeg2K", "Mpo", "Png", "Ppm", "Qoi", "Tiff", "WebP")
for _plugin in _PLUGINS:
    with suppress(ImportError):  # an older Pillow
        importlib.import_module(f"PIL.{_plugin}ImagePlugin")
# A camera's several pictures in one file (MPO) are opened as the JPEG that they begin with.
_FORMATS = tuple(name for name in _NAMES if name in Image.OPEN)

#: Endings of pictures that this Pillow reads, in lower case.
SUFFIXES = frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in _NAMES)

# What Pillow turns into RGB by a plain conversion, without loss of meaning.
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_ALPHA_MODES = ("RGBA", "LA", "PA")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(encoded: bytes | Path, side: int, *, where: str, key: str) -> Tensor:
    """Decode a picture and resize it.

    Grey and palette pictures become RGB, 16-bit grey is scaled to 8 bits, transparent pixels lie
    on white, the camera's orientation is applied, and of an animation the first frame is taken. A
    picture that is no square is stretched to one, as the teachers' own preprocessing does: uint8,
    [3, side, side]. `where` and `key` name the picture in an error.
    """
    opened = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    try:
        with Image.open(opened, formats=_FORMATS) as picture:
            _check_header(picture, where, key)  # before a single pixel is decoded
            coloured = _coloured(ImageOps.exif_transpose(picture))
        if coloured.size != (side, side):
            coloured = coloured.resize((side, side), Image.Resampling.BILINEAR)
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise _too_large("more", where, key) from None
    except Exception as error:  # a decoder that is fed with damage raises whatever it likes
        if is_shortage(error):
            raise
        raise _unreadable(encoded, error, where, key) from error
    return torch.from_numpy(np.array(coloured)).permute(2, 0, 1)


def is_picture(file: Path) -> bool:
    """Whether a file begins as a picture that is read here, whatever it is called."""
    try:
        with Image.open(file, formats=_FORMATS):
            return True
    except Exception:  # noqa: BLE001 - a decoder that is fed with anything raises whatever it likes
        return False


def _unreadable(encoded: bytes | Path, error: Exception, where: str, key: str) -> InputError:
    if is_pointer(encoded):
        found, remedy = "the git-LFS pointer to one", "git lfs pull fetches it"
    else:
        problem = first_line(error)
        if isinstance(error, UnidentifiedImageError):  # it names the file again, or an object
            size = len(encoded) if isinstance(encoded, bytes) else encoded.stat().st_size
            problem = "nothing that is known as a picture" if size else "an empty file"
        found = f"a damaged or unknown one: {type(error).__name__}: {problem}"
        remedy = "replace it or take it out of the data set"
    return InputError(f"expected a whole picture, found {found}", where=where, key=key, hint=remedy)


def _check_header(picture: Image.Image, where: str, key: str) -> None:
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise _too_large(f"{width} x {height}", where, key)
    # "I" is Pillow's name for 16-bit grey PNGs where it is older; elsewhere its range is unknown.
    deep = picture.mode in _DEEP_MODES or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if not deep and picture.mode not in _PLAIN_MODES + _ALPHA_MODES:
        raise InputError(
            f"expected 8-bit colour or grey, or 16-bit grey, found Pillow's mode {picture.mode!r}",
            where=where,
            key=key,
            hint="save it as an 8-bit RGB picture",
        )


def _too_large(found: str, where: str, key: str) -> InputError:
    return InputError(
        f"expected at most {MOST_PIXELS} pixels, found {found}",
        where=where,
        key=key,
        hint="it is refused before it is decoded; shrink it or take it out of the data set",
    )


def _coloured(picture: Image.Image) -> Image.Image:
    if picture.mode in _DEEP_MODES or picture.mode == "I":
        # Pillow's own conversion clips at 255. 65535 = 255 * 257, so this rounds to nearest.
        deep = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode in _ALPHA_MODES or "transparency" in picture.info:
        transparent = picture.convert("RGBA")
        ground = Image.new("RGBA", transparent.size, "white")
        return Image.alpha_composite(ground, transparent).convert("RGB")
    return picture.convert("RGB")
