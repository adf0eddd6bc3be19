"""Bad and odd images and file names among good ones, and a decoder that gets corrupted files."""

import io
import json
import os
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attacks.damage import mutated
from attacks.memory import Memory
from attacks.victim import SIZE, Victim, colour, extract_words, paint_folder, run

Counts = dict[str, float]
Make = Callable[[Path], object]


def bad_images(work: Path, scale: float, seed: int) -> Counts:
    """Put more than 50 kinds of bad images among 1,000 good ones; good rows are right, bad ones have their reason."""
    from pipeline.features.store import FeatureStore

    photos, out = work / "photos", work / "out" / "f.h5"
    out.parent.mkdir()
    good = paint_folder(photos, max(20, round(1000 * scale)))
    for kind, (_, make) in BAD.items():
        make(photos / "a" / f"bad {kind}.jpg")
    for kind, make in ODD.items():
        make(photos / "b" / f"odd {kind}.jpg")
    victim = Victim(extract_words(photos, out, "--max-bad", "1", "--json"), out.parent)
    with Memory(victim.process.pid or 0, shares=True) as memory:
        ending = victim.ending()
    counts = Counter[str](hangs=ending.code is None, failed=ending.code != 0)
    counts.update({"good": len(good), "bad kinds": len(BAD), "odd kinds": len(ODD)})
    with FeatureStore(out) as store:
        rows = dict(zip(store.paths, map(tuple, store.features.tolist()), strict=True))
        reasons = {path: reason.split(":")[0] for path, reason in store.skipped.items()}
    counts["good lost"] = len(good.keys() - rows.keys())
    counts["good wrong"] = sum(rows.get(path, vector) != vector for path, vector in good.items())
    listed = {path.removeprefix("a/bad ").removesuffix(".jpg"): reason for path, reason in reasons.items()}
    left_out = json.loads(ending.stdout)["left_out"] if ending.stdout else {}
    unlisted = {kind for kind, (reason, _) in BAD.items() if listed.get(kind) != reason and reason != LEFT_OUT}
    expected_out = sum(reason == LEFT_OUT for reason, _ in BAD.values())
    counts["bad without its reason"] = len(unlisted) + abs(sum(left_out.values()) - expected_out)
    counts["odd lost"] = sum(f"b/odd {kind}.jpg" not in rows for kind in ODD)
    return {**counts, "memory MB": round(memory.peak_mb), "seconds": round(ending.seconds, 1)}


def names(work: Path, scale: float, seed: int) -> Counts:
    """Give images names that break tools; no image is lost or merged, and every table can be parsed."""
    import csv

    from pipeline.features.store import FeatureStore

    photos, out, bundle = work / "photos", work / "out" / "f.h5", work / "out" / "b"
    out.parent.mkdir()
    paths = [f"{'ab'[number % 2]}/{name}" for number, name in enumerate(NAMES)]
    for number, path in enumerate(paths):
        (photos / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), colour(number + 1)).save(photos / path, "PNG")
    counts = Counter[str](names=len(paths))
    counts["failed"] += run(extract_words(photos, out), out.parent).code != 0
    with FeatureStore(out) as store:
        rows = dict(zip(store.paths, map(tuple, store.features.tolist()), strict=True))
        classes = {path: store.classes[label] for path, label in zip(store.paths, store.labels, strict=True)}
    counts["lost or merged"] += len(set(paths) ^ rows.keys())
    counts["wrong"] += sum(rows.get(path) != colour(number + 1) for number, path in enumerate(paths))
    counts["wrong"] += sum(name != path[0] for path, name in classes.items())
    counts["failed"] += run(["train-head", str(out), "--out", str(bundle), "--head", "lda", "--quiet"], work).code != 0
    for suffix in (".csv", ".jsonl", ".parquet"):
        table = work / f"p{suffix}"
        counts["failed"] += run(["predict", str(bundle), str(photos), "--out", str(table), "--quiet"], work).code != 0
        if suffix == ".csv":
            with table.open(encoding="utf-8", newline="") as file:
                found = [row["path"] for row in csv.DictReader(file)]
            expected = {f"{photos}/{path}".encode("utf-8", "backslashreplace").decode() for path in paths}
        elif suffix == ".jsonl":
            found = [json.loads(line)["path"] for line in table.read_text("utf-8").splitlines()]
            expected = {f"{photos}/{path}" for path in paths}
        else:
            import pyarrow.parquet

            found = pyarrow.parquet.read_table(table)["path"].to_pylist()
            expected = {f"{photos}/{path}".encode("utf-8", "backslashreplace").decode() for path in paths}
        counts["not in the table"] += len(expected ^ set(found)) + abs(len(found) - len(paths))
    return dict(counts)


