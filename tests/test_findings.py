"""The table of findings: what the audit writes, a person edits, and the training reads."""

import hashlib

import numpy as np
import pytest
from helpers import make_duplicates, make_index

from pipeline.errors import TrainingError, UsageError
from pipeline.features.store import FeatureStore, write_store
from pipeline.images.findings import Finding, excluded_paths, read_findings, with_known_paths, write_findings
from pipeline.training.single_label import train_head
from pipeline.training.training_data import load_training_data
from pipeline.trust.safeguards import Trust

FINDINGS = [
    Finding("exclude", "leakage", "cat/ä,\n1.jpg", "cat", "train", "cat/2.jpg", 0.98765, "g", 'same "picture"'),
    Finding("review", "dark", "cat/\udcff 2.jpg ", "cat", score=0.5),
    Finding("review", "small-class", "", "dog"),
]


def test_what_is_written_is_read_back_without_the_rows_about_classes(tmp_path):
    write_findings(FINDINGS, tmp_path / "a" / "f.csv")
    back = read_findings(tmp_path / "a" / "f.csv")
    assert [(f.action, f.kind, f.path, f.group, f.detail) for f in back] == [
        (f.action, f.kind, f.path, f.group, f.detail) for f in FINDINGS[:2]
    ]
    assert excluded_paths(back) == {"cat/ä,\n1.jpg"}


def test_a_spreadsheet_may_have_saved_it(tmp_path):
    (tmp_path / "f.csv").write_bytes("\ufeffpath,action\r\na.jpg, Exclude\r\nb.jpg,\r\n".encode())
    assert excluded_paths(read_findings(tmp_path / "f.csv")) == {"a.jpg"}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_its_separator_and_the_case_of_its_headings_do_not_matter(tmp_path, separator):
    rows = ["Action ;PATH;Group", 'exclude;"a;, b.jpg";g', "review;b.jpg;"]
    (tmp_path / "f.csv").write_text("\r\n".join(rows).replace(";", separator))
    (first, second) = read_findings(tmp_path / "f.csv")
    assert (first.action, first.path, first.group) == ("exclude", f"a{separator}, b.jpg", "g")
    assert (second.action, second.path) == ("review", "b.jpg")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "mac_roman"])
def test_nor_does_the_encoding_of_a_spreadsheet(tmp_path, encoding):
    known = ["bär/é.jpg", "naïve 2.jpg", "b\udce4r.jpg", "plain.jpg"]  # the third has such a name on the disk
    paths = known if encoding == "utf-8" else [path for path in known if path.isprintable()]
    rows = "path;action\r\n" + "".join(f"{path};exclude\r\n" for path in paths)
    (tmp_path / "f.csv").write_bytes(rows.encode(encoding, "surrogateescape" if encoding == "utf-8" else "strict"))
    assert excluded_paths(with_known_paths(read_findings(tmp_path / "f.csv"), known)) == set(paths)


@pytest.mark.parametrize("data", ["path\na.jpg\n".encode("utf-16-be"), b"\xff\xfepaths", b"\xff\xfe\0\0abc"])
def test_what_is_no_text_says_how_to_save_it(tmp_path, data):
    (tmp_path / "f.csv").write_bytes(data)
    with pytest.raises(UsageError, match=r"f.csv is not (plain text|valid utf-).*; save the table as CSV, UTF-8"):
        read_findings(tmp_path / "f.csv")


def test_a_table_in_a_code_page_excludes_the_images_it_names(tmp_path):
    names = ["ä.jpg", *(f"{i}.jpg" for i in range(40))]
    labels = (np.arange(41) % 2).astype(np.int32)
    X = np.random.default_rng(0).standard_normal((41, 70)).astype(np.float32)
    write_store(tmp_path / "f.h5", make_index(names, 70, labels=labels, classes=("cat", "dog")), [X])
    (tmp_path / "f.csv").write_bytes("path;action\r\nä.jpg;exclude\r\n帽.jpg;exclude".encode("cp1252", "replace"))
    data = load_training_data(FeatureStore(tmp_path / "f.h5"), 0, read_findings(tmp_path / "f.csv"))
    assert "ä.jpg" not in data.paths
    assert any(note.startswith("1 path of the findings not in") for note in data.notes)


