"""What is large and waits takes no memory of the process, and is what it was."""

import contextlib
import gc
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from playground import codec, spilled
from playground.serving import queue
from playground.serving.events import Job
from playground.serving.messages import Start
from playground.trace import Options, RawObservation, image_digest
from playground.ui import decoding, results
from tests.support.traces import pi0_trace
from tests.test_queue import ticket_of
from tests.test_transforms import encoded

SIDE = 4000  # of a picture: 48 MB


def picture(number=0):
    """All its pixels differ from those of another number."""
    return np.full((SIDE, SIDE, 3), number, np.uint8)


def nameless_files():
    """How many this process holds."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found += os.readlink(link).endswith("(deleted)")
    return found


def resident():
    """Bytes that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def job_of(*pictures):
    images = {str(i): one for i, one in enumerate(pictures)}
    return Job(("pi0",), RawObservation("table", images, {}, "go", np.zeros(14)), Options())


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_spilled_array_is_equal_and_its_file_goes_with_it(dtype):
    gc.collect()  # what other tests left
    files = nameless_files()
    values = np.arange(3 << 20, dtype=dtype).reshape(3, 1 << 10, -1)
    found = spilled.array(values)
    assert spilled.is_spilled(found)
    assert spilled.is_spilled(found[1:, ::2])
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    spilled.let_go()
    np.testing.assert_array_equal(found, values)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0
    assert nameless_files() == files + 1
    del found
    gc.collect()
    assert nameless_files() == files


def test_small_arrays_stay_in_memory():
    values = np.zeros(spilled.LARGE, np.uint8)
    assert spilled.array(values) is values
    assert not spilled.is_spilled(values)


def test_pictures_that_wait_take_no_memory():
    """As in the page: each is read, asked for, and kept with its result."""
    before = resident()
    kept = []
    for number in range(12):
        job = job_of(spilled.array(picture(number)))
        kept += [
            job,
            spilled.Frame(Start("x", "infer", job)),
            image_digest(job.observation.images["0"]),
        ]
    spilled.let_go()
    assert len(set(kept[2::3])) == 12
    assert resident() - before < 3 * SIDE * SIDE * 3


@pytest.mark.parametrize("side", [8, SIDE])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_frame_is_taken_once_and_as_it_was(side, at_once):
    start = Start("x", "infer", job_of(picture(3)[:side]))
    frame = spilled.Frame(start, at_once)
    expected = codec.encode(start)
    assert frame.size == len(expected)
    assert frame.take() == expected


def test_a_full_disk_is_said(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spilled.tempfile, "TemporaryFile", full)
    with pytest.raises(queue.Busy, match="no room here for so large a question"):
        queue.Ticket(None, "infer", job_of(picture()))
    with pytest.raises(ValueError, match="no room here for so large a picture"):
        decoding.picture(encoded(Image.fromarray(picture())))
    assert ticket_of("a").payload.size < spilled.LARGE


def test_a_robot_waits_for_no_disk(monkeypatch):
    monkeypatch.setattr(spilled.tempfile, "TemporaryFile", None)
    queue.Ticket(None, "infer", job_of(picture()), urgent=True)


def test_pictures_in_files_count_apart_from_memory():
    large = spilled.array(picture())
    traces = {"pi0": pi0_trace()}
    bare = results.Run(traces, (), "")
    run = results.Run(traces, [job_of(large, large, np.zeros((2, 2, 3), np.uint8))], "")
    assert (run.size, run.on_disk) == (bare.size + 12, large.nbytes)
    kept = results.Results(on_disk=2 * large.nbytes)
    keys = [kept.keep(traces, [job_of(large)]) for _ in range(3)]
    assert [bool(kept.find(key)) for key in keys] == [False, True, True]
