"""Manifests from folders of any kind, tables and lists of paths."""

import csv
import os
import pickle
import socket
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ManifestError
from pipeline.images import manifest as module
from pipeline.images.manifest import Manifest


def grow(root: Path, *names: str) -> Path:
    """Make empty files, and folders for names that end in a slash."""
    for name in names:
        target = root / name
        if name.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    return root


def named(manifest: Manifest) -> list[str]:
    return [manifest.classes[label] if label >= 0 else "" for label in manifest.labels]


def table(root: Path, text: str, name: str = "photos.csv") -> Path:
    root.joinpath(name).write_text(text, encoding="utf-8")
    return root / name


def row(**changes: object) -> dict[str, object]:
    columns = {"paths": ("a", "b"), "labels": (0, 0), "classes": ("x",), "splits": ("", ""), "groups": ("", "")}
    return {"root": Path("r"), **columns, **changes}


# The type itself


def test_rows() -> None:
    manifest = Manifest(**row())  # type: ignore[arg-type]
    assert len(manifest) == 2
    assert manifest.path_of(1) == Path("r/b")
    assert manifest.left_out == {}
    assert pickle.loads(pickle.dumps(manifest)) == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": (0,)}, r"differ in length \(2 paths, 1 labels, 2 splits, 2 groups\)"),
        ({"paths": ("a", "a")}, "path 'a' appears twice: keep one of its rows"),
        ({"paths": ("a", "")}, "path '' cannot be a file"),
        ({"paths": ("a", "b\0")}, "no NUL character"),
        ({"labels": (0, 1)}, "label 1 of 'b' is out of range: there are 1 classes"),
        ({"labels": (0, -2)}, "label -2 of 'b' is out of range"),
        ({"classes": ("y", "x")}, "are not sorted and unique: sort them"),
        ({"classes": ("x", "x")}, "are not sorted and unique"),
        ({"splits": ("", "dev")}, "unknown split 'dev' of 'b': use train, validation, test or nothing"),
        (
            {"splits": ("train", "test"), "groups": ("g", "g")},
            "group 'g' is in train, but its image 'b' is in test: keep each group in one split",
        ),
    ],
)
def test_contradictions(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest(**row(**changes))  # type: ignore[arg-type]


def test_a_group_with_and_without_a_split_is_fine() -> None:
    Manifest(**row(splits=("train", ""), groups=("g", "g")))  # type: ignore[arg-type]


# Folders


def test_class_folders(tmp_path: Path) -> None:
    grow(tmp_path, "dog/2.jpg", "dog/10.JPEG", "cat/b.png", "cat/a.webp", "cat/deep/er/c.TIF")
    manifest = Manifest.read(tmp_path)
    assert manifest.paths == ("cat/a.webp", "cat/b.png", "cat/deep/er/c.TIF", "dog/10.JPEG", "dog/2.jpg")
    assert named(manifest) == ["cat", "cat", "cat", "dog", "dog"]
    assert manifest.classes == ("cat", "dog")
    assert manifest.splits == manifest.groups == ("",) * 5
    assert manifest.left_out == {}
    assert manifest.root == tmp_path
    assert manifest.path_of(0).is_file()


def test_relative_folder_stays_openable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "photos/cat/a.jpg", "elsewhere/")
    monkeypatch.chdir(tmp_path)
    manifest = Manifest.read("photos")
    monkeypatch.chdir("elsewhere")
    assert manifest.path_of(0).is_file()


@pytest.mark.parametrize(
    "folders",
    [("train", "validation", "test"), ("Training", "VAL", "Testing"), ("train", "valid", "test")],
)
def test_split_folders(folders: Sequence[str], tmp_path: Path) -> None:
    grow(tmp_path, "LICENSE", *(f"{folder}/{label}/1.jpg" for folder in folders for label in ("dog", "cat")))
    manifest = Manifest.read(tmp_path)
    assert dict(zip(manifest.paths, zip(manifest.splits, named(manifest), strict=True), strict=True)) == {
        f"{folder}/{label}/1.jpg": (split, label)
        for folder, split in zip(folders, ("train", "validation", "test"), strict=True)
        for label in ("dog", "cat")
    }
    assert manifest.left_out == {"not an image name": 1}


