"""The report and the audit on real photographs: faults planted and found, the page opened in a real browser."""

import dataclasses
import hashlib
import io
import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import paint
from PIL import Image, ImageOps

from pipeline.bundles.bundle import Bundle
from pipeline.errors import UsageError
from pipeline.features.extraction import extract
from pipeline.features.store import FeatureStore
from pipeline.insight.audit import audit
from pipeline.insight.command_lines import extract_command, report_command, train_command
from pipeline.insight.report import Options, write_report
from pipeline.training.single_label import train_head

HOSTILE = "<img src=x onerror=alert(1)>.jpg"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.xdist_group("report")


def plant(folder, count=50):
    """Write copies of training images into validation: resized, encoded anew, mirrored, or all of it."""
    originals = random.Random(0).sample(sorted((folder / "train").rglob("*.jpg")), count)
    pairs = []
    for number, original in enumerate(originals):
        with Image.open(original) as opened:
            image = opened.convert("RGB")
        if number % 4 in (0, 3):
            image = image.resize((image.width * 3 // 5, image.height * 3 // 5), Image.Resampling.BICUBIC)
        if number % 4 in (2, 3):
            image = ImageOps.mirror(image)
        copy = folder / "validation" / original.parent.name / f"planted {number}.jpg"
        image.save(copy, quality=60 if number % 4 in (1, 3) else 85)
        pairs.append({str(path.relative_to(folder)) for path in (original, copy)})
    return pairs


@pytest.fixture(scope="module")
def clothing(data, tmp_path_factory):
    """Every second clothing photograph with 50 planted copies and a hostile name, and their vectors."""
    folder = tmp_path_factory.mktemp("clothing")
    for path in sorted((data / "clothing").rglob("*.jpg"))[::2]:
        link = folder / path.relative_to(data / "clothing")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    pairs = plant(folder)
    # Labelled wrongly, so that the page shows it among the mistakes too.
    shutil.copyfile(next((folder / "validation" / "shoes").glob("*.jpg")), folder / "validation" / "hat" / HOSTILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(data / "keras_home"))
        yield extract(folder, out=folder.parent / "clothing.h5"), pairs


def test_planted_copies_are_found(clothing):
    store, pairs = clothing
    result = audit(store, images=False)
    found = [{f.path, f.suggestion} for f in result.findings if f.kind in ("leakage", "contradiction")]
    assert sum(pair in found for pair in pairs) >= 45
    assert sum(pair not in pairs for pair in found) <= 10


def test_flipped_labels_are_found(clothing):
    from pipeline.features.neighbours import standardise, unit_rows
    from pipeline.insight.label_checks import label_issues

    store, _ = clothing
    train = np.flatnonzero(np.array(store.splits) == "train")
    y = store.labels[train].astype(np.int64)
    rng = np.random.default_rng(0)
    flipped = rng.choice(len(y), round(0.03 * len(y)), replace=False)
    y[flipped] = (y[flipped] + rng.integers(1, 10, len(flipped))) % 10
    issues, _ = label_issues(unit_rows(standardise(store.features[train])), y, np.arange(len(y)))
    assert np.isin(issues[: len(flipped)], flipped).mean() >= 0.6


@pytest.fixture(scope="module")
def page(clothing, tmp_path_factory):
    store, _ = clothing
    folder = tmp_path_factory.mktemp("report")
    bundle, _ = train_head(store, params={"C": 0.01})
    bundle.save(folder / "clothing.bundle")
    options = Options(heat_maps=3, plots=folder / "plots")
    written = write_report(folder / "clothing.bundle", folder / "report.html", options=options)
    assert not written.notes
    return written


def attributes(text):
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda _, pairs: found.extend(pairs)
    parser.feed(text)
    return found


def test_the_page_is_complete_in_itself(page):
    text = page.path.read_text("utf-8")
    assert page.bytes == page.path.stat().st_size < 10e6
    addresses = [value for name, value in attributes(text) if name in ("src", "href", "srcset", "action")]
    assert addresses
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert not [name for name, _ in attributes(text) if name.startswith("on")]
    assert not re.search(r"url\((?!data:)", text)
    assert "default-src 'none'" in text
    assert HOSTILE not in text
    assert "The first 3 have a heat map beside the photograph" in text
    assert {path.name for path in page.plots} >= {"confusion.png", "confusion.svg", "reliability.png", "coverage.svg"}
    assert page.findings["leakage"] >= 45
    # What has no card has a line in a list that folds out.
    audit_part = text[text.index('<section id="audit">') : text.index('<section id="made">')]
    kinds = [part for part in audit_part.split("<details")[1:] if "<summary><b>" in part]
    assert sum(part.count('<div class="card">') for part in kinds) == sum(min(24, n) for n in page.findings.values())
    assert audit_part.count("<tr><td") == sum(max(0, n - 24) for n in page.findings.values()) > 100


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium and chromedriver: the page is not opened in a browser")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def opened(browser, page, request):
    """The page in a browser without a network, at the width of a desk and of a phone."""
    width, height = request.param
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.path.as_uri())
    yield browser
    assert browser.get_log("browser") == []  # no error, no warning, nothing refused
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.path.as_uri()}