def decoder_fuzz(work: Path, scale: float, seed: int) -> Counts:
    """Give the decoder corrupted files of every format for a limited time; only pixels or an ImageError may result."""
    from pipeline.errors import ImageError
    from pipeline.images.decode import load_pixels
    from pipeline.images.isolation import Decoders

    rng, counts = random.Random(seed), Counter[str]()
    seeds = [content for _, content in _seeds()]
    end = time.monotonic() + 60 * scale
    with Decoders(load_pixels, time_limit=10) as decode:
        while time.monotonic() < end:
            counts["files"] += 1
            try:
                pixels = decode(mutated(rng.choice(seeds), rng), SIZE, rng.choice(["squash", "crop", "pad"]))
                counts["wrong shape"] += pixels.shape != (SIZE, SIZE, 3)
                counts["decoded"] += 1
            except ImageError as error:
                counts["refused"] += 1
                counts[error.reason] += error.reason in ("crashed", "timeout")
            except Exception:  # noqa: BLE001 - what the attack looks for
                counts["other errors"] += 1
    return dict(counts)


def _picture(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2).astype(np.uint8)
    return Image.fromarray(np.dstack([ramp, ramp[::-1], 255 - ramp])).convert(mode)


def _encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or _picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def _seeds() -> Iterator[tuple[str, bytes]]:
    frames: dict[str, Any] = {"save_all": True, "append_images": [_picture().rotate(90)]}
    exif = Image.Exif()
    exif[274] = 6
    yield "jpeg", _encoded("JPEG", exif=exif)
    yield "progressive jpeg", _encoded("JPEG", progressive=True, quality=40)
    yield "cmyk jpeg", _encoded("JPEG", _picture(mode="CMYK"))
    for mode in ("1", "L", "P", "RGB", "RGBA", "I;16"):
        yield (
            f"png {mode}",
            _encoded("PNG", _picture(mode="L").convert(mode) if mode == "I;16" else _picture(mode=mode)),
        )
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield f"tiff {compression}", _encoded("TIFF", compression=compression)
    yield "fax tiff", _encoded("TIFF", _picture(mode="1"), compression="group4")
    yield "gif", _encoded("GIF", **frames)
    yield "webp", _encoded("WEBP")
    yield "animated webp", _encoded("WEBP", **frames)
    yield "bmp", _encoded("BMP")
    yield "avif", _encoded("AVIF")