def test_classes_of_all_splits_are_joined(tmp_path: Path) -> None:
    grow(tmp_path, "train/cat/1.jpg", "train/ant/1.jpg", "val/cat/2.jpg", "val/dog/2.jpg", "valid/cat/3.jpg")
    manifest = Manifest.read(tmp_path)
    assert manifest.classes == ("ant", "cat", "dog")
    assert manifest.splits == ("train", "train", "validation", "validation", "validation")


def test_split_folder_without_class_folders_has_no_labels(tmp_path: Path) -> None:
    manifest = Manifest.read(grow(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/1.jpg"))
    assert manifest.paths == ("test/1.jpg", "train/cat/1.jpg", "train/dog/1.jpg")
    assert manifest.labels == (-1, 0, 1)
    assert manifest.splits == ("test", "train", "train")


def test_a_class_called_train(tmp_path: Path) -> None:
    manifest = Manifest.read(grow(tmp_path, "bus/1.jpg", "car/1.jpg", "train/1.jpg"))
    assert manifest.classes == ("bus", "car", "train")
    assert manifest.splits == ("", "", "")


def test_folders_beside_split_folders(tmp_path: Path) -> None:
    grow(tmp_path, "train/cat/1.jpg", "docs/readme.txt")
    assert Manifest.read(tmp_path).splits == ("train",)
    grow(tmp_path, "test/cat/1.jpg", "extra/1.jpg", "extra/2.jpg", "cover.jpg")
    manifest = Manifest.read(tmp_path)
    assert manifest.paths == ("test/cat/1.jpg", "train/cat/1.jpg")
    assert manifest.left_out == {
        "folder without images": 1,
        "image beside the split folders": 3,
        "not an image name": 1,
    }


def test_unlabelled_folder(tmp_path: Path) -> None:
    grow(tmp_path, "b.jpg", "a.png", "notes.txt", "README", "x.jpg/")
    manifest = Manifest.read(str(tmp_path))
    assert manifest.paths == ("a.png", "b.jpg")
    assert manifest.labels == (-1, -1)
    assert manifest.classes == ()
    assert manifest.left_out == {"not an image name": 2, "folder without images": 1}


def test_loose_images_beside_class_folders_get_no_label(tmp_path: Path) -> None:
    manifest = Manifest.read(grow(tmp_path, "cat/1.jpg", "loose.jpg", "also.png"))
    assert manifest.paths == ("cat/1.jpg",)
    assert manifest.left_out == {"image beside the class folders": 2}
    split = Manifest.read(grow(tmp_path / "s", "train/cat/1.jpg", "train/loose.jpg", "test/cat/1.jpg"))
    assert len(split) == 2
    assert split.left_out == {"image beside the class folders": 1}


def test_empty_class_folder_makes_no_class(tmp_path: Path) -> None:
    manifest = Manifest.read(grow(tmp_path, "cat/1.jpg", "dog/", "eel/deep/readme.txt"))
    assert manifest.classes == ("cat",)
    assert manifest.left_out == {"folder without images": 2, "not an image name": 1}


def test_hidden_things_are_counted(tmp_path: Path) -> None:
    grow(tmp_path, "cat/1.jpg", "cat/._1.jpg", "cat/Thumbs.db", "cat/desktop.ini", "__MACOSX/cat/1.jpg")
    grow(tmp_path, ".git/1.jpg", ".DS_Store", "cat/.cache/1.jpg")
    manifest = Manifest.read(tmp_path)
    assert manifest.paths == ("cat/1.jpg",)
    assert manifest.left_out == {"hidden": 7}


def test_things_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "cat/1.jpg", "cat/folder.jpg/2.jpg", "outside.jpg")
    monkeypatch.chdir(tmp_path / "cat")
    os.mkfifo("pipe.jpg")
    Path("linked pipe.jpg").symlink_to("pipe.jpg")
    Path("device.jpg").symlink_to("/dev/zero")
    Path("dangling.jpg").symlink_to("gone.jpg")
    Path("itself.jpg").symlink_to("itself.jpg")
    Path("good link.jpg").symlink_to("../outside.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        manifest = Manifest.read(tmp_path)
    assert manifest.paths == ("cat/1.jpg", "cat/folder.jpg/2.jpg", "cat/good link.jpg")
    assert manifest.left_out == {
        "broken link": 1,
        "image beside the class folders": 1,
        "not a regular file": 4,
        "symlink loop": 1,
    }


def test_links_to_folders_are_followed_and_loops_counted(tmp_path: Path) -> None:
    grow(tmp_path, "store/1.jpg", "photos/cat/2.jpg", "photos/cat/deep/3.jpg")
    photos = tmp_path / "photos"
    (photos / "dog").symlink_to(tmp_path / "store")
    (photos / "cat" / "root").symlink_to(photos)
    (photos / "cat" / "deep" / "parent").symlink_to("..")
    (photos / "self").symlink_to(".")
    manifest = Manifest.read(photos)
    assert manifest.paths == ("cat/2.jpg", "cat/deep/3.jpg", "dog/1.jpg")
    assert manifest.left_out == {"symlink loop": 3, "folder without images": 1}


def test_loop_to_the_split_folder(tmp_path: Path) -> None:
    grow(tmp_path, "train/cat/1.jpg", "test/cat/1.jpg")
    (tmp_path / "train" / "again").symlink_to(".")
    manifest = Manifest.read(tmp_path)
    assert manifest.classes == ("cat",)
    assert manifest.left_out == {"symlink loop": 1, "folder without images": 1}


def test_one_folder_under_two_names_is_no_loop(tmp_path: Path) -> None:
    grow(tmp_path, "cat/1.jpg")
    (tmp_path / "feline").symlink_to("cat")
    assert Manifest.read(tmp_path).paths == ("cat/1.jpg", "feline/1.jpg")


def test_deep_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):  # deeper than Python's recursion limit
        Path("d").mkdir()
        os.chdir("d")
    Path("1.jpg").touch()
    os.chdir(tmp_path)
    manifest = Manifest.read(tmp_path)
    Path("d/" * 1200 + "1.jpg").unlink()
    os.removedirs("d/" * 1199 + "d")  # shutil.rmtree, which cleans up after tests, may recurse
    assert manifest.paths == ("d/" * 1200 + "1.jpg",)
    assert manifest.classes == ("d",)


NAMES = [b"line\nbreak.jpg", b"\xff\xfe\x80.jpg", "صورة.jpg".encode(), b" .jpg", b"x" * 251 + b".jpg", b"a\\b.jpg"]


def test_any_file_name(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"class \xff\n")
    folder.mkdir()
    for name in NAMES:
        (folder / os.fsdecode(name)).touch()
    manifest = Manifest.read(tmp_path)
    assert [os.fsencode(path) for path in manifest.paths] == sorted(b"class \xff\n/" + name for name in NAMES)
    assert all(manifest.path_of(i).is_file() for i in range(len(manifest)))
    assert manifest.classes == (folder.name,)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(
        st.tuples(
            st.sampled_from(["cat", "dog"]),
            st.binary(min_size=1, max_size=20).filter(lambda b: not set(b) & {0, 0x2F} and b[:1] != b"."),
        ),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_order_is_by_bytes_whatever_the_listing_gives(
    tmp_path_factory: pytest.TempPathFactory, names: set[tuple[str, bytes]], random: object
) -> None:
    root = tmp_path_factory.mktemp("photos")
    files = [(label, os.fsdecode(name + b".jpg")) for label, name in names]
    random.shuffle(files)  # type: ignore[attr-defined]
    grow(root, *(f"{label}/{name}" for label, name in files))
    manifest = Manifest.read(root)
    assert list(manifest.paths) == sorted((f"{label}/{name}" for label, name in files), key=os.fsencode)
    assert named(manifest) == [path.split("/")[0] for path in manifest.paths]


def test_a_scan_looks_at_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, *(f"{label}/{i}.jpg" for label in ("cat", "dog") for i in range(50)))
    looks = []
    plain = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **options: (looks.append(path), plain(path, **options))[1])
    assert len(Manifest.from_folder(tmp_path)) == 100
    assert all(path.suffix != ".jpg" for path in looks)
    assert len(looks) < 10


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(
        ManifestError, match=r"no images in .*: searched for \.apng .* at any depth, found an empty folder"
    ):
        Manifest.read(tmp_path)
    grow(tmp_path, "a.txt", "b.txt", "c/d.mp4", "LICENSE", ".hidden")
    with pytest.raises(ManifestError) as caught:
        Manifest.read(tmp_path)
    found = "1 folder without images, 1 hidden, 4 not an image name (.txt 2, "
    assert found in str(caught.value)
    assert ".mp4 1" in str(caught.value)
    assert "no suffix 1" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "'gone' does not exist: give a folder, a .csv or a .parquet file"),
        ("a.jpg", "'a.jpg' is not a table: give a folder, a .csv or a .parquet file"),
        ("a.jpg/below", r"'a.jpg/below' cannot be read \(Not a directory\)"),
        ("loop", r"'loop' cannot be read \(Too many levels of symbolic links\)"),
        ("nul\0", r"cannot be read \(embedded null byte\)"),
        ("pipe.csv", "'pipe.csv' is not a table"),
    ],
)
def test_sources_that_are_none(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grow(tmp_path, "a.jpg"))
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe.csv")
    with pytest.raises(ManifestError, match=message):
        Manifest.read(name)
    with pytest.raises(ManifestError):
        Manifest.from_folder(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_without_permission(tmp_path: Path) -> None:
    grow(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "dog").chmod(0)
    for folder in (tmp_path, tmp_path / "dog"):  # a whole class must not go missing without a word
        with pytest.raises(ManifestError, match="dog' cannot be read: Permission denied; check its permissions"):
            Manifest.read(folder)
    (tmp_path / "dog").chmod(0o700)


def test_a_folder_that_cannot_be_listed_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "cat/1.jpg", "dog/1.jpg")
    plain = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(module.os, "scandir", scandir)
    with pytest.raises(ManifestError, match="dog' cannot be read: Permission denied; check its permissions"):
        Manifest.read(tmp_path)


