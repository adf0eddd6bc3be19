"""Decoding against trusted decoders (OpenCV, pypng), then formats, failures, resizing and threads."""

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import png
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, TiffImagePlugin

from pipeline.errors import ImageError, UsageError
from pipeline.images import colour, decode
from pipeline.images.decode import FORMATS, MAX_PIXELS, SUFFIXES, load_pixels, open_rgb, read_bytes
from pipeline.images.resize import RESIZE_POLICIES, resize

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
# Smooth, so that a lossy format keeps it; no symmetry, so that a wrong turn shows.
SMOOTH = np.stack(
    [
        np.add.outer(np.arange(32) * 2, np.arange(48) * 3),
        np.add.outer(np.arange(32) * 6, np.arange(48)),
        np.add.outer(np.arange(32)[::-1] * 4, np.arange(48) * 2),
    ],
    axis=-1,
).astype(np.uint8)

ORIENT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source: decode.Source) -> np.ndarray:
    image = open_rgb(source)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def reason_of(source: decode.Source) -> str:
    with pytest.raises(ImageError) as caught:
        open_rgb(source)
    assert "\n" not in str(caught.value)
    assert "0x" not in caught.value.detail, "an address in memory is no stable detail"
    return caught.value.reason


def outcome_of(content: bytes) -> Image.Image | str:
    try:
        return open_rgb(content)
    except ImageError as error:
        return error.reason


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(rows: np.ndarray, depth: int, colour: int, *extra: tuple[bytes, bytes], after: bytes = b"") -> bytes:
    """A PNG of packed rows, with chunks of any kind before (and after) the pixels."""
    height, width = rows.shape[:2]
    flat = rows.reshape(height, -1)
    samples = flat.astype(">u2").view(np.uint8) if depth == 16 else flat.astype(np.uint8)
    if depth < 8:
        bits = np.unpackbits(samples[:, :, None], axis=2)[:, :, 8 - depth :].reshape(height, -1)
        samples = np.packbits(bits, axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw))]
    body = b"".join(chunk(name, content) for name, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + body + after + chunk(b"IEND", b"")


# Trusted decoders on real files


@pytest.mark.parametrize("name", [f"{kind}_{i}" for kind in ("Landscape", "Portrait") for i in range(9)])
def test_exif_orientation_as_opencv(data: Path, name: str) -> None:
    path = data / "odd_images" / "exif_orientation" / f"{name}.jpg"
    expected = cv2.imread(str(path))[:, :, ::-1].astype(int)
    actual = pixels(path)
    assert actual.shape == expected.shape == ((1200, 1800, 3) if "Land" in name else (1800, 1200, 3))
    # Measured: 0 on all 18. Two libjpeg builds may round the inverse DCT and upsampling differently.
    assert np.abs(actual - expected).max() <= 2


def reference_png(content: bytes) -> np.ndarray:
    """Exact samples by pypng, composited on white in floating point."""
    width, height, rows, info = png.Reader(bytes=content).read()
    samples = np.array([list(row) for row in rows], dtype=np.float64).reshape(height, width, info["planes"])
    alpha = np.ones((height, width, 1))
    if info["planes"] == 1 and "palette" in info:
        palette = np.array([(*entry[:3], entry[3] if len(entry) > 3 else 255) for entry in info["palette"]])
        entries = palette[samples[:, :, 0].astype(int)]
        colour, alpha = entries[:, :, :3].astype(float), entries[:, :, 3:] / 255
    else:
        top = 2 ** info["bitdepth"] - 1
        if info.get("transparent") is not None:
            alpha = 1.0 - (samples == np.array(info["transparent"])).all(axis=2, keepdims=True)
        if info["alpha"]:
            samples, alpha = samples[:, :, :-1], samples[:, :, -1:] / top
        colour = np.broadcast_to(samples * 255 / top, (height, width, 3))
    return colour * alpha + 255 * (1 - alpha)


def test_pngsuite_as_pypng(data: Path) -> None:
    paths = sorted((data / "odd_images" / "pngsuite").glob("[!x]*.png"))
    assert len(paths) == 161
    for path in paths:
        expected = reference_png(path.read_bytes())
        actual = pixels(path)
        assert actual.shape == expected.shape, path.name
        # 8 bits and 16-bit grey: rounded exactly. 16-bit colour: Pillow keeps the upper byte (measured: 0.89).
        upper_byte = "2c16" in path.name or "a16" in path.name
        assert np.abs(actual - expected).max() <= (1 if upper_byte else 0.5 + 1e-9), path.name


CORRUPT = {
    "xc1n0g08": "unreadable",  # colour type 1
    "xc9n2c08": "unreadable",  # colour type 9
    "xcrn0g04": "not-an-image",  # CR added: the signature is gone
    "xcsn0g01": "unreadable",  # wrong checksum of the pixels
    "xd0n2c08": "unreadable",  # bit depth 0
    "xd3n2c08": "unreadable",  # bit depth 3
    "xd9n2c08": "unreadable",  # bit depth 99
    "xdtn0g01": "unreadable",  # no pixels
    "xhdn0g08": "unreadable",  # wrong checksum of the header
    "xlfn0g04": "not-an-image",  # LF added: the signature is gone
    "xs1n0g01": "not-an-image",  # signature, byte 1
    "xs2n0g01": "not-an-image",  # signature, byte 2
    "xs4n0g01": "not-an-image",  # signature, byte 4
    "xs7n0g01": "not-an-image",  # signature, byte 7
}


def test_pngsuite_corrupt(data: Path) -> None:
    paths = sorted((data / "odd_images" / "pngsuite").glob("x*.png"))
    assert {path.stem: reason_of(path) for path in paths} == CORRUPT


# Formats


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 12),
        ("JPEG", {"quality": 95, "subsampling": 0}, 4),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 4),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}, 6),
    ],
)
def test_every_format_by_content(kind: str, options: dict, tolerance: int, tmp_path: Path) -> None:
    misnamed = tmp_path / "image.txt"
    misnamed.write_bytes(encoded(SMOOTH, kind, **options))
    assert np.abs(pixels(misnamed) - SMOOTH).max() <= tolerance


