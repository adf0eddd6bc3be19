"""Find the images in a folder, with the labels and splits that its layout gives them."""

import errno
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.errors import ManifestError
from pipeline.images.decode import SUFFIXES
from pipeline.images.texts import Texts, encode

SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
_HIDDEN = frozenset({"thumbs.db", "desktop.ini", "__macosx"})

# Kinds of entries that a folder scan leaves out.
_KIND_HIDDEN = "hidden"
_KIND_NAME = "not an image name"
_KIND_SPECIAL = "not a regular file"
_KIND_BROKEN = "broken link"
_KIND_LOOP = "symlink loop"
_KIND_UNREADABLE = "cannot be read"
_KIND_EMPTY = "folder without images"
_KIND_LOOSE = "image beside the class folders"
_KIND_BESIDE = "image beside the split folders"


class FoundFolder(NamedTuple):
    """The images below a folder, with their class and split; "" for none."""

    path: str
    images: Texts
    label: str = ""
    split: str = ""


class Scan:
    """Lists the folders below a root, and counts the entries that are not images."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out: Counter[str] = Counter()
        self.suffixes: Counter[str] = Counter()

    def counts(self) -> dict[str, int]:
        """Return the number of entries left out, by kind."""
        return {kind: count for kind, count in sorted(self.left_out.items()) if count}

    def entries(self, relative: str = "") -> tuple[list[str], list[bytes]]:
        """Return the sorted relative paths of a folder's subfolders, and of its images (as bytes)."""
        folders: list[str] = []
        images: list[bytes] = []
        prefix = f"{relative}/" if relative else ""
        try:
            with os.scandir(self.root / relative) as entries:
                for entry in entries:
                    kind = self._kind(entry)
                    if kind == "folder":
                        folders.append(prefix + entry.name)
                    elif kind == "image":
                        images.append(encode(prefix + entry.name))
                    else:
                        self.left_out[kind] += 1
        except OSError as error:
            if relative and isinstance(error, FileNotFoundError):  # deleted since its parent was listed
                self.left_out[_KIND_UNREADABLE] += 1
                return [], []
            # An error: without a whole class, the rows of an existing feature file would be dropped.
            folder = self.root / relative
            raise ManifestError(f"{str(folder)!r} cannot be read: {error.strerror}; check its permissions") from error
        return sorted(folders), sorted(images)

    def _kind(self, entry: "os.DirEntry[str]") -> str:
        """Return "folder", "image" or the kind to leave out; only links need a further system call."""
        name = entry.name
        if name.startswith(".") or name.lower() in _HIDDEN:
            return _KIND_HIDDEN
        try:
            if entry.is_dir():
                return "folder"
            if not entry.is_file():
                broken = entry.is_symlink() and not Path(entry.path).exists()
                return _KIND_BROKEN if broken else _KIND_SPECIAL
        except OSError as error:
            return _KIND_LOOP if error.errno == errno.ELOOP else _KIND_UNREADABLE
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path per file takes seconds)
        if suffix in SUFFIXES:
            return "image"
        self.suffixes[suffix or "no suffix"] += 1
        return _KIND_NAME

    def images_below(self, folder: str) -> Texts:
        """Return all images at any depth below a folder, sorted by bytes; links to a parent folder are left out."""
        parents = ["", *(folder[:at] for at, letter in enumerate(folder) if letter == "/")] if folder else []
        waiting = [(folder, frozenset(self._identity(parent) for parent in parents))]
        found: list[bytes] = []
        while waiting:
            folder, above = waiting.pop()
            identity = self._identity(folder)
            if identity is None:
                self.left_out[_KIND_UNREADABLE] += 1
            elif identity in above:
                self.left_out[_KIND_LOOP] += 1
            else:
                folders, images = self.entries(folder)
                found += images
                waiting += [(name, above | {identity}) for name in folders]
        found.sort()
        return Texts.of_bytes(found)

    def _identity(self, relative: str) -> tuple[int, int] | None:
        try:
            status = (self.root / relative).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def find_images(scan: Scan) -> list[FoundFolder]:
    """Find all images, and their labels and splits by the names of the folders they are in."""
    folders, loose = scan.entries()
    split_of = {name: SPLIT_OF_FOLDER[name.lower()] for name in folders if name.lower() in SPLIT_OF_FOLDER}
    below = {name: scan.images_below(name) for name in folders if name not in split_of}
    if any(below.values()) and len(set(split_of.values())) == 1:
        for name in split_of:
            if any(scan.images_below(inner) for inner in scan.entries(name)[0]):
                raise ManifestError(
                    f"{str(scan.root)!r} has the split {name!r} with class folders next to other folders of images"
                    f" ({', '.join(repr(other) for other, images in below.items() if images)}): rename these to train,"
                    " validation or test, or move them elsewhere"
                )
    if not split_of or (any(below.values()) and len(set(split_of.values())) == 1):
        below |= {name: scan.images_below(name) for name in split_of}
        return _labelled(scan, below, FoundFolder("", Texts.of_bytes(loose)))
    scan.left_out[_KIND_EMPTY] += sum(not images for images in below.values())
    scan.left_out[_KIND_BESIDE] += len(loose) + sum(map(len, below.values()))
    found = []
    for folder, split in split_of.items():
        folders, loose = scan.entries(folder)
        below = {name: scan.images_below(name) for name in folders}
        found += _labelled(scan, below, FoundFolder(folder, Texts.of_bytes(loose), split=split))
    return found


def _labelled(scan: Scan, below: Mapping[str, Texts], loose: FoundFolder) -> list[FoundFolder]:
    """Label images by their class folder; images outside one count only if there are no class folders."""
    found = [
        FoundFolder(folder, images, PurePosixPath(folder).name, loose.split)
        for folder, images in below.items()
        if images
    ]
    scan.left_out[_KIND_EMPTY] += len(below) - len(found)
    if not found:
        return [loose]
    scan.left_out[_KIND_LOOSE] += len(loose.images)
    return found


def no_images_message(scan: Scan) -> str:
    """Describe which suffixes were searched for in a folder without images, and what it has instead."""
    suffixes = ", ".join(f"{suffix} {count}" for suffix, count in scan.suffixes.most_common(5))
    details = {_KIND_NAME: f" ({suffixes})"}
    found = ", ".join(f"{count} {kind}{details.get(kind, '')}" for kind, count in scan.counts().items())
    return (
        f"no images in {str(scan.root)!r}: searched for {' '.join(sorted(SUFFIXES))} at any depth, "
        f"found {found or 'an empty folder'}"
    )