def test_a_folder_that_vanishes_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "cat/1.jpg", "dog/1.jpg")
    plain = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "dog":
            raise FileNotFoundError(2, "No such file or directory")
        return plain(path)

    monkeypatch.setattr(module.os, "scandir", scandir)
    manifest = Manifest.read(tmp_path)
    assert manifest.classes == ("cat",)
    assert manifest.left_out == {"cannot be read": 1, "folder without images": 1}


def test_clothing(data: Path) -> None:
    manifest = Manifest.read(data / "clothing")
    assert len(manifest) == 3409
    assert manifest.splits.count("train") == 3068
    assert manifest.splits.count("validation") == 341
    assert len(manifest.classes) == 10
    assert named(manifest).count("t-shirt") > named(manifest).count("skirt")
    assert manifest.left_out == {"not an image name": 1}


# Lists of paths


def test_list_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = Manifest.read(["b.jpg", Path("./a//c.jpg"), "../d.jpg", "/e.jpg"])
    assert manifest.paths == ("b.jpg", "a/c.jpg", "../d.jpg", "/e.jpg")
    assert manifest.labels == (-1,) * 4
    assert manifest.root == tmp_path
    assert manifest.path_of(3) == Path("/e.jpg")
    with pytest.raises(ManifestError, match=r"rows 1 and 3 of the list of paths have the same path 'a\.jpg': keep one"):
        Manifest.read(["a.jpg", "b.jpg", "./a.jpg"])
    with pytest.raises(ManifestError, match="row 2 of the list of paths has no path"):
        Manifest.read(["a.jpg", ""])
    with pytest.raises(ManifestError, match="the list of paths is empty: give at least one image"):
        Manifest.read([])


