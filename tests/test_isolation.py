"""Decoding in child processes: what hangs, dies or eats memory costs one image; nothing outlives the parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from attacks.fake import Factory
from helpers import fill, paint

from pipeline.errors import ImageError, PipelineError, UsageError
from pipeline.features import image_encoder
from pipeline.images.decode import load_pixels
from pipeline.images.isolation import Decoders
from pipeline.images.views import load_flat

HERE = str(Path(__file__).parent)


def troubled(content, *arguments):
    """Decode, unless the bytes ask for trouble; runs in a child, which finds it by its name."""
    if content == b"hang":
        time.sleep(60)
    if content == b"spin":
        while True:
            pass
    if content == b"die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if content == b"print":
        os.write(1, b"noise")
        os.write(2, b"noise")
    if content == b"eat":
        return np.ones(8 << 30, np.uint8)
    if content == b"who":
        return np.frombuffer(f"{os.getpid()} {os.getpgid(0)}".encode(), np.uint8)
    if content == b"raise":
        raise KeyError("a fault of the decoder itself")
    return load_pixels(content, *arguments) if arguments else np.frombuffer(content, np.uint8)


def troubled_views(content, specs):
    """Do the same as `load_flat` is asked to."""
    return troubled(content, *specs[0][:2]).ravel()


def reason(decode, content):
    with pytest.raises(ImageError) as caught:
        decode(content)
    return str(caught.value)


def who(decode):
    return [int(number) for number in decode(b"who").tobytes().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid, seconds=20):
    end = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_running(pid)


def test_trouble_costs_one_image_and_has_a_reason():
    with Decoders(troubled, time_limit=0.5) as decode:
        first = who(decode)[0]
        assert reason(decode, b"hang") == "timeout: decoding took more than 2 s"
        # Not so on a machine so busy that half a second of its processor takes more than two.
        assert reason(decode, b"spin") in (
            "timeout: decoding took more than 0.5 s of processor time",
            "timeout: decoding took more than 2 s",
        )
        assert reason(decode, b"die") == "crashed: the decoding process died twice (SIGSEGV)"
        assert reason(decode, b"raise") == "crashed: the decoding process died twice (exit code 1)"
        assert reason(decode, b"eat").startswith("too-large: ")
        assert decode(b"print").tobytes() == b"print"
        assert decode(b"").shape == (0,)
        assert who(decode)[0] != first


def test_errors_and_pixels_are_those_of_the_function(photos):
    content = (photos / "ant" / "3.png").read_bytes()
    with Decoders(load_pixels) as decode:
        for policy in ("squash", "pad"):
            pixels = decode(content, 9, policy)
            np.testing.assert_array_equal(pixels, load_pixels(content, 9, policy))
            pixels[:] = 0  # the caller's own
        with pytest.raises(ImageError, match="truncated: ") as caught:
            decode(content[:-20], 9)
        assert caught.value.reason == "truncated"
        with pytest.raises(UsageError, match="unknown resize policy 'stretch'"):
            decode(content, 9, "stretch")


def test_a_child_for_each_thread_at_work_and_no_more(photos):
    content = (photos / "ant" / "3.png").read_bytes()
    expected = load_pixels(content, 8).tolist()
    with Decoders(troubled) as decode, ThreadPoolExecutor(3) as pool:
        assert all(pixels.tolist() == expected for pixels in pool.map(lambda _: decode(content, 8), range(60)))
        assert 1 <= len(decode._all) <= 3
        pids = [child.process.pid for child in decode._all]
    assert all(gone(pid) for pid in pids)


def test_a_child_that_was_killed_costs_nothing():
    with Decoders(troubled) as decode:
        for _ in range(3):
            os.kill(who(decode)[0], signal.SIGKILL)
        assert decode(b"fine").tobytes() == b"fine"


def test_children_are_out_of_reach_of_ctrl_c():
    with Decoders(troubled) as decode:
        pid, group = who(decode)
        assert group != os.getpgid(0)
        os.kill(pid, signal.SIGINT)
        assert who(decode)[0] == pid


def test_close_ends_a_decode_that_hangs():
    decode = Decoders(troubled)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(decode, b"hang")
        while not (decode._all and next(iter(decode._all)).ready):
            time.sleep(0.01)
        started = time.monotonic()
        decode.close()
        with pytest.raises(PipelineError, match="closed"):
            future.result()
        assert time.monotonic() - started < 5


def test_closed_decoders_start_nothing():
    decode = Decoders(troubled)
    child = decode._new()
    decode.close()
    assert child.process.poll() is not None
    with pytest.raises(PipelineError, match="the decoding processes are closed"):
        decode(b"hang")


PARENT = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from test_isolation import Decoders, troubled, who
decode, busy = Decoders(troubled, time_limit=3), Decoders(troubled, time_limit=3)
print(who(decode)[0], who(busy)[0], flush=True)
threading.Thread(target=busy, args=(b"hang",)).start()
time.sleep(60)
"""


