"""Pictures: every kind is converted properly or refused, and damage is told."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdbench.common.errors import InputError
from kdbench.worker.data.decode import MOST_PIXELS, decode

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)


def encoded(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data, side=6):
    return decode(data, side, where="here", key="data.path").permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_coloured_picture_is_read_as_it_is(kind, tmp_path):
    picture = Image.fromarray(COLOURS)
    assert np.array_equal(decoded(encoded(picture, kind)), COLOURS)
    path = tmp_path / "picture"
    path.write_bytes(encoded(picture, kind))
    assert np.array_equal(decoded(path), COLOURS)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "MPO", "QOI"])
def test_other_kinds_that_tell_what_they_are(kind):
    if kind.replace("MPO", "JPEG") not in Image.SAVE:
        pytest.skip("this Pillow does not write it")
    flat = Image.new("RGB", (6, 6), (200, 100, 50))
    more = {"save_all": True, "append_images": [flat.rotate(90)]} if kind == "MPO" else {}
    assert np.abs(decoded(encoded(flat, kind, **more)).astype(int) - [200, 100, 50]).max() < 9


@pytest.mark.parametrize("kind", ["ICO", "PCX", "SGI", "TGA", "DDS", "PDF", "EPS"])
def test_kinds_that_do_not_or_are_no_pictures_are_not_read(kind):
    with pytest.raises(InputError, match=r"nothing that is known as a picture"):
        decoded(encoded(Image.fromarray(COLOURS).resize((16, 16)), kind))


def test_a_git_lfs_pointer_says_how_to_fetch_it(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "x.png").write_bytes(pointer)
    for held in (pointer, tmp_path / "x.png"):
        with pytest.raises(InputError, match=r"found the git-LFS pointer.*git lfs pull"):
            decoded(held)


def test_grey_and_black_and_white():
    grey = COLOURS[..., 0]
    assert np.array_equal(decoded(encoded(Image.fromarray(grey))), np.stack([grey] * 3, axis=-1))
    binary = Image.fromarray(grey).point(lambda v: 255 * (v > 99), mode="1")
    assert set(np.unique(decoded(encoded(binary)))) == {0, 255}


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    square = Image.fromarray(np.arange(0, 65536, 65536 // 36, dtype=np.uint16)[:36].reshape(6, 6))
    wanted = np.rint(np.asarray(square) / 257)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decoded(encoded(square, kind))[..., 1], wanted)


def test_transparent_pixels_lie_on_white():
    layers = np.dstack([COLOURS, np.zeros((6, 6), np.uint8)])
    layers[:3, :, 3] = 255
    seen = decoded(encoded(Image.fromarray(layers)))
    assert np.array_equal(seen[:3], COLOURS[:3])
    assert (seen[3:] == 255).all()


def test_a_palette_with_a_transparent_colour():
    picture = Image.fromarray(COLOURS).quantize(4)
    plain = decoded(encoded(picture))
    assert np.array_equal(plain, np.asarray(picture.convert("RGB")))
    indices = np.asarray(picture)
    seen = decoded(encoded(picture, transparency=1))
    assert (seen[indices == 1] == 255).all()
    assert np.array_equal(seen[indices != 1], plain[indices != 1])


def test_an_animation_shows_its_first_frame():
    frames = [Image.fromarray(COLOURS).convert("P"), Image.new("P", (6, 6))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decoded(data), np.asarray(frames[0].convert("RGB")))


def test_the_cameras_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    seen = decoded(encoded(Image.fromarray(COLOURS), exif=exif))
    assert np.array_equal(seen, np.rot90(COLOURS, -1))


def test_another_size_and_shape_is_resized():
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 17, 3), np.uint8))
    wanted = np.asarray(picture.resize((6, 6), Image.Resampling.BILINEAR))
    assert np.array_equal(decoded(encoded(picture)), wanted)


def test_a_kind_whose_range_is_unknown_is_refused():
    depth = Image.fromarray(np.linspace(0, 1e6, 36, dtype=np.float32).reshape(6, 6))
    with pytest.raises(InputError, match=r"here: data.path: .*found Pillow's mode 'F'"):
        decoded(encoded(depth, "TIFF"))


def claiming(width, height):
    """A PNG of a few bytes that says it is so large."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("side", "told"),
    [((8192, 8193), "8192 x 8193"), ((12000, 12000), "12000 x 12000"), ((2**17, 2**17), "more")],
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side, told):
    with pytest.raises(InputError, match=f"at most {MOST_PIXELS} pixels, found {told};") as error:
        decoded(claiming(*side))
    assert "before it is decoded" in str(error.value)


def test_up_to_the_limit_a_picture_is_decoded():
    with pytest.raises(InputError, match=r"damaged"):  # its pixels are not there
        decoded(claiming(8192, 8192))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_picture_is_damaged(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(
        InputError, match=r"here: data.path: expected a whole picture.*; replace it"
    ):
        decoded(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data", [b"", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture_is_refused(data):
    told = "nothing that is known as a picture" if data else "an empty file"
    with pytest.raises(InputError, match=rf"damaged or unknown.*: {told}"):
        decoded(data)


PICTURES = [
    encoded(Image.fromarray(COLOURS).resize((20, 20)), kind)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PICTURES), st.data())
def test_damage_is_an_input_error_or_harmless(data, draw):
    """Whatever a decoder makes of broken bytes, it is told in our words or has the right shape."""
    broken = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 8))):
        broken[draw.draw(st.integers(0, len(broken) - 1))] = draw.draw(st.integers(0, 255))
    try:
        seen = decode(
            bytes(broken[: draw.draw(st.integers(0, len(broken)))]), 8, where="w", key="k"
        )
    except InputError as error:
        told = str(error)
    else:
        told = "w: k: "
        assert seen.shape == (3, 8, 8)
        assert seen.dtype == torch.uint8
    assert told.startswith("w: k: ")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
@example(b"P6 9999999 9999999 255 ")
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(InputError):
        decode(data, 8, where="w", key="k")