# Tables

ROWS = [
    {"path": "z/1.jpg", "label": "dog", "split": "train", "group": "rex"},
    {"path": 'a,b "c"\n.jpg', "label": "cat", "split": "VAL", "group": ""},
    {"path": "/abs/3.jpg", "label": "", "split": "", "group": "rex"},
    {"path": "../out.jpg", "label": "dog", "split": "testing", "group": ""},
]


def check_rows(manifest: Manifest, root: Path) -> None:
    assert manifest.root == root
    assert manifest.paths == tuple(row["path"] for row in ROWS)
    assert manifest.classes == ("cat", "dog")
    assert manifest.labels == (1, 0, -1, 1)
    assert manifest.splits == ("train", "validation", "", "test")
    assert manifest.groups == ("rex", "", "rex", "")
    assert manifest.path_of(0) == root / "z/1.jpg"
    assert manifest.path_of(2) == Path("/abs/3.jpg")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(encoding: str, newline: str, tmp_path: Path) -> None:
    path = tmp_path / "photos.CSV"
    with path.open("w", encoding=encoding, newline="") as file:
        # Other order, more columns, header in another case.
        writer = csv.writer(file, lineterminator=newline)
        writer.writerow(["Group", "width", " split", "PATH", "label"])
        writer.writerows([[r["group"], "400", r["split"], r["path"], f" {r['label']} "] for r in ROWS])
    check_rows(Manifest.read(path), tmp_path)