def test_first_frame_of_animations() -> None:
    first, second = (Image.fromarray(value) for value in (SMOOTH, 255 - SMOOTH))
    for kind, options, tolerance in [
        ("GIF", {}, 60),  # 256 colours
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("AVIF", {"quality": 95}, 12),
        ("MPO", {"quality": 95}, 30),  # several pictures in one JPEG, as phones write it
    ]:
        content = encoded(first, kind, save_all=True, append_images=[second], **options)
        assert Image.open(io.BytesIO(content)).n_frames == 2
        assert np.abs(pixels(content) - SMOOTH).max() <= tolerance, kind


def test_formats_outside_the_allow_list() -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    for content in (b"hello", b"<!DOCTYPE html><html></html>", svg, b"%PDF-1.7\n", b"\0" * 100, b"\xff\xd8"):
        assert reason_of(content) == "not-an-image"
    for kind in ("EPS", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "DDS", "PDF"):
        assert reason_of(encoded(NOISE, kind)) == "not-an-image", kind
    with pytest.raises(ImageError, match="the content is none of JPEG, PNG, GIF, BMP, WEBP, TIFF, AVIF"):
        open_rgb(b"hello")


def test_suffixes_cover_the_formats() -> None:
    Image.init()
    known = {suffix for suffix, kind in Image.EXTENSION.items() if kind in {*FORMATS, "MPO", "DIB"}}
    assert known == SUFFIXES


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
        ("MPO", {"save_all": True, "append_images": [Image.fromarray(NOISE)]}),
    ],
)
def test_orientation_in_every_format(kind: str, options: dict, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    turned = pixels(encoded(SMOOTH, kind, exif=exif, **options))
    upright = pixels(encoded(SMOOTH, kind, **options))
    assert np.array_equal(turned, ORIENT[orientation](upright))


def test_orientation_after_the_pixels_of_a_png() -> None:
    exif = Image.Exif()
    exif[274] = 6
    content = png_of(NOISE, 8, 2, after=chunk(b"eXIf", exif.tobytes()[6:]))
    assert np.array_equal(pixels(content), ORIENT[6](NOISE))


def test_exif_without_sense_costs_no_image() -> None:
    for value in (0, 9, 65535):
        exif = Image.Exif()
        exif[274] = value
        assert np.array_equal(pixels(encoded(NOISE, "PNG", exif=exif)), NOISE)
    # The orientation as a text of two letters, as 2 numbers, and as a floating-point number.
    for entry in (b"\2\0\2\0\0\0ab\0\0", b"\3\0\2\0\0\0\7\1\6\0", b"\x0b\0\1\0\0\0\0\0\xc0@"):
        exif_bytes = b"Exif\0\0II*\0\x08\0\0\0\1\0" + b"\x12\1" + entry + b"\0\0\0\0"
        assert np.array_equal(pixels(encoded(NOISE, "PNG", exif=exif_bytes)), NOISE)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.binary(max_size=80), st.booleans())