def test_children_do_not_outlive_a_parent_that_was_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT, HERE], stdout=subprocess.PIPE) as parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        time.sleep(0.2)
        assert all(is_running(pid) for pid in pids)
        parent.kill()
    assert all(gone(pid) for pid in pids), "idle children see the end of their input, busy ones their time limit"


def test_scripts_without_a_main_guard_work(photos, tmp_path):
    """As users write them, wherever they stand; multiprocessing would start them over and over."""
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "json.py").write_text("raise SystemExit('a file of the current folder was imported')")
    script = tmp_path / "mine.py"
    script.write_text(
        "from pipeline.images.decode import load_pixels\n"
        "from pipeline.images.isolation import Decoders\n"
        "print('once')\n"
        f"print(Decoders(load_pixels)(open({str(photos / 'ant' / '0.png')!r}, 'rb').read(), 2).shape)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=tmp_path / "cwd")
    assert done.stdout == "once\n(2, 2, 3)\n"


def test_no_child_can_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        Decoders(load_pixels) as decode,
        pytest.raises(PipelineError, match=r"cannot start a process .*exit code 1"),
    ):
        decode(b"x", 2)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with Decoders(load_pixels) as decode, pytest.raises(PipelineError, match=r"cannot start a process .*No such file"):
        decode(b"x", 2)


def test_an_extraction_survives_its_decoders(photos, tmp_path, monkeypatch):
    (photos / "ant" / "5.png").write_bytes(b"die")
    (photos / "bee" / "5.png").write_bytes(b"hang")
    monkeypatch.setattr(image_encoder, "load_flat", troubled_views)
    monkeypatch.setattr(image_encoder, "Decoders", lambda function: Decoders(function, time_limit=0.5))
    with fill(photos, tmp_path / "f.h5") as store:
        assert len(store) == 15
        assert {path: reason.split(":")[0] for path, reason in store.skipped.items()} == {
            "ant/5.png": "crashed",
            "bee/5.png": "timeout",
        }
    # Another day, another Pillow: what crashed or hung is tried again though its file is the same.
    with monkeypatch.context() as patch:
        patch.setattr(image_encoder, "load_flat", load_flat)
        with fill(photos, tmp_path / "f.h5") as store:
            assert {reason.split(":")[0] for reason in store.skipped.values()} == {"not-an-image"}


def test_no_process_is_started_when_there_is_nothing_to_decode(photos, tmp_path, monkeypatch):
    fill(photos, tmp_path / "f.h5").close()
    os.utime(photos / "ant" / "0.png", ns=(5, 5))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    factory = Factory()
    fill(photos, tmp_path / "f.h5", factory).close()
    paint(photos / "ant" / "9.png", (1, 1, 1))
    with pytest.raises(PipelineError, match="cannot start a process"):
        fill(photos, tmp_path / "f.h5", factory)


def test_an_interrupt_does_not_wait_for_a_decode_that_hangs(photos, tmp_path, monkeypatch):
    (photos / "cow" / "9.png").write_bytes(b"hang")
    monkeypatch.setattr(image_encoder, "load_flat", troubled_views)
    started, main = time.monotonic(), threading.main_thread().ident

    def progress(done, total):
        if done == 2:
            assert threading.get_ident() == main
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(photos, tmp_path / "f.h5", progress=progress)
    assert time.monotonic() - started < 15
    assert (tmp_path / "f.h5.parts").is_dir() or not list(tmp_path.glob("f.h5*"))