def test_parquet(tmp_path: Path) -> None:
    columns = {name: [row[name] or None for row in ROWS] for name in ("group", "split", "label", "path")}
    columns["label"] = pa.array(columns["label"]).dictionary_encode()
    pa.parquet.write_table(pa.table({"width": [1, 2, 3, 4], **columns}), tmp_path / "photos.parquet")
    check_rows(Manifest.read(tmp_path / "photos.parquet"), tmp_path)


def test_table_of_paths_alone(tmp_path: Path) -> None:
    manifest = Manifest.read(table(tmp_path, "path\nb.jpg\na.jpg\n"))
    assert manifest.paths == ("b.jpg", "a.jpg")
    assert manifest.labels == (-1, -1)
    assert manifest.splits == manifest.groups == ("", "")


def test_names_of_a_table_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_bytes(b"path,label\n\xff.jpg,x\n")
    manifest = Manifest.read(tmp_path / "photos.csv")
    assert os.fsencode(manifest.paths[0]) == b"\xff.jpg"
    pa.parquet.write_table(pa.table({"path": [b"\xff.jpg"]}), tmp_path / "photos.parquet")
    assert os.fsencode(Manifest.read(tmp_path / "photos.parquet").paths[0]) == b"\xff.jpg"


def test_labels_that_are_numbers(tmp_path: Path) -> None:
    for values, expected in [([3, 1, 3], ("3", "1", "3")), ([3.0, float("nan"), 0.5], ("3", "", "0.5"))]:
        pa.parquet.write_table(pa.table({"path": ["a", "b", "c"], "label": values}), tmp_path / "t.parquet")
        assert tuple(named(Manifest.read(tmp_path / "t.parquet"))) == expected