def by_css(browser, selector):
    return browser.find_elements("css selector", selector)


def picture_of(element):
    """The pixels of an element on the screen."""
    element.parent.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB"), np.float64)


def shown(browser):
    return int(by_css(browser, "#count")[0].text.split()[0].replace(",", ""))


def test_every_part_is_drawn_and_fits_the_width(opened):
    assert opened.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert "accuracy" in by_css(opened, ".verdict")[0].text
    parts = [".verdict", "#classes table", ".confusion", ".card .pair", "figure img", "#map canvas"]
    for selector in parts:
        pixels = picture_of(by_css(opened, selector)[0])
        assert min(pixels.shape[:2]) >= 20, selector
        assert pixels.std() > 8, f"{selector} is blank"
    # A photograph has many colours, one that failed to load has one.
    photographs = by_css(opened, "#answers .thumb")[:5]
    for each in photographs:
        assert len(np.unique(picture_of(each).reshape(-1, 3), axis=0)) > 1000
    assert not [img for img in by_css(opened, "img") if img.get_property("naturalWidth") == 0]


def test_pointing_at_the_map_shows_the_photograph(opened):
    from selenium.webdriver import ActionChains

    canvas = by_css(opened, "#map canvas")[0]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    x, y = opened.execute_script("const r = canvas.width / canvas.clientWidth; return place(0).map((v) => v / r)")
    size = canvas.size
    tip = by_css(opened, "#tip")[0]
    assert not tip.is_displayed()
    x, y = round(x - size["width"] / 2), round(y - size["height"] / 2)  # from the middle
    ActionChains(opened).move_to_element_with_offset(canvas, x, y).perform()
    assert tip.is_displayed()
    assert opened.execute_script("return data.path[focus]") in tip.text
    pixels = np.asarray(Image.open(io.BytesIO(by_css(opened, "#tip .thumb")[0].screenshot_as_png)).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 300


def test_filters_colours_and_zoom(opened):
    from selenium.webdriver.support.ui import Select

    canvas = by_css(opened, "#map canvas")[0]
    total = opened.execute_script("return data.path.length")
    assert shown(opened) == total
    before = picture_of(canvas)
    dress = opened.execute_script("return data.label.filter((label) => label === 0).length")
    button = by_css(opened, "#legend button")[0]
    assert (button.get_attribute("title"), button.accessible_name) == ("dress", "dress")
    button.click()
    assert shown(opened) == total - dress
    by_css(opened, "#legend button")[-1].click()  # all
    assert shown(opened) == total
    for name, value in (("split", "1"), ("colour", "mistake")):
        Select(by_css(opened, f"#{name}")[0]).select_by_value(value)
    assert shown(opened) == opened.execute_script("return data.split.filter((split) => split === 1).length")
    by_css(opened, "#in")[0].click()
    assert opened.execute_script("return view.zoom") == 1.5
    assert np.abs(picture_of(canvas) - before).mean() > 0.5


def test_a_region_is_selected_and_its_paths_are_listed(opened):
    from selenium.webdriver import ActionChains

    canvas = by_css(opened, "#map canvas")[0]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    by_css(opened, "#select")[0].click()
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    width, height = canvas.size["width"], canvas.size["height"]
    actions = ActionChains(opened).move_to_element_with_offset(canvas, -width // 4, -height // 4).click_and_hold()
    actions.move_by_offset(width // 2, height // 2).release().perform()
    places = np.array(opened.execute_script("return data.path.map((_, i) => place(i))"))
    places /= opened.execute_script("return [canvas.width, canvas.height]")
    inside = ((places >= 0.25) & (places <= 0.75)).all(axis=1).sum()
    paths = by_css(opened, "#list textarea")[0].get_property("value").split("\n")
    assert abs(len(paths) - inside) <= 0.02 * inside + 5
    assert len(set(paths)) == len(paths) > 100
    by_css(opened, "#clear")[0].click()
    assert not by_css(opened, "#list")[0].is_displayed()


def test_the_map_works_by_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    canvas = by_css(opened, "#map canvas")[0]
    canvas.send_keys(Keys.ARROW_RIGHT)
    first = opened.execute_script("return focus")
    canvas.send_keys(Keys.ARROW_RIGHT, Keys.ENTER)
    second = opened.execute_script("return focus")
    assert first >= 0 <= second != first
    assert opened.execute_script("return place(arguments[1])[0] > place(arguments[0])[0]", first, second)
    path = opened.execute_script("return data.path[focus]")
    assert by_css(opened, "#list textarea")[0].get_property("value") == path
    canvas.send_keys("+")
    assert opened.execute_script("return view.zoom") > 1
    canvas.send_keys(Keys.ESCAPE)
    assert opened.execute_script("return selected.size") == 0


def test_a_cell_of_the_confusion_matrix_opens_its_photographs(opened):
    cell = next(each for each in by_css(opened, ".confusion .wrong button"))
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", cell)
    count = int(cell.text)
    cell.click()
    dialog = by_css(opened, "dialog")[0]
    assert dialog.is_displayed()
    figures = by_css(opened, "dialog figure")
    assert len(figures) == count
    assert "predicted as" in figures[0].text
    by_css(opened, "#close")[0].click()
    assert not dialog.is_displayed()


def test_a_hostile_file_name_is_only_a_name(opened):
    assert opened.execute_script("return data.path.some((path) => path.endsWith(arguments[0]))", HOSTILE)
    assert any(HOSTILE in each.text for each in by_css(opened, ".path"))
    assert not by_css(opened, 'img[src="x"]')
    opened.execute_script("focus = -1; point(data.path.findIndex((path) => path.endsWith(arguments[0])))", HOSTILE)
    assert HOSTILE in by_css(opened, "#tip")[0].text
    assert not by_css(opened, 'img[src="x"]')
    with pytest.raises(Exception, match="no such alert"):
        _ = opened.switch_to.alert


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium and chromedriver")
def test_the_benchmark_of_the_map_makes_every_gesture(monkeypatch):
    import benchmark_map

    monkeypatch.setattr(benchmark_map, "FRAMES", 4)
    result = CliRunner().invoke(benchmark_map.benchmark_map, ["--images", "150", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert 50_000 < found["bytes"] < 1e6
    for screen in ("desk", "phone"):
        assert set(found[screen]) == {"loading", *benchmark_map.GESTURES}
        assert all(1 < each["median"] <= each["longest"] for name, each in found[screen].items() if name != "loading")


def test_pointing_draws_no_point_anew(opened):
    opened.execute_script("window.drawn = 0; const real = points; points = (...all) => { drawn++; real(...all); }")
    frame = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(drawn)))"
    assert opened.execute_async_script(frame) == 0
    opened.execute_script("point(3)")
    assert opened.execute_async_script(frame) == 0
    opened.execute_script("zoom(2)")
    assert opened.execute_async_script(frame) == 1


def test_the_commands_write_a_report(run, made, tmp_path):
    features, bundle, photos = made
    code, out, err = run("report", bundle, "--out", tmp_path / "r.html", "--map", "pca", "--plots", tmp_path / "p")
    assert code == 0, err
    assert "open it in a browser" in out
    assert (tmp_path / "p" / "confusion.svg").is_file()
    assert str(features) in (tmp_path / "r.html").read_text()
    words = ["train-head", features, "--out", bundle, "--head", "nearest-centroid", "--report", tmp_path / "t.html"]
    code, out, err = run(*words)
    assert code == 0, err
    assert f"{tmp_path}/t.html: open it in a browser" in out
    assert "<title>b.bundle: report</title>" in (tmp_path / "t.html").read_text()
    shutil.rmtree(photos)  # the numbers are still worth a page
    data = json.loads(run("report", bundle, "--out", tmp_path / "r.html", "--json")[1])
    assert any("unreadable" in note for note in data["notes"])


def test_a_bundle_and_a_foreign_feature_file(run, made, tmp_path):
    features, bundle, photos = made
    other = tmp_path / "other.h5"
    assert run("extract", photos, "--out", other, "--backbone", "vgg16", "--weights", "random", "--size", 32)[0] == 0
    code, _, err = run("report", bundle, "--out", tmp_path / "r.html", "--features", other)
    assert (code, "name the files that it was trained on with --features" in err) == (2, True)
    assert "end it in .html" in run("report", bundle, "--out", tmp_path / "r.pdf")[2]
    FeatureStore(features).close()
    Path(features).unlink()
    told = f"the feature file of the bundle is no longer at {features}; name it with --features"
    assert told in run("report", bundle, "--out", tmp_path / "r.html")[2]


def test_several_labels_an_image_are_refused_with_the_reason(run, photos, tmp_path):
    rows = [
        f"{path},{'red;dark' if i % 3 else 'red' if i % 2 else 'dark'}"
        for i, path in enumerate(sorted(photos.rglob("*.png")))
    ]
    (tmp_path / "m.csv").write_text("path,label\n" + "\n".join(rows))
    features, bundle, out = tmp_path / "m.h5", tmp_path / "m.bundle", tmp_path / "r.html"
    assert run("extract", tmp_path / "m.csv", "--out", features, "--weights", "random", "--size", 32)[0] == 0
    train = ["train-head", features, "--out", bundle, "--multi-label", ";"]
    code, _, err = run(*train, "--report", out)
    assert (code, bundle.exists()) == (2, False)
    assert "--multi-label does not support --report; leave out one or the other" in err
    code, _, err = run(*train)
    assert code == 0, err
    code, _, err = run("report", bundle, "--out", out)
    assert (code, out.exists()) == (2, False)
    assert "was trained with --multi-label, and the report shows one label per image; read report.json" in err


def test_a_page_that_is_no_html_is_refused_before_training(run, made, tmp_path):
    features, _, _ = made
    code, _, err = run("train-head", features, "--out", tmp_path / "n.bundle", "--report", tmp_path / "r.pdf")
    assert (code, (tmp_path / "n.bundle").exists()) == (2, False)
    assert "end it in .html" in err


def test_other_photographs_under_the_same_names_are_refused(run, made, tmp_path):
    features, path, photos = made
    bundle = Bundle.load(path)
    with FeatureStore(features) as store:
        digests = sorted(digest.tobytes() for digest in store.index.digests)
    content = {**bundle.provenance, "content": hashlib.sha256(b"".join(digests)).hexdigest()}
    bundle = dataclasses.replace(bundle, provenance=content)
    assert write_report(bundle, tmp_path / "r.html", options=Options("pca")).bytes
    paint(photos / "bee" / "1.png", (1, 200, 7))
    network = ["--backbone", "mobilenet", "--weights", "random", "--size", 32]
    assert run("extract", photos, "--out", tmp_path / "o.h5", *network)[0] == 0
    with pytest.raises(UsageError, match=r"o.h5 contains other photographs than the bundle was trained on"):
        write_report(bundle, tmp_path / "r.html", features=[tmp_path / "o.h5"])


def test_the_commands_of_the_page_say_what_was_asked(made, tmp_path):
    features, path, _ = made
    bundle = Bundle.load(path)
    with FeatureStore(features) as store:
        recipe = dataclasses.replace(
            store.recipe, layers=("a", "last"), precision="bfloat16", views="4:7", resize="crop", pooling="max"
        )
        plain = extract_command(store)
        store.index = dataclasses.replace(store.index, recipe=recipe)
        words = extract_command(store)
    assert plain.endswith("--backbone mobilenet --weights random:0 --size 32")
    assert words.endswith(
        " --backbone mobilenet --weights random:0 --layer a --layer last --pooling max --size 32 --resize crop"
        " --precision bfloat16 --views 4:7"
    )
    asked = {
        "head": "auto", "params": {}, "cv": 5, "seed": 3, "budget": 90.0, "average_views": True, "curve": True,
        "calibration": "none", "abstain": 0.95, "novelty": True, "exclude": "my findings.csv",
    }  # fmt: skip
    made_so = dataclasses.replace(bundle, provenance={"asked": asked})
    assert train_command(made_so, "b.bundle", ["a.h5", "b.h5"]) == (
        "python scripts/train_head.py a.h5 b.h5 --out b.bundle --head auto --cv 5 --budget 90.0 --average-views --curve"
        " --seed 3 --exclude 'my findings.csv' --calibration none --abstain 0.95 --novelty"
    )
    given = {**dict.fromkeys(asked), "head": "dense", "params": {"hidden": [256, 128]}, "seed": 0}
    made_so = dataclasses.replace(bundle, provenance={"asked": given})
    command = train_command(made_so, "b", ["a.h5"])
    assert command == "python scripts/train_head.py a.h5 --out b --head dense --param 'hidden=(256, 128)'"
    # One from before this was kept: what was chosen was not asked for.
    older = {"provenance": {"cv": 2, "seed": 1}, "params": {"C": 0.1}, "head_name": "logreg"}
    chosen = dataclasses.replace(bundle, report={"chosen_on": "validation"}, **older)
    assert train_command(chosen, "b", ["a.h5"]).endswith("--head logreg --cv 2 --seed 1")
    options = Options("pca", heat_maps=3, plots="my plots")
    assert report_command(("b", "r.html"), ["a.h5"], options) == (
        "python scripts/report.py b --out r.html --features a.h5 --map pca --heat-maps 3 --plots 'my plots'"
    )
    fixed = dataclasses.replace(bundle, report={"chosen_on": ""}, **older)
    assert train_command(fixed, "b", ["a.h5"]).endswith("--head logreg --param C=0.1 --cv 2 --seed 1")


def test_two_classes_of_long_names_without_a_mistake(run, tmp_path):
    long = "帽" + "x" * 150
    for c, name in enumerate([long, "dog"]):
        for i in range(40):
            paint(tmp_path / "photos" / name / f"{i}.png", (200 * c + i, i, 7))
    features, bundle, out = tmp_path / "f.h5", tmp_path / "b.bundle", tmp_path / "r.html"
    assert run("extract", tmp_path / "photos", "--out", features, "--weights", "random", "--size", 32)[0] == 0
    words = ["--abstain", 0.8, "--novelty", "--report", out]
    code, terminal, err = run("train-head", features, "--out", bundle, *words)
    assert code == 0, err
    code, _, err = run("report", bundle, "--out", out, "--plots", tmp_path / "p", "--map", "pca")
    assert code == 0, err
    text = out.read_text()
    shown = re.sub(r"<[^>]*>", "", text)
    assert "No mistakes on" in shown
    assert "the label that is wrong" not in shown
    for start in ("abstains below a probability", "accuracy of these", "expected calibration", "flags images unlike"):
        (line,) = (line for line in terminal.splitlines() if line.startswith(start))
        assert line in shown
    assert '<table id="thresholds">' in text
    assert "Area under the ROC curve 1.000." in text
    assert f'title="{long}"' in text
    (names,) = re.findall(r'"names": (\[.*?\])', text)
    assert json.loads(names) == ["dog", long]
    names = shown[: shown.rindex("How it was made")]
    assert f"帽{'x' * 37}…" in names
    assert not [line for line in names.splitlines() if long in line and "/" not in line]


def test_a_place_that_cannot_be_written_is_one_line_with_advice(run, made, tmp_path):
    features, bundle, photos = made
    (tmp_path / "file").write_text("")
    bad, page = tmp_path / "file" / "x", tmp_path / "r.html"
    for place in (f"{bad}/r.html", "/proc/r.html", "/proc/a/r.html"):
        code, _, err = run("report", bundle, "--out", place, "--map", "pca")
        assert (code, err.count("\n")) == (1, 1)
        assert f"cannot write {place}: " in err
        assert "choose another --out" in err
    code, _, err = run("report", bundle, "--out", page, "--map", "pca", "--plots", bad)
    assert (code, page.exists()) == (1, True)
    assert f"cannot write the plots into {bad}: Not a directory; {page} was written, choose another --plots" in err
    for words in (["audit", features], ["similar", features, photos / "bee" / "1.png"]):
        place = bad / ("f.csv" if words[0] == "audit" else "f.png")
        code, _, err = run(*words, "--out", place)
        assert code == 1
        assert f"cannot write {place}: Not a directory; choose another --out" in err
        code, _, err = run(*words, "--out", tmp_path / "f.txt")
        assert code == 2
        assert f"cannot tell the format of '{tmp_path}/f.txt'; end it in {place.suffix}" in err
