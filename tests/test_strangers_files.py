"""Files made to take long, or much memory, to read, and the processes that read them."""

import dataclasses
import io
import json
import os
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from playground import codec, run_file
from playground.robots import transforms
from playground.ui import decoding
from playground.ui.decoding import Decoders, Places
from tests.support.visitor import until
from tests.test_recipe import PICTURES, RUN, ZIP
from tests.test_transforms import encoded, photo


@pytest.fixture(scope="module")
def decoders():
    shared = Decoders(processes=1)
    yield shared
    shared.close()


def many_scans(count, side=64):
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Image.fromarray(photo(side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def repacked(change, source=ZIP):
    """A ZIP with its members, by name, changed."""
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in change(members):
            archive.writestr(name, data)
    return file.getvalue()


def trace_with(change):
    """A run file, its first trace repacked."""

    def changed(members):
        first = next(name for name, _ in members if name.startswith("traces/"))
        return [(n, repacked(change, d) if n == first else d) for n, d in members]

    return repacked(changed)


def of_many_pictures(count, side=8):
    """Black ones: 50 KB for 16 million pixels."""
    recipe = json.loads(run_file.to_json(run_file.of(RUN)))
    names = [f"{i:064x}" for i in range(count)]
    recipe["policies"][0]["image_sha256"] = {name: name for name in names}
    small = encoded(Image.new("RGB", (side, side)))
    pictures = [(f"inputs/{name}.png", small) for name in names]
    return repacked(lambda _: [("recipe.json", json.dumps(recipe)), *pictures])


def of_large_outcomes(**changed):
    """A whole run file, whose traces and digests agree, but with more numbers or tokens than a run
    has; zeros take next to nothing in the file."""
    run = {name: dataclasses.replace(found, **changed.get(name, {})) for name, found in RUN.items()}
    file = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:  # the page itself leaves such out
        patch.setattr(run_file, "MAX_NUMBERS", 1 << 30)
        patch.setattr(run_file, "MAX_TOKENS", 1 << 30)
        run_file.write(file, run, PICTURES.values(), {})
    return file.getvalue()


REFUSED = {
    "a large chunk": (
        lambda: of_large_outcomes(pi0={"actions_normalised": np.zeros((1000, 50, 32), np.float32)}),
        "its actions are 1,600,000 numbers; at most 131,072 are taken",
    ),
    "many tokens": (
        lambda: of_large_outcomes(fast={"tokens": RUN["fast"].tokens[:1] * 5000}),
        "its tokens are 5,000; at most 4,096 are taken",
    ),
    "one name twice": (lambda: repacked(lambda m: [*m, m[0]]), "holds one file twice"),
    "one name 200 times": (
        lambda: repacked(lambda m: m + [("x", b"")] * 200),
        "at most 128 are",
    ),
    "one name twice in a trace": (lambda: trace_with(lambda m: [*m, m[-1]]), "one file twice"),
    "one name 1,000 times in a trace": (
        lambda: trace_with(lambda m: m + [("x.npy", b"")] * 1000),
        "at most 512 are taken",
    ),
    "much JSON in a trace": (
        lambda: trace_with(lambda m: [("trace.json", b'["' + b"a" * (9 << 20) + b'"]'), *m[1:]]),
        "trace.json is far too large",
    ),
    "one value repeated": (
        lambda: trace_with(lambda m: [("trace.json", b"[" + b"[]," * 999_999 + b"[]]"), *m[1:]]),
        "holds too many values",
    ),
    "large pictures": (lambda: of_many_pictures(3, 4000), "pixels; at most 32,000,000 are"),
    "many pictures": (lambda: of_many_pictures(65), "65 pictures; at most 64 are taken"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", REFUSED)
def test_a_run_file_is_bounded_before_it_is_unpacked(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        run_file.read(make())


def test_a_jpeg_has_few_scans():
    few, many = many_scans(10), many_scans(2000)
    assert transforms.load_image(few).shape == (64, 64, 3)
    with pytest.raises(ValueError, match="more than 100 scans"):
        transforms.load_image(many)


def test_damaged_exif_is_refused(monkeypatch):
    """Whatever Pillow makes of it: a rational that holds text was a TypeError."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(photo()), "JPEG", exif=exif)

    def fault(image):
        raise TypeError("unsupported operand")

    monkeypatch.setattr(ImageOps, "exif_transpose", fault)
    with pytest.raises(ValueError, match="damaged"):
        transforms.load_image(data)


def test_a_process_reads_as_this_one_does(decoders):
    data = encoded(Image.fromarray(photo()))
    found = decoders.read("picture", data)
    np.testing.assert_array_equal(found, transforms.load_image(data))
    opened = decoders.read("run_file", ZIP)
    expected = run_file.read(ZIP)
    assert codec.encode(opened) == codec.encode(expected)
    for kind, refused in (("picture", b"no picture"), ("run_file", b"PK no file")):
        with pytest.raises(ValueError) as here:  # noqa: PT011
            {"picture": transforms.load_image, "run_file": run_file.read}[kind](refused)
        with pytest.raises(ValueError) as process:  # noqa: PT011
            decoders.read(kind, refused)
        assert str(process.value) == str(here.value)


def grey(side):
    """16 bits, which take eight bytes a pixel on their way."""
    return encoded(Image.fromarray(np.zeros((side, side), np.uint16)))


def noise():
    """Some 0.2 s to read."""
    return encoded(Image.effect_noise((4000, 4000), 50), compress_level=1)


@pytest.mark.parametrize(
    ("bounds", "picture"),
    [({"memory": 64 << 20}, lambda: grey(3000)), ({"cpu_s": 0.05}, noise)],
    ids=["memory", "time"],
)
def test_what_exceeds_its_bounds_is_refused_and_the_next_is_read(bounds, picture):
    data = picture()
    small = encoded(Image.fromarray(photo()))
    narrow = Decoders(processes=1, **bounds)
    try:
        with pytest.raises(ValueError, match="too long, or too much memory"):
            narrow.read("picture", data)
        assert np.asarray(narrow.read("picture", small)).shape == photo().shape
    finally:
        narrow.close()


def test_a_process_that_is_gone_is_replaced(decoders):
    small = encoded(Image.fromarray(photo()))
    decoders.read("picture", small)
    (pid,) = decoders.pids()
    os.kill(pid, 9)
    with pytest.raises(ValueError, match="too long"):
        decoders.read("picture", small)
    assert np.asarray(decoders.read("picture", small)).shape == photo().shape


def test_a_picture_of_the_largest_size_is_read_within_the_bounds():
    photo = encoded(Image.new("RGB", (8000, 8000)), "JPEG", progressive=True)
    for data in (encoded(Image.new("RGBA", (4000, 4000))), grey(4000), photo):
        assert decoding.picture(data).shape == (4000, 4000, 3)
    assert decoding.read_size(photo) == ((8000, 8000), (4000, 4000))


# --- whose turn it is ---------------------------------------------------------------------------


class Reading:
    """One file of a visitor's that is being read, until `end`."""

    def __init__(self, places, visitor):
        self.began, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._read, args=(places, visitor), daemon=True)
        self._thread.start()

    def _read(self, places, visitor):
        with places.one(visitor):
            self.began.set()
            self._over.wait()

    def end(self):
        self._over.set()
        self._thread.join()


def reading(places, visitor):
    """Once it is read, or waits."""
    before = places.waiting
    one = Reading(places, visitor)
    until(lambda: one.began.is_set() or places.waiting > before)
    return one


def test_a_visitor_s_files_never_take_all_processes():
    places = Places(2)
    slow = [reading(places, "a") for _ in range(3)]
    assert [one.began.is_set() for one in slow] == [True, False, False]
    other = reading(places, "b")
    assert other.began.is_set()
    third = reading(places, "c")  # nothing is free
    assert not third.began.is_set()
    other.end()
    until(third.began.is_set)
    assert not slow[1].began.is_set()
    slow[0].end()
    until(slow[1].began.is_set)
    for one in (third, *slow):
        one.end()


def test_where_nobody_is_told_apart_all_processes_are_used():
    places = Places(2)
    both = [reading(places, ""), reading(places, "")]
    assert all(one.began.is_set() for one in both)
    for one in both:
        one.end()
    alone = Places(1)
    one = reading(alone, "a")  # where there is one process, it is everybody's
    assert one.began.is_set()
    one.end()


def test_few_files_of_a_visitor_wait_and_not_too_many_of_all():
    places = Places(1, each=2, all=4)
    held = [reading(places, visitor) for visitor in ("a", "a", "b")]
    with pytest.raises(ValueError, match="too many files are being read"), places.one("a"):
        pass
    held.append(reading(places, ""))
    with pytest.raises(ValueError, match="too many files are being read"), places.one("c"):
        pass
    for one in held:
        one.end()
    with places.one("a"):  # and each place is free again
        pass


def test_a_file_is_read_into_memory_only_when_its_turn_has_come():
    decoders, asked = Decoders(processes=1), threading.Event()
    held = reading(decoders.places, "a")

    def source():
        asked.set()
        return encoded(Image.fromarray(photo()))

    thread = threading.Thread(target=lambda: decoders.read("picture", source, "b"))
    thread.start()
    until(lambda: decoders.places.waiting)
    assert not asked.is_set()
    held.end()
    thread.join()
    assert asked.is_set()
    decoders.close()