def test_damaged_exif_costs_no_image(kind: str, noise: bytes, tiff_header: bool) -> None:
    exif = b"Exif\0\0" + (b"II*\0\x08\0\0\0" if tiff_header else b"") + noise
    assert open_rgb(encoded(NOISE, kind, exif=exif)).size in {(17, 13), (13, 17)}


def test_damaged_exif_of_avif_and_tiff_costs_no_image() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    good = encoded(SMOOTH, "AVIF", exif=exif)
    start = good.index(exif.tobytes()[6:])
    bad = good[:start] + b"????" + good[start + 4 :]
    assert np.array_equal(pixels(bad), pixels(good))
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[0x8769] = 10**6  # EXIF beyond the end of the file
    assert np.array_equal(pixels(encoded(NOISE, "TIFF", tiffinfo=directory)), NOISE)


# Colour


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    levels = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    levels[0, :4] = 0, 128, 129, 65535
    expected = np.repeat(np.rint(levels / 257)[:, :, None], 3, axis=2)
    big_endian = Image.frombytes("I;16B", (30, 20), levels.astype(">u2").tobytes())
    for source in (
        encoded(levels, "PNG"),
        encoded(levels, "TIFF"),
        encoded(levels, "TIFF", compression="tiff_lzw"),
        encoded(big_endian, "TIFF"),
        Image.fromarray(levels),
        big_endian,
    ):
        assert np.array_equal(pixels(source), expected)