def test_rows_of_files_that_do_not_exist_stay(tmp_path: Path) -> None:
    manifest = Manifest.read(table(tmp_path, "path\nnowhere.jpg\n"))
    assert not manifest.path_of(0).exists()
    assert len(manifest) == 1


def test_short_and_blank_rows(tmp_path: Path) -> None:
    manifest = Manifest.read(table(tmp_path, "path,label,group\na.jpg\n\nb.jpg,cat,,\n"))
    assert manifest.paths == ("a.jpg", "b.jpg")
    assert manifest.labels == (-1, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'path': expected path"),
        ("file,label\na,b\n", r"has no column 'path': expected path\[,label\]\[,split\]\[,group\], found 'file,label'"),
        ("path;label\na;b\n", "has no column 'path': .* found 'path;label'"),
        ("path,Path\na,b\n", "has the column 'path' twice"),
        ("p\0a\0t\0h\0", "photos.csv' is not plain text in UTF-8; save the table as CSV, UTF-8"),
        ("path,label\n", "has no rows: add one row for each image"),
        ("path\na.jpg\nb.jpg\n./a.jpg\n", "rows 2 and 4 of .*photos.csv' have the same path 'a.jpg': keep one"),
        ("path,label\na.jpg,x\n,x\n", "row 3 of .*photos.csv' has no path: add the path of an image"),
        (
            "path,split\na.jpg,train\n\nb.jpg,dev\n",
            "row 4 of .* has the unknown split 'dev': use train, validation, test",
        ),
        (
            "path,label\nbig, red.jpg,x\n",
            "row 2 of .* has 3 cells, the header has 2: put values that contain a comma in",
        ),
        ("path,group,split\na,g,train\nb,g,test\n", "group 'g' is in train, but its image 'b' is in test"),
        (f"path\n{'x' * 200_000}\n", "cannot be read as CSV: field larger than field limit"),
    ],
)
def test_csv_errors(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest.read(table(tmp_path, text))


def test_parquet_errors(tmp_path: Path) -> None:
    broken = table(tmp_path, "path\na.jpg\n", "photos.parquet")
    with pytest.raises(ManifestError, match="cannot be read as Parquet: ") as caught:
        Manifest.read(broken)
    assert "\n" not in str(caught.value)
    pa.parquet.write_table(pa.table({"file": ["a"]}), broken)
    with pytest.raises(ManifestError, match="has no column 'path'"):
        Manifest.read(broken)
    pa.parquet.write_table(pa.table({"path": ["a", None]}), broken)
    with pytest.raises(ManifestError, match=r"row 2 of .* has no path"):
        Manifest.read(broken)


def test_reading_a_folder_imports_no_pyarrow() -> None:
    import subprocess
    import sys

    code = "import sys, pipeline.images.manifest; assert not {'pyarrow', 'pandas', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unlabelled_takes_every_image_whatever_the_layout(tmp_path):
    for name in ("train/cat/1.jpg", "loose.png", "a/b/c/2.gif", "a/3.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    manifest = Manifest.from_folder(tmp_path, labelled=False)
    assert manifest.paths == ("a/3.webp", "a/b/c/2.gif", "loose.png", "train/cat/1.jpg")
    assert set(manifest.labels) == {-1}
    assert set(manifest.splits) == {""}
    assert manifest.left_out == {"symlink loop": 1}


def test_a_split_with_class_folders_beside_others_is_no_class(tmp_path):
    for name in ("train/cat/1.jpg", "train/dog/1.jpg", "holdout/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    message = (
        r"has the split 'train' with class folders next to other folders of images \('holdout'\):"
        " rename these to train, validation"
    )
    with pytest.raises(ManifestError, match=message):
        Manifest.from_folder(tmp_path)


def test_a_table_in_another_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes("path,label\na.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(
        ManifestError, match=r"row 2 has the label 'caf.*', which is not UTF-8: save the table as UTF-8"
    ):
        Manifest.from_table(tmp_path / "t.csv")