def _png(width: int, height: int, rows: bytes = b"", colour_type: int = 2) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _tiff(width: int, height: int, count: int = 1) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, count), (278, height), (279, 9)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def _webp(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _holding(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _link(path: Path) -> None:
    path.with_name("target").write_bytes(_JPEG)
    path.symlink_to("target")


def _unreadable(path: Path) -> None:
    # unreadable for root too
    path.symlink_to("/proc/self/mem")


_JPEG, _PNG = _encoded("JPEG", quality=90), _encoded("PNG")
_START = _JPEG.index(b"\xff\xda") + 14  # of the pixel data
_TWELVE_BITS = _JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c")
LEFT_OUT = "left out of the list, and counted"
# kind: (expected reason, function that makes the file)
BAD: dict[str, tuple[str, Make]] = {
    "zero bytes": ("empty", _holding(b"")),
    "one byte": ("not-an-image", _holding(b"\xff")),
    "zeros": ("not-an-image", _holding(bytes(5000))),
    "noise": ("not-an-image", _holding(random.Random(0).randbytes(5000))),
    "text": ("not-an-image", _holding(b"dear diary")),
    "html": ("not-an-image", _holding(b"<!DOCTYPE html><html><img src=x onerror=alert(1)></html>")),
    "svg": ("not-an-image", _holding(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>')),
    "eps": ("not-an-image", _holding(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n")),
    "pdf": ("not-an-image", _holding(b"%PDF-1.7\n1 0 obj\n")),
    "zip": ("not-an-image", _holding(b"PK\x03\x04" + bytes(60))),
    "pickle": ("not-an-image", _holding(b"cos\nsystem\n(S'false'\ntR.")),
    "jpeg 2000": ("not-an-image", _holding(_encoded("JPEG2000"))),
    "icon": ("not-an-image", _holding(_encoded("ICO"))),
    "12-bit jpeg": ("unreadable", _holding(_TWELVE_BITS)),
    "jpeg header": ("unreadable", _holding(_JPEG[:4])),
    "png header": ("unreadable", _holding(_PNG[:8])),
    "png wrong checksum": ("unreadable", _holding(_PNG[:60] + bytes([_PNG[60] ^ 1]) + _PNG[61:])),
    "png without pixels": ("truncated", _holding(_png(9, 9))),
    "png bomb": ("too-large", _holding(_png(60_000, 60_000, bytes(60_000 * 60)))),
    "gif bomb": (
        "too-large",
        _holding(b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;"),
    ),
    "tiff bomb": ("too-large", _holding(_tiff(2**31 - 1, 2**31 - 1))),
    "webp bomb": ("too-large", _holding(_webp(16384, 16384))),
    "bmp bomb": (
        "too-large",
        _holding(b"BM" + struct.pack("<IIIIiiHHIIiiII", 60, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)),
    ),
    "float tiff": ("unsupported-pixels", _holding(_encoded("TIFF", _picture(mode="F")))),
    "fifo": (LEFT_OUT, lambda path: os.mkfifo(path)),
    "device": (LEFT_OUT, lambda path: path.symlink_to("/dev/zero")),
    "folder": (LEFT_OUT, lambda path: path.mkdir()),
    "link loop": (LEFT_OUT, _link_to_itself),
    "broken link": (LEFT_OUT, lambda path: path.symlink_to("nowhere")),
    "unreadable": ("unreadable", _unreadable),
    **{
        f"jpeg cut {i}": ("truncated", _holding(_JPEG[: _START + (len(_JPEG) - _START) * i // 21]))
        for i in range(1, 21)
    },
}
# Unusual, but valid.
ODD: dict[str, Make] = {
    "1 x 1": _holding(_encoded("PNG", _picture(1, 1))),
    "1 x 20000": _holding(_encoded("PNG", Image.new("RGB", (1, 20_000)))),
    "20000 x 1": _holding(_encoded("PNG", Image.new("RGB", (20_000, 1)))),
    "largest allowed": lambda path: Image.new("RGBA", (9459, 9459)).save(path, "PNG"),
    "largest allowed, again": lambda path: Image.new("RGBA", (9458, 9459)).save(path, "PNG"),
    "link": _link,
    **{name: _holding(content) for name, content in _seeds()},
}
NAMES = [
    "plain.jpg",
    "plain.png",
    "Plain.jpg",
    "PLAIN.JPG",
    os.fsdecode(b"caf\xe9.jpg"),
    os.fsdecode(b"\xff\xfe.jpg"),
    "caf\u00e9.jpg",
    "cafe\u0301.jpg",
    "new\nline.jpg",
    "carriage\rreturn.jpg",
    "tab\t.jpg",
    'comma,quote".jpg',
    "=HYPERLINK(0).jpg",
    "<img onerror=alert(1)>.jpg",
    "\u202egpj.exe.jpg",
    "\u05e9\u05dc\u05d5\u05dd.jpg",
    "\U0001f600.jpg",
    "\u2028.jpg",
    " leading and trailing .jpg",
    "-rf.jpg",
    "%s%n.jpg",
    "$(id).jpg",
    "back\\slash.jpg",
    "\x1b[31mred.jpg",
    "x" * 251 + ".jpg",
    "dots...jpg",
]