def tiff_grey(bits: int, photometric: int, content: bytes, size: tuple[int, int]) -> bytes:
    """An uncompressed grey TIFF of one strip, little-endian."""
    entries = [(256, size[0]), (257, size[1]), (258, bits), (259, 1), (262, photometric), (273, 8)]
    entries += [(277, 1), (278, size[1]), (279, len(content))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    start = struct.pack("<2sHI", b"II", 42, 8 + len(content))
    return start + content + struct.pack("<H", len(entries)) + directory + b"\0\0\0\0"


def test_unusual_grey_tiffs() -> None:
    levels = np.array([[0, 65535, 257]], dtype="<u2")
    assert pixels(tiff_grey(16, 1, levels.tobytes(), (3, 1)))[0, :, 0].tolist() == [0, 255, 1]
    assert pixels(tiff_grey(16, 0, levels.tobytes(), (3, 1)))[0, :, 0].tolist() == [255, 0, 254]
    # Two samples of 12 bits: 4095 and 2048.
    assert pixels(tiff_grey(12, 1, b"\xff\xf8\x00", (2, 1)))[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    cmyk = np.zeros((16, 32, 4), np.uint8)
    cmyk[:, :16] = 0, 255, 255, 0  # no cyan, all magenta and yellow: red
    cmyk[:, 16:] = 0, 0, 0, 51  # a light grey
    actual = pixels(encoded(cmyk_image(cmyk), kind))
    assert np.abs(actual[:, :12] - [255, 0, 0]).max() <= 3
    assert np.abs(actual[:, 20:] - 204).max() <= 3


def cmyk_image(samples: np.ndarray) -> Image.Image:
    return Image.frombytes("CMYK", (samples.shape[1], samples.shape[0]), samples.tobytes())


def test_ycck_of_adobe() -> None:
    # Pillow writes inverted CMYK; called YCCK (transform 2), its first three planes are YCbCr of the negative.
    ycc = np.asarray(Image.fromarray(255 - SMOOTH).convert("YCbCr"))
    planes = np.dstack([ycc, np.full(ycc.shape[:2], 255, np.uint8)])
    content = encoded(cmyk_image(255 - planes), "JPEG", quality=100, subsampling=0)
    marker = content.index(b"Adobe")
    ycck = content[: marker + 11] + b"\x02" + content[marker + 12 :]
    assert np.abs(pixels(ycck) - SMOOTH).max() <= 5


def test_alpha_on_white() -> None:
    half = (100, 50, 0, 128)
    expected = np.rint(np.array(half[:3]) * 128 / 255 + 255 * 127 / 255)
    rgba = Image.new("RGBA", (4, 4), half)
    for source in (rgba, encoded(rgba, "PNG"), encoded(rgba, "TIFF"), encoded(rgba, "WEBP", lossless=True)):
        assert np.abs(pixels(source) - expected).max() <= 0
    assert np.abs(pixels(rgba.convert("RGBa")) - expected).max() <= 1
    grey = Image.new("LA", (4, 4), (100, 0))
    for source in (grey, grey.convert("La"), encoded(grey, "PNG")):
        assert (pixels(source) == 255).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert pixels(palette)[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    assert pixels(encoded(palette, "PNG", transparency=1))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert pixels(encoded(palette, "GIF", transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert pixels(encoded(palette, "PNG", transparency=b"\x00\xff"))[0].tolist() == [[255] * 3, [40, 50, 60]]
    with_alpha = palette.convert("PA")
    with_alpha.putalpha(Image.new("L", (2, 1), 0))
    assert (pixels(with_alpha) == 255).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_colour_key_of_grey(depth: int) -> None:
    top = 2**depth - 1
    rows = np.array([[0, top, top - 1 if depth > 1 else 0]])
    content = png_of(rows, depth, 0, (b"tRNS", struct.pack(">H", top - 1)))
    key = 0 if depth == 1 else round((top - 1) * 255 / top)
    expected = [0, 255, key]
    expected[0 if depth == 1 else 2] = 255
    expected[2] = 255
    assert pixels(content)[0, :, 0].tolist() == expected


def test_colour_key_of_rgb() -> None:
    rows = np.array([[[10, 20, 30], [10, 20, 31], [10, 10, 10]]])
    content = png_of(rows, 8, 2, (b"tRNS", struct.pack(">3H", 10, 20, 30)))
    assert pixels(content)[0].tolist() == [[255, 255, 255], [10, 20, 31], [10, 10, 10]]


def test_colour_key_of_16_bits_compares_both_bytes() -> None:
    rows = np.array([[[0x1234, 0x5678, 0x9ABC], [0x1235, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9ABC]]])
    content = png_of(rows, 16, 2, (b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)))
    assert pixels(content)[0].tolist() == [[255] * 3, [0x12, 0x56, 0x9A], [255] * 3]
    grey = png_of(np.array([[0x1234, 0x1235]]), 16, 0, (b"tRNS", struct.pack(">H", 0x1234)))
    assert pixels(grey)[0, :, 0].tolist() == [255, 0x12]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_large_images_go_on_white_in_strips(mode: str) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (700, 3001, 4), dtype=np.uint8), "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    white = Image.new("RGBA", image.size, "white")
    expected = np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    assert image.width * image.height > 2 * colour._STRIP_PIXELS
    assert np.array_equal(pixels(image), expected)


def test_one_bit() -> None:
    image = Image.fromarray(NOISE[:, :, 0] > 127)
    expected = np.repeat((NOISE[:, :, :1] > 127) * 255, 3, axis=2)
    for source in (image, encoded(image, "PNG"), encoded(image, "TIFF", compression="group4"), encoded(image, "BMP")):
        assert np.array_equal(pixels(source), expected)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_samples_of_unknown_range_are_refused(mode: str) -> None:
    image = Image.new(mode, (4, 4))
    assert reason_of(image) == "unsupported-pixels"
    assert reason_of(encoded(image, "TIFF")) == "unsupported-pixels"


def test_arrays() -> None:
    assert np.array_equal(pixels(NOISE), NOISE)
    assert np.array_equal(pixels(NOISE[::-1, ::2]), NOISE[::-1, ::2])
    grey = NOISE[:, :, 0]
    for array in (grey, grey[:, :, None]):
        assert np.array_equal(pixels(array), np.repeat(grey[:, :, None], 3, axis=2))
    clear = np.dstack([NOISE, np.zeros_like(grey)])
    assert (pixels(clear) == 255).all()


@pytest.mark.parametrize(
    "array",
    [NOISE / 255, NOISE.astype(np.uint16), NOISE[:, :, :2], NOISE[0, 0], NOISE[None], NOISE > 3],
    ids=["float", "uint16", "two bands", "one axis", "batch", "bool"],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    assert reason_of(array) == "unsupported-pixels"
    with pytest.raises(ImageError, match=r"give uint8 of shape \(h, w\), \(h, w, 1\), \(h, w, 3\) or \(h, w, 4\)"):
        open_rgb(array)


def test_source_of_another_type() -> None:
    with pytest.raises(UsageError, match="int cannot be decoded: give a path, bytes, a PIL image or a uint8 array"):
        open_rgb(3)  # type: ignore[arg-type]


# Failures


def test_empty_sources(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    for source in (b"", tmp_path / "empty.jpg", np.zeros((0, 5, 3), np.uint8), Image.new("RGB", (0, 5))):
        assert reason_of(source) == "empty"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated(kind: str) -> None:
    content = encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    assert reason_of(content[: len(content) * 2 // 3]) == "truncated"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_truncated_avif(share: float) -> None:
    content = encoded(NOISE, "AVIF")
    # libavif takes a container that is too short for damaged, and only missing pixels for truncated.
    assert reason_of(content[: int(len(content) * share)]) in {"truncated", "unreadable"}


@pytest.mark.parametrize("kind", FORMATS)
def test_header_alone_is_damaged_not_foreign(kind: str) -> None:
    assert reason_of(encoded(NOISE, kind)[:16]) in {"truncated", "unreadable"}


def test_decompression_bombs_are_refused_before_decoding() -> None:
    side = 9460
    assert MAX_PIXELS < side**2 < 2 * MAX_PIXELS, "here Pillow only warns"
    small = png_of(np.zeros((1, 1)), 8, 0)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    gif, bmp = bytearray(encoded(NOISE, "GIF")), bytearray(encoded(NOISE, "BMP"))
    gif[6:10] = struct.pack("<HH", side, side)
    bmp[18:26] = struct.pack("<ii", side, side)
    for content in (small[:8] + header + small[33:], bytes(gif), bytes(bmp)):
        assert reason_of(content) == "too-large"
    with pytest.raises(ImageError, match="too-large"):
        load_pixels(np.broadcast_to(np.uint8(0), (side, side)), 8)


def test_bomb_limit_holds_without_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    with pytest.raises(ImageError, match="too-large: 60000 x 60000 pixels, the limit is 89478485 pixels"):
        open_rgb(png_of(np.zeros((1, 1)), 8, 0)[:8] + header + chunk(b"IDAT", b""))


def test_pillow_warns_as_ever_outside_of_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(NOISE, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert reason_of(content) == "too-large"
    with pytest.warns(Image.DecompressionBombWarning) as caught:
        Image.open(io.BytesIO(content))
    assert caught[0].filename == Image.__file__


def test_no_warning_of_pillow_leaks() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\0\0" * 3
    apng = png_of(NOISE, 8, 2, (b"acTL", struct.pack(">II", 0, 0)))
    damaged = encoded(NOISE, "JPEG", exif=exif)
    with pytest.warns(UserWarning, match=r"Corrupt EXIF|larger than file|Truncated"):
        Image.open(io.BytesIO(damaged)).getexif()
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(apng))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_rgb(damaged)
        assert np.array_equal(pixels(apng), NOISE)
    assert not caught


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    Path("folder.jpg").mkdir()
    Path("loop.jpg").symlink_to("loop.jpg")
    Path("dangling.jpg").symlink_to("gone.jpg")
    Path("file").touch()
    with Path("huge.jpg").open("wb") as file:
        file.truncate(decode.MAX_BYTES + 1)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        expected = {
            "pipe.jpg": "not-a-file",
            "folder.jpg": "not-a-file",
            "socket.jpg": "not-a-file",
            "/dev/zero": "not-a-file",
            "loop.jpg": "unreadable",
            "dangling.jpg": "missing",
            "gone.jpg": "missing",
            "file/below.jpg": "missing",
            "x" * 300: "missing",
            "nul\0.jpg": "missing",
            "huge.jpg": "too-large",
            "file": "empty",
        }
        assert {name: reason_of(name) for name in expected} == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.touch(mode=0)
    assert reason_of(path) == "unreadable"


def test_read_bytes_of_any_name(tmp_path: Path) -> None:
    for name in (b"line\nbreak.jpg", b"\xff\xfe.jpg", "مرحبا.jpg".encode(), b"x" * 251 + b".jpg"):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(b"content")
        assert read_bytes(path) == read_bytes(str(path)) == b"content"


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(NOISE, "PNG")
    monkeypatch.setattr(decode, "MAX_BYTES", len(content) - 1)
    assert reason_of(content) == "too-large"


REASONS = {"truncated", "not-an-image", "too-large", "unreadable", "empty", "unsupported-pixels"}
SEEDS = [
    *(encoded(NOISE, kind) for kind in FORMATS),
    encoded(NOISE, "TIFF", compression="tiff_lzw"),
    encoded(NOISE, "TIFF", compression="jpeg"),
    encoded(NOISE, "JPEG", progressive=True),
    encoded(NOISE, "MPO", save_all=True, append_images=[Image.fromarray(NOISE)]),
    encoded(NOISE, "GIF", save_all=True, append_images=[Image.fromarray(255 - NOISE)]),
    encoded(NOISE, "PNG", save_all=True, append_images=[Image.fromarray(255 - NOISE)]),
    encoded(Image.fromarray(NOISE).quantize(16), "PNG", transparency=b"\1\2\3"),
    png_of(np.array([[1, 2, 3]]), 16, 0, (b"tRNS", b"\0\1")),
    png_of(NOISE, 16, 2, (b"tRNS", b"\0\1\0\2\0\3")),
    tiff_grey(16, 1, b"1234", (2, 1)),
]


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
def test_whatever_the_bytes_only_image_errors(
    seed: bytes, edits: list[tuple[float, int]], length: float, cut: bool
) -> None:
    content = bytearray(seed)
    for place, value in edits:
        content[int(place * len(content))] = value
    outcome = outcome_of(bytes(content[: int(length * len(content))] if cut else content))
    assert isinstance(outcome, Image.Image) or outcome in REASONS


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", *(seed[:24] for seed in SEEDS)]))
def test_random_bytes_only_image_errors(noise: bytes, start: bytes) -> None:
    with pytest.raises(ImageError):
        open_rgb(start + noise[: 200 - len(start)])


# Pixels


@pytest.mark.parametrize("policy", RESIZE_POLICIES)
def test_one_decode_path(policy: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    for index, content in enumerate(
        [
            encoded(SMOOTH, "JPEG", exif=exif),
            encoded(SMOOTH, "TIFF", exif=exif),
            png_of(np.array([[3, 5, 15, 0]]), 4, 0, (b"tRNS", b"\0\x05")),
            encoded(RNG.integers(0, 65536, (9, 7), dtype=np.uint16), "PNG"),
            encoded(Image.new("LA", (3, 4), (7, 8)), "PNG"),
        ]
    ):
        path = tmp_path / str(index)
        path.write_bytes(content)
        expected = load_pixels(content, 11, policy)
        assert expected.shape == (11, 11, 3)
        assert expected.dtype == np.uint8
        assert expected.flags.c_contiguous
        assert expected.flags.owndata
        assert expected.flags.writeable
        for source in (
            path,
            str(path),
            Image.open(io.BytesIO(content)),
            open_rgb(content),
            np.asarray(open_rgb(content)),
        ):
            assert np.array_equal(load_pixels(source, 11, policy), expected)


def test_the_source_is_left_alone() -> None:
    image = Image.fromarray(NOISE)
    result = open_rgb(image)
    result.paste((0, 0, 0), (0, 0, 5, 5))
    assert np.array_equal(np.asarray(image), NOISE)
    array = NOISE.copy()
    load_pixels(array, 17)[:] = 0
    assert np.array_equal(array, NOISE)


def test_threads_get_the_same_pixels_and_errors() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\0\0" * 3
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9460, 9460, 8, 0, 0, 0, 0))
    bomb = png_of(np.zeros((1, 1)), 8, 0)[:8] + header + chunk(b"IDAT", b"")
    sources = [*SEEDS, encoded(SMOOTH, "JPEG", exif=exif), bomb, b"text"]

    def outcome(source: bytes) -> bytes | str:
        try:
            return load_pixels(source, 16).tobytes()
        except ImageError as error:
            return error.reason

    expected = [outcome(source) for source in sources]
    assert expected[-2:] == ["too-large", "not-an-image"]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, sources * 40)) == expected * 40


# Resizing


def triangle(values: np.ndarray, size: int) -> np.ndarray:
    """Antialiased linear resampling along the first axis, as in tf.image.resize(antialias=True)."""
    scale = len(values) / size
    support = max(scale, 1.0)
    rows = []
    for index in range(size):
        centre = (index + 0.5) * scale
        weights = np.array([max(0.0, 1 - abs(at + 0.5 - centre) / support) for at in range(len(values))])
        rows.append(np.tensordot(weights / weights.sum(), values, axes=1))
    return np.array(rows)


@pytest.mark.parametrize("shape", [(40, 23), (5, 7), (7, 50)])
def test_squash_is_antialiased_triangle(shape: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = triangle(triangle(image, 9).swapaxes(0, 1), 9).swapaxes(0, 1)
    actual = load_pixels(image, 9)
    assert np.abs(actual - expected).max() <= 1  # Pillow rounds to 8 bits after each axis


def test_crop_takes_the_centre() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (load_pixels(wide, 10, "crop") == 200).all()
    assert (load_pixels(wide.swapaxes(0, 1), 10, "crop") == 200).all()
    noise = RNG.integers(0, 256, (20, 33, 3), dtype=np.uint8)
    # An odd margin is halved to half a pixel: the mirrored image gives the mirrored crop.
    mirrored = load_pixels(noise[:, ::-1], 8, "crop")
    assert np.abs(mirrored[:, ::-1].astype(int) - load_pixels(noise, 8, "crop")).max() <= 1


def test_crop_keeps_the_aspect_ratio() -> None:
    ramp = np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 40, axis=0).repeat(3, axis=2)
    cropped = load_pixels(ramp, 20, "crop")[10, :, 0].astype(float)
    assert np.abs(np.diff(cropped)[1:-1] - 2).max() <= 1  # 40 pixels to 20: steps of 2
    assert cropped.mean() == pytest.approx(49.5, abs=0.5)


def test_pad_centres_on_white() -> None:
    tall = np.zeros((40, 20, 3), np.uint8)
    padded = load_pixels(tall, 20, "pad")
    assert (padded[:, :5] == 255).all()
    assert (padded[:, 5:15] == 0).all()
    assert (padded[:, 15:] == 255).all()
    assert np.array_equal(load_pixels(tall.swapaxes(0, 1), 20, "pad"), padded.swapaxes(0, 1))


@pytest.mark.parametrize("policy", RESIZE_POLICIES)
@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (1, 1), (2, 3)])
def test_extreme_shapes(policy: str, shape: tuple[int, int]) -> None:
    pixels_ = load_pixels(np.full((*shape, 3), 77, np.uint8), 33, policy)
    assert set(np.unique(pixels_)) <= {77, 255}
    assert (pixels_ == 77).any()
    assert policy == "pad" or (pixels_ == 77).all()


def test_same_size_changes_nothing() -> None:
    for policy in RESIZE_POLICIES:
        assert np.array_equal(load_pixels(NOISE[:13, :13], 13, policy), NOISE[:13, :13])


def test_resize_arguments() -> None:
    image = Image.fromarray(NOISE)
    with pytest.raises(UsageError, match="unknown resize policy 'stretch': choose one of squash, crop, pad"):
        resize(image, 8, "stretch")
    with pytest.raises(UsageError, match="size 0 cannot be used"):
        load_pixels(image, 0)


def test_pillow_is_changed_only_while_an_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = [Image, PngImagePlugin, TiffImagePlugin]
    content = encoded(NOISE, "PNG")
    inside, leave = threading.Event(), threading.Event()

    def waiting(path: str) -> bytes:
        inside.set()
        assert leave.wait(60)
        return content

    assert all(module.warnings is warnings for module in watched)
    monkeypatch.setattr(decode, "read_bytes", waiting)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(pixels, "slow.png")
        try:
            assert inside.wait(60)
            assert not any(module.warnings is warnings for module in watched)
            assert Image.warnings.catch_warnings is warnings.catch_warnings
            assert np.array_equal(pixels(content), NOISE)  # another thread is still decoding
            assert not any(module.warnings is warnings for module in watched)
            with monkeypatch.context() as patch:
                patch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
                with pytest.warns(Image.DecompressionBombWarning) as caught:
                    Image.open(io.BytesIO(content))
            assert caught[0].filename == Image.__file__
        finally:
            leave.set()
        assert np.array_equal(future.result(), NOISE)
    assert reason_of(b"damaged") == "not-an-image"
    assert all(module.warnings is warnings for module in watched)


def test_importing_the_decoder_leaves_pillow_alone() -> None:
    code = (
        "import warnings, pipeline.images.decode; from PIL import Image, PngImagePlugin, TiffImagePlugin;"
        "assert all(module.warnings is warnings for module in (Image, PngImagePlugin, TiffImagePlugin))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
