"""Fine-tuning with a small network of random weights on painted patterns, compared with Keras itself."""

import csv
import dataclasses
import errno
import json
import shutil
import warnings

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline import Bundle, FeatureStore, Recipe, Trust, extract, train_head
from pipeline.cli import main
from pipeline.errors import StoreError, TrainingError, UsageError
from pipeline.features.keras_engine import load_backbone
from pipeline.features.keras_runtime import load_keras
from pipeline.features.options import Speed
from pipeline.features.store import write_store
from pipeline.features.weights import TUNED
from pipeline.finetuning import tuning as finetuning
from pipeline.finetuning.last_blocks import LastBlocks
from pipeline.finetuning.tuning import Places, Tuning, best_epoch, fine_tune
from pipeline.insight.audit import audit
from pipeline.insight.command_lines import train_command

pytestmark = pytest.mark.xdist_group("keras_head")  # one process pays for TensorFlow
SMALL = {"backbone": "mobilenet_0.25", "weights": "random", "size": 32}
KERAS = Speed("keras")
QUICK = Tuning(epochs=3, learning_rate=1e-3, batch_size=16)


@pytest.fixture(scope="module", autouse=True)
def keras():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TensorFlow warns of while it is imported is not ours
        return load_keras()


def paint_patterns(folder, count=30):
    """Stripes, in two directions: 2/3 to train on, the rest to choose and to judge."""
    rng = np.random.default_rng(0)
    for split, share in (("train", 20), ("validation", 5), ("test", 5)):
        for label in ("flat", "steep"):
            (folder / split / label).mkdir(parents=True)
            for number in range(share):
                wave = np.sin(np.arange(32) * rng.uniform(0.5, 1.5) + rng.uniform(0, 6))
                image = np.broadcast_to(wave if label == "steep" else wave[:, None], (32, 32))
                pixels = 128 + 80 * image[..., None] + rng.normal(0, 25, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / label / f"{number}.png")
    return folder


def scaled_weights(keras, path):
    """Random weights that keep the size of what goes through (He et al., 2015); Keras' own let it fade."""
    network = keras.applications.MobileNet(include_top=False, weights=None, alpha=0.25, input_shape=(32, 32, 3))
    rng = np.random.default_rng(0)
    for layer in network.layers:
        shapes = [weight.shape for weight in layer.weights]
        if len(shapes) == 1:
            inputs = np.prod(shapes[0][: 2 if "dw" in layer.name else 3])
            layer.set_weights([rng.normal(0, np.sqrt(2 / inputs), shapes[0])])
    network.save_weights(path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory, keras):
    return {**SMALL, "weights": scaled_weights(keras, tmp_path_factory.mktemp("weights") / "small.weights.h5")}


@pytest.fixture(scope="module")
def start(tmp_path_factory, small):
    """A folder with patterns, their feature file and a bundle."""
    folder = tmp_path_factory.mktemp("start")
    store = extract(paint_patterns(folder / "photos"), folder / "f.h5", speed=KERAS, **small)
    bundle, _ = train_head(store, trust=Trust(abstain=0.5))
    store.close()
    bundle.save(folder / "b.bundle")
    return folder


@pytest.fixture(scope="module")
def tuned(start, tmp_path_factory):
    """A tuned bundle, with its report and its folder."""
    folder = tmp_path_factory.mktemp("tuned")
    bundle, report = fine_tune(start / "b.bundle", folder / "t.bundle", tuning=QUICK, speed=KERAS)
    return folder, bundle, report