def test_a_plain_list_of_paths_excludes_all(tmp_path):
    (tmp_path / "f.csv").write_text("path\na.jpg\nb.jpg\n")
    assert excluded_paths(read_findings(tmp_path / "f.csv")) == {"a.jpg", "b.jpg"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,action\na.jpg,drop\n", "the action of finding 1 is 'drop'; expected one of exclude, review, keep"),
        ("file\na.jpg\n", "has the columns file; expected at least path"),
        ("", r"has the columns \(none\); expected at least path"),
    ],
)
def test_a_table_that_says_something_else_is_refused(tmp_path, text, message):
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_findings(tmp_path / "f.csv")


def test_excluded_images_take_no_part(tmp_path):
    store = make_duplicates(tmp_path / "f.h5")
    findings = [Finding("exclude", "dark", path) for path in store.paths[:7]]
    data = load_training_data(store, 0, findings)
    assert data.paths == tuple(store.paths[7:])
    np.testing.assert_array_equal(data.X[:, 0], store.features[7:])
    assert "7 images left out because the findings exclude them" in data.notes
    write_findings(findings, tmp_path / "f.csv")
    bundle, report = train_head(store, "nearest-centroid", exclude=tmp_path / "f.csv")
    assert report.provenance["images"] == 113
    assert [row["path"] for row in bundle.provenance["findings"]] == list(store.paths[:7])


def test_findings_of_another_file_are_an_error(tmp_path):
    store = make_duplicates(tmp_path / "f.h5")
    with pytest.raises(UsageError, match="none of the 1 image to exclude is in"):
        load_training_data(store, 0, [Finding("exclude", "dark", "other.jpg")])
    with pytest.raises(TrainingError, match="exclude every image"):
        load_training_data(store, 0, [Finding("exclude", "dark", path) for path in store.paths])


def test_near_duplicates_share_a_drawn_split(tmp_path):
    store = make_duplicates(tmp_path / "f.h5")
    data = load_training_data(store)
    assert (data.splits[0:24:2] == data.splits[1:24:2]).all()
    assert (data.groups[0:24:2] == data.groups[1:24:2]).all()
    assert not any(data.groups[24:])
    assert len(set(data.splits.tolist())) == 3
    assert any(note == "24 images assigned to the split of duplicates or near duplicates" for note in data.notes)


def test_so_do_images_of_the_same_bytes_and_of_one_group_in_the_findings(tmp_path):
    store = make_duplicates(tmp_path / "f.h5", same=0)
    store.index.digests[51] = store.index.digests[50]
    told = [Finding("keep", "near-duplicate", store.paths[row], group="g") for row in range(60, 90)]
    data = load_training_data(store, 0, told)
    assert data.groups[50] == data.groups[51] == "050.jpg"
    assert len(set(data.splits[60:90].tolist())) == 1


def test_splits_of_the_user_stay(tmp_path):
    splits = [("train", "test")[i % 2] for i in range(120)]
    data = load_training_data(make_duplicates(tmp_path / "f.h5", splits=splits))
    assert data.splits.tolist() == splits
    assert not any(data.groups)


def test_excluding_what_judges_is_said_and_so_are_strangers(tmp_path):
    splits = (["train"] * 80 + ["validation"] * 40)[:120]
    store = make_duplicates(tmp_path / "f.h5", splits=splits)
    findings = [Finding("exclude", "dark", path) for path in (store.paths[0], store.paths[100], "no/such.jpg")]
    data = load_training_data(store, 0, findings)
    assert "2 images left out because the findings exclude them" in data.notes
    assert any(note.startswith("1 validation or test image among these") for note in data.notes)
    assert f"1 path of the findings not in {store.path}" in data.notes


def test_a_bundle_knows_what_was_asked_and_of_which_images(tmp_path):
    store = make_duplicates(tmp_path / "f.h5")
    bundle, _ = train_head(store, params={"C": 0.1}, seed=3, trust=Trust(novelty=True))
    assert bundle.provenance["asked"] == {
        "head": "logreg", "params": {"C": 0.1}, "cv": None, "seed": 3, "budget": None, "average_views": False,
        "curve": False, "calibration": "auto", "abstain": None, "novelty": True, "exclude": None,
    }  # fmt: skip
    expected = hashlib.sha256(b"".join(sorted(row.tobytes() for row in store.index.digests))).hexdigest()
    assert bundle.provenance["content"] == expected