def test_it_leaves_a_bundle_its_vectors_and_its_weights(start, tuned):
    folder, bundle, report = tuned
    assert sorted(path.name for path in folder.iterdir()) == ["t.bundle", "t.h5", "t.weights.h5"]
    facts = report.provenance["tuning"]
    assert facts["after"] == "conv_pw_10_relu"
    assert facts["best_epoch"] == best_epoch(report.history)
    assert {len(curve) for curve in report.history.values()} == {3}
    assert set(report.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert report.history["loss"][-1] < report.history["loss"][0]
    assert any(note.startswith(f"tuned {facts['weights']:,} weights after conv_pw_10_relu") for note in report.notes)
    assert (report.head, report.scored_on, report.counts["train"]) == ("logreg", "test", 40)
    loaded = Bundle.load(folder / "t.bundle")
    assert loaded.recipes == bundle.recipes
    with FeatureStore(folder / "t.h5") as store:
        assert store.recipe.weights == TUNED
        images = [str(start / "photos" / path) for path in store.paths[:4]]
        np.testing.assert_allclose(
            loaded.predict_proba(images, KERAS), loaded.probabilities(store.rows(0, 4)), rtol=1e-4, atol=1e-6
        )
    assert train_command(bundle, "t.bundle", []) == (
        f"python scripts/finetune.py {start}/b.bundle --out t.bundle --after conv_pw_10_relu --epochs 3"
        " --learning-rate 0.001"
    )


def test_its_vectors_are_those_of_keras_with_its_weights(start, tuned, keras):
    folder, _, _ = tuned
    network = keras.applications.MobileNet(
        include_top=False, weights=None, alpha=0.25, input_shape=(32, 32, 3), pooling="avg"
    )
    network.load_weights(folder / "t.weights.h5")
    with FeatureStore(folder / "t.h5") as store:
        pixels = [np.asarray(Image.open(start / "photos" / path), np.float32) for path in store.paths[:6]]
        expected = network.predict(np.stack(pixels) / 127.5 - 1, verbose=0)
        np.testing.assert_allclose(store.rows(0, 6), expected, rtol=1e-4, atol=1e-5)


def test_only_the_last_blocks_have_changed_and_no_statistics(tuned, start):
    _, bundle, _ = tuned
    before, after = load_backbone(Bundle.load(start / "b.bundle").recipes[0]), load_backbone(bundle.recipes[0])
    cut = [layer.name for layer in before.layers].index("conv_pw_10_relu")
    changed = []
    for place, (old, new) in enumerate(zip(before.layers, after.layers, strict=True)):
        same = all(np.array_equal(a, b) for a, b in zip(old.get_weights(), new.get_weights(), strict=True))
        if not same:
            changed.append(old.name)
            assert place > cut
            assert "bn" not in old.name
    assert changed == ["conv_dw_11", "conv_pw_11", "conv_dw_12", "conv_pw_12", "conv_dw_13", "conv_pw_13"]


def test_on_cached_maps_it_starts_from_what_the_whole_network_says(start, tmp_path, small):
    bundle = Bundle.load(start / "b.bundle")
    data = finetuning.training_data_of(bundle)
    blocks = LastBlocks(bundle.recipes[0])
    head = finetuning._soft_head(data)
    blocks.attach(head, 1e-4)
    recipe = blocks.input_recipe("1")
    with extract(start / "photos", tmp_path / "maps.h5", speed=KERAS, dtype="float16", layers=recipe.layers,
                 pooling="flatten", **small) as maps:  # fmt: skip
        assert maps.recipe == recipe
        rows = [maps.positions[path] for path in data.paths]
        found = blocks.probabilities(maps.take(np.array(rows)))
    np.testing.assert_allclose(found, head.predict_proba(data.X[:, 0]), atol=2e-3)


def test_the_same_seed_gives_the_same_weights(start, tuned, tmp_path):
    _, bundle, report = tuned
    again, other = (
        fine_tune(
            start / "b.bundle", tmp_path / f"{seed}.bundle", tuning=dataclasses.replace(QUICK, seed=seed), speed=KERAS
        )
        for seed in (0, 1)
    )
    assert again[0].recipes[0].weights_sha256 == bundle.recipes[0].weights_sha256
    assert again[1].history == report.history
    assert other[0].recipes[0].weights_sha256 != bundle.recipes[0].weights_sha256


def test_it_moves_with_its_weights(tuned, start, tmp_path):
    folder, bundle, _ = tuned
    shutil.copytree(folder, tmp_path / "there")
    image = start / "photos" / "test" / "flat" / "0.png"
    expected = bundle.predict_proba([image], KERAS)
    hidden = folder.rename(folder.with_name("hidden"))
    try:
        moved = Bundle.load(tmp_path / "there" / "t.bundle")
        np.testing.assert_array_equal(moved.predict_proba([image], KERAS), expected)
        weights = str(tmp_path / "there" / "t.weights.h5")
        with FeatureStore(tmp_path / "there" / "t.h5") as store:
            assert store.recipe.weights_path == weights
        assert Recipe.create(tmp_path / "there" / "t.bundle").weights_path == weights
    finally:
        hidden.rename(folder)


def test_what_the_network_learned_from_is_not_asked_again(tuned, start, tmp_path):
    folder, _, report = tuned
    assert report.trust["held_out"] == 10  # the validation images
    assert report.trust["abstain"]["asked"] == 0.5
    assert report.trust["calibration"] == "none"
    told = (
        "tuned on the training images, so the validation images chose when to stop and set the threshold for abstaining"
    )
    assert any(told in note for note in report.notes)
    refused = "the network was tuned on the training images, so folds of them measure nothing; leave out"
    for options, what in (({"cv": 3}, "--cv"), ({"curve": True}, "--curve"), ({"head": "auto"}, "--head auto")):
        with pytest.raises(UsageError, match=f"{refused} {what}"):
            train_head(folder / "t.h5", **options)
    with FeatureStore(folder / "t.h5") as store:
        assert any("fine-tuned on these labels, so label errors may be missed" in note for note in audit(store).notes)
    recipe = Recipe.create("mobilenet_0.25", weights=folder / "t.weights.h5", size=32)
    assert recipe.weights == TUNED
    with (tmp_path / "m.csv").open("w", newline="") as file:
        rows = [(start / "photos" / split / label / f"{i}.png", label, split)
                for split in ("train", "test") for label in ("flat", "steep") for i in range(5)]  # fmt: skip
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    own = {**SMALL, "weights": folder / "t.weights.h5"}
    extract(tmp_path / "m.csv", tmp_path / "m.h5", speed=KERAS, **own).close()
    with pytest.raises(
        TrainingError, match="the network was tuned, so parameters are chosen on validation images only; add some"
    ):
        train_head(tmp_path / "m.h5")


def test_its_training_images_never_judge_it(tuned, start, tmp_path):
    folder, _, _ = tuned
    with FeatureStore(start / "f.h5") as store:
        splits = ["test" if split == "train" else split for split in store.splits]
        write_store(tmp_path / "other.h5", dataclasses.replace(store.index, splits=splits), [store.features])
    with pytest.raises(TrainingError, match=r"its training images, and .*other\.h5 has other splits or none"):
        train_head([tmp_path / "other.h5", folder / "t.h5"])
    _, report = train_head([folder / "t.h5", tmp_path / "other.h5"])
    assert report.counts == {"train": 40, "validation": 10, "test": 10}
    _, report = train_head([start / "f.h5", folder / "t.h5"])
    assert report.counts == {"train": 40, "validation": 10, "test": 10}
    with FeatureStore(folder / "t.h5") as store:
        index = dataclasses.replace(store.index, splits=[""] * len(store))
        write_store(tmp_path / "none.h5", index, [store.features])
    with pytest.raises(TrainingError, match="drawing splits now could put its training images into the test split"):
        train_head(tmp_path / "none.h5")


def test_views_are_samples_and_validation_is_the_plain_image(start, tmp_path, monkeypatch):
    methods = {"step": LastBlocks.step, "probabilities": LastBlocks.probabilities}
    counts = dict.fromkeys(methods, 0)
    for name in counts:

        def counted(self, maps, *rest, name=name, do=methods[name], **more):
            counts[name] += len(maps)
            return do(self, maps, *rest, **more)

        monkeypatch.setattr(LastBlocks, name, counted)
    tuning = dataclasses.replace(QUICK, epochs=1, views="flip")
    fine_tune(start / "b.bundle", tmp_path / "t.bundle", tuning=tuning, speed=KERAS)
    assert counts == {"step": 80, "probabilities": 10 + 10}  # the others check the start
    with FeatureStore(tmp_path / "t.h5") as store:
        assert store.recipe.views == "1"


def test_an_interrupted_tuning_keeps_its_maps(start, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def tune():
        fine_tune(start / "b.bundle", tmp_path / "t.bundle", tuning=QUICK, speed=KERAS)

    for step, left in (("_train", ["t.maps.h5"]), ("train_head", ["t.h5", "t.maps.h5", "t.weights.h5"])):
        with monkeypatch.context() as patch:
            patch.setattr(finetuning, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                tune()
        assert sorted(path.name for path in tmp_path.iterdir()) == left
    fills = []
    fill = finetuning.fill_store

    def remembered(*rest, **more):
        fills.append(fill(*rest, **more))
        return fills[-1]

    monkeypatch.setattr(finetuning, "fill_store", remembered)
    tune()
    # The same seed gives the same weights, so that the tuned vectors are right too.
    assert [(store.summary.extracted, store.summary.reused) for store in fills] == [(0, 60), (0, 60)]
    assert not Places.of(tmp_path / "t.bundle").maps.exists()


def test_a_full_disk_is_one_line_and_the_maps_are_kept(start, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.finetuning.last_blocks.replacing", full)
    with pytest.raises(StoreError, match=r"cannot write .*t\.weights\.h5: No space left on device; make space and run"):
        fine_tune(start / "b.bundle", tmp_path / "t.bundle", tuning=QUICK, speed=KERAS)
    assert [path.name for path in tmp_path.iterdir()] == ["t.maps.h5"]


def test_patience_ends_it_and_the_best_weights_come_back():
    class Blocks:
        losses = iter([0.9, 0.5, 0.6, 0.7, 0.8, 0.1])
        state = 0
        restored = None

        def step(self, maps, targets, *, first):
            self.state += 1
            return {"loss": 1.0, "accuracy": 0.5}

        def probabilities(self, maps):
            loss = next(self.losses)
            return np.tile([[np.exp(-loss), np.exp(-loss)]], (len(maps), 1))  # smoothing changes nothing here

        def weights(self):
            return [np.array(self.state)]

        def restore(self, weights):
            self.restored = int(weights[0])

    class Samples:
        def of(self, split, *, views=False):
            return np.arange(2)

        def read(self, rows):
            return np.zeros((len(rows), 3), np.float32), np.tile([1.0, 0.0], (len(rows), 1))

    blocks, done = Blocks(), []
    tuning = Tuning(epochs=6, patience=2, batch_size=2)
    history = finetuning._train(blocks, Samples(), tuning, lambda *each: done.append(each))
    np.testing.assert_allclose(history["val_loss"], [0.9, 0.5, 0.6, 0.7])
    assert blocks.restored == best_epoch(history) == 2
    assert done[-1] == (4, 6)
    blocks.losses = iter([np.nan])
    with pytest.raises(TrainingError, match=r"training diverged with learning_rate=0\.0003; give a lower one"):
        finetuning._train(blocks, Samples(), tuning, None)


@pytest.mark.parametrize(
    ("backbone", "size", "after", "shape"),
    [
        ("mobilenetv2", 96, "block_12_add", (6, 6, 96)),
        ("vgg16", 32, "block4_pool", (2, 2, 512)),
        ("inceptionv3", 96, "mixed7", (4, 4, 768)),
        ("efficientnetb0", 32, "block6a_project_bn", (1, 1, 192)),
        ("convnexttiny", 32, "convnext_tiny_downsampling_block_2", (1, 1, 768)),
    ],
)
def test_the_last_blocks_are_found(backbone, size, after, shape):
    blocks = LastBlocks(Recipe(backbone, "random:0", size=size))
    assert (blocks.after, blocks.shape) == (after, shape)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ("conv_pw_99", "the network has no layer 'conv_pw_99'; did you mean conv_pw_9"),
        (
            "block_12_expand",
            "other layers bypass 'block_12_expand'; name a layer that everything passes through, such as block_11",
        ),
        ("out_relu", "no layer after 'out_relu' has weights to tune; name an earlier layer"),
    ],
)  # fmt: skip
def test_layers_that_cannot_begin_it(after, words):
    backbone = "mobilenet_0.25" if "pw" in after else "mobilenetv2"
    with pytest.raises(UsageError, match=words):
        LastBlocks(Recipe(backbone, "random:0", size=32), after)


@pytest.mark.slow
def test_a_network_whose_cells_reach_far_back_cannot_be_tuned():
    with pytest.raises(
        UsageError, match="other layers bypass each layer in the second half of this network; tune another"
    ):
        LastBlocks(Recipe("nasnetmobile", "random:0", size=32))


def test_wrong_requests(start, tmp_path, monkeypatch):
    bundle = Bundle.load(start / "b.bundle")
    (recipe,) = bundle.recipes
    for changes, words in (
        ({"recipes": (recipe, recipe)}, "the bundle joins 2 networks; tune a bundle of one of them"),
        (
            {"recipes": (dataclasses.replace(recipe, layers=("a", "b")),)},
            r"uses the layers a\+b; tune a bundle of the last layer",
        ),
        (
            {"recipes": (Recipe("keras-file", "file", size=32),)},
            r"the bundle's network is a \.keras model; tune it with",
        ),
        ({"multi_label": ";"}, "the bundle predicts several labels per image; tune a bundle with one"),
        ({"recipes": (Recipe("mobilenet", "random:0"),)}, "random weights, so there is nothing to tune; take trained"),
    ):
        with pytest.raises(UsageError, match=words):
            fine_tune(dataclasses.replace(bundle, **changes), tmp_path / "t.bundle")
    for tuning, words in (
        (Tuning(epochs=0), "epochs 0 is too few; give 1 or more"),
        (Tuning(learning_rate=2), "learning_rate 2 is not between 0 and 1; give one such as 3e-4"),
        (Tuning(views="many"), "views 'many'"),
    ):
        with pytest.raises(UsageError, match=words):
            fine_tune(bundle, tmp_path / "t.bundle", tuning=tuning)
    with pytest.raises(UsageError, match=r"f\.h5 is an input of the fine-tuning; choose another --out"):
        fine_tune(start / "b.bundle", start / "f.bundle")
    (tmp_path / "t.h5").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"t\.h5 already exists; choose another --out or give --overwrite"):
        fine_tune(start / "b.bundle", tmp_path / "t.bundle")
    with pytest.raises(UsageError, match="does not name a folder"):
        fine_tune(bundle, "/")
    for out in (tmp_path / "t2.h5", start / "b.bundle" / "in"):
        with pytest.raises(UsageError, match="cannot be a bundle; give a path such as artifacts/tuned"):
            fine_tune(bundle, out)
    asked = {**bundle.provenance, "asked": {**bundle.provenance["asked"], "abstain": 0.95}}
    with pytest.raises(TrainingError, match=r"accuracy of 0\.95 after tuning takes 90 validation images, not 10"):
        fine_tune(dataclasses.replace(bundle, provenance=asked), tmp_path / "t3.bundle")
    monkeypatch.setattr(finetuning, "_TOLERANCE", -1.0)
    with pytest.raises(TrainingError, match="maps after conv_pw_10_relu give other probabilities than the stored"):
        fine_tune(bundle, tmp_path / "t4.bundle", speed=KERAS)


def test_photographs_that_are_gone_or_changed(start, small, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(start / "photos", photos)
    with extract(photos, tmp_path / "f.h5", speed=KERAS, **small) as store:
        bundle, _ = train_head(store)

    def tune():
        return fine_tune(bundle, tmp_path / "t.bundle", tuning=QUICK, speed=KERAS)[1]

    (photos / "train" / "flat" / "0.png").unlink()
    left_out = "no longer readable and left out: 1 image, the first 'train/flat/0.png'"
    assert left_out in tune().notes
    for path in tmp_path.glob("t.*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for number in range(5):
        shutil.copy(photos / "test" / "flat" / f"{number}.png", photos / "validation" / "steep" / f"{number}.png")
    with pytest.raises(TrainingError, match=r"5 photographs changed since the extraction, the first 'val"):
        tune()
    shutil.rmtree(photos / "validation")
    (tmp_path / "t.maps.h5").unlink()
    with pytest.raises(TrainingError, match=r"too few images of .*photos can be read \(11 of 60 cannot\)"):
        tune()
    shutil.rmtree(photos)
    (tmp_path / "t.maps.h5").unlink()
    with pytest.raises(StoreError, match="none of the 60 images could be read"):
        tune()
    assert not (tmp_path / "t.bundle").exists()


def test_without_validation_images_nothing_says_when_to_stop(start, tmp_path):
    with FeatureStore(start / "f.h5") as store:
        splits = ["train" if split == "validation" else split for split in store.splits]
        write_store(tmp_path / "g.h5", dataclasses.replace(store.index, splits=splits), [store.features])
    bundle, _ = train_head(tmp_path / "g.h5")
    with pytest.raises(TrainingError, match="fine-tuning needs validation images to decide when to stop"):
        fine_tune(bundle, tmp_path / "t.bundle")


def test_the_command(start, tmp_path):
    words = [
        "finetune",
        start / "b.bundle",
        "--out",
        tmp_path / "t.bundle",
        "--epochs",
        1,
        "--engine",
        "keras",
        "--json",
    ]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["weights"] == str(tmp_path / "t.weights.h5")
    assert data["provenance"]["tuning"]["epochs"] == 1
    assert (tmp_path / "runs.jsonl").exists()
    result = CliRunner().invoke(main, [str(word) for word in words[:-1]])
    assert result.exit_code == 2
    assert "t.bundle already exists" in result.stderr
    result = CliRunner().invoke(main, [str(word) for word in [*words[:-1], "--overwrite"]])
    assert result.exit_code == 0, result.stderr
    assert f"{tmp_path}/t.bundle: logreg with C=" in result.stdout
    assert "note: tuned " in result.stderr
