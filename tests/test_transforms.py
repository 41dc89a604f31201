"""Transforms against openpi's recorded ones, and what must hold for any numbers and pictures."""

import io
import json
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from models.observation import uint8_to_float
from playground.robots import norm_stats, transforms
from playground.trace import Stats
from tests.support.openpi_cases import (
    DIFFERENCES,
    Recorded,
    cases,
    close,
    difference,
    equal,
    hold,
    to_stats,
)


@pytest.fixture(scope="module")
def recorded(goldens):
    return Recorded(goldens / "transforms", "transforms")


def method_of(params):
    return "quantile" if params["use_quantiles"] else "z-score"


# --- against openpi -----------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["Normalize", "Unnormalize"])
def test_normalisation_equals_openpi(recorded, direction):
    for name, params, inputs, outputs in cases(recorded, f"{direction}/*"):
        for key in sorted((inputs.get("stats") or {}).keys() & inputs["data"].keys()):
            stats, values = to_stats(inputs["stats"][key]), inputs["data"][key]

            def ours(stats=stats, values=values, params=params):
                method = method_of(params)
                if direction == "Unnormalize":
                    return norm_stats.unnormalise(values, stats, method)
                if len(stats.mean) > 1:
                    stats = norm_stats.trim(stats, values.shape[-1])
                return norm_stats.normalise(values, stats, method)

            hold(
                name,
                outputs is None,
                ours,
                lambda values, outputs=outputs, key=key: close(values, outputs[key]),
            )


def test_unnormalising_the_dimensions_that_have_stats(recorded):
    for _, params, inputs, outputs in cases(recorded, "Unnormalize/*/stats_shorter"):
        stats = to_stats(inputs["stats"]["actions"])
        dims = len(stats.mean)
        values = inputs["data"]["actions"][..., :dims]
        ours = norm_stats.unnormalise(values, stats, method_of(params))
        close(ours, outputs["actions"][..., :dims])


@pytest.mark.parametrize("direction", ["DeltaActions", "AbsoluteActions"])
def test_offsets_equal_openpi(recorded, direction):
    move = transforms.to_offsets if direction == "DeltaActions" else transforms.to_absolute
    for name, params, inputs, outputs in cases(recorded, f"{direction}/*"):
        hold(
            name,
            outputs is None,
            lambda params=params, inputs=inputs: move(
                inputs["actions"], inputs["state"], tuple(params["mask"] or ())
            ),
            lambda actions, outputs=outputs: equal(actions, outputs["actions"]),
        )


def test_padding_equals_openpi(recorded):
    for name, params, inputs, outputs in cases(recorded, "PadStatesAndActions/*"):
        for key, values in inputs.items():
            hold(
                name,
                False,
                lambda params=params, values=values: transforms.pad(
                    values, params["model_action_dim"]
                ),
                lambda padded, outputs=outputs, key=key: equal(padded, outputs[key]),
            )


def test_resizing_equals_openpis_client(recorded):
    for name, params, inputs, outputs in cases(recorded, "resize_pil/*"):
        size = (params["height"], params["width"])

        def ours(image=inputs["image"], size=size):
            singles = image.reshape(-1, *image.shape[-3:])
            resized = np.stack([transforms.resize_with_pad(single, *size) for single in singles])
            return resized.reshape(*image.shape[:-3], *size, 3)

        def check(image, outputs=outputs):
            equal(image, outputs["image"])

        hold(name, outputs is None, ours, check)


def test_resizing_is_close_to_openpis_other_implementation(recorded):
    for name, params, inputs, outputs in cases(recorded, "resize_jax/*/uint8"):
        if "100x1_" in name:
            continue  # nothing is left of it: see resize_pil
        ours = transforms.resize_with_pad(inputs["image"], params["height"], params["width"])
        difference = ours.astype(int) - outputs["image"].astype(int)
        assert np.abs(difference).max() <= 1, name


def test_resizing_every_camera_equals_openpi(recorded):
    for name, params, inputs, outputs in cases(recorded, "ResizeImages/*"):
        for slot, image in inputs["image"].items():
            ours = transforms.resize_with_pad(image, params["height"], params["width"])
            equal(ours, outputs["image"][slot])
            assert name


def test_float_pictures_become_openpis_levels(recorded):
    seen = 0
    for name, _, inputs, outputs in cases(recorded, "float_to_uint8/*"):
        pairs = [
            (picture, outputs["image"]["base_0_rgb"] if "droid" in name else outputs["image"])
            for key, picture in inputs.items()
            if key in ("image", "observation/exterior_image_1_left")
        ]
        ((picture, theirs),) = pairs
        hold(
            name,
            False,
            lambda picture=picture: transforms.as_image(picture),
            lambda levels, theirs=theirs: equal(levels, theirs),
        )
        inside = ((picture >= 0) & (picture <= 1)).all((1, 2))
        equal(transforms.as_image(picture[inside]), theirs[inside])
        seen += inside.sum()
    assert seen


def test_pictures_are_scaled_as_in_openpi(recorded):
    ((_, _, inputs, outputs),) = cases(recorded, "Observation/numpy/all_uint8_values")
    pictures = {slot: x for slot, x in inputs["image"].items() if x.dtype == np.uint8}
    assert set(np.concatenate([x.ravel() for x in pictures.values()])) == set(range(256))
    for slot, picture in pictures.items():
        equal(uint8_to_float(picture), outputs["image"][slot])


def test_norm_stats_files_read_and_write(recorded, goldens, tmp_path):
    for _, params, _, outputs in cases(recorded, "norm_stats_json/*"):
        stats = norm_stats.read_norm_stats(goldens / "transforms" / params["file"])
        assert stats == {key: to_stats(entry) for key, entry in outputs.items()}
        norm_stats.write_norm_stats(tmp_path / "norm_stats.json", stats)
        assert norm_stats.read_norm_stats(tmp_path / "norm_stats.json") == stats
        original = json.loads((goldens / "transforms" / params["file"]).read_text())
        assert json.loads((tmp_path / "norm_stats.json").read_text()) == original


def test_every_row_of_the_table_is_in_use(recorded):
    names = [case["name"] for case in recorded.data["cases"]]
    used = {row.cases for name in names if (row := difference(name))}
    elsewhere = ("prompt", "encode", "decode")
    assert used == {r.cases for r in DIFFERENCES if r.cases.split("/")[0] not in elsewhere}


# --- what must hold for any numbers -------------------------------------------------------------

values = st.floats(-1e3, 1e3)


@st.composite
def data_with_stats(draw):
    dims = draw(st.integers(1, 8))
    vector = st.lists(values, min_size=dims, max_size=dims)
    spread = st.lists(st.floats(1e-3, 1e3), min_size=dims, max_size=dims)
    mean, std, q01, width = draw(vector), draw(spread), draw(vector), draw(spread)
    stats = Stats(
        mean=tuple(mean),
        std=tuple(std),
        q01=tuple(q01),
        q99=tuple(low + w for low, w in zip(q01, width, strict=True)),
    )
    return draw(arrays.arrays(np.float64, (3, dims), elements=values)), stats


@given(data_with_stats(), st.sampled_from(["z-score", "quantile"]))
def test_unnormalise_undoes_normalise(data, method):
    data, stats = data
    there = norm_stats.normalise(data, stats, method)
    back = norm_stats.unnormalise(there, stats, method)
    np.testing.assert_allclose(back, data, rtol=1e-9, atol=1e-9 * 1e3)


@given(data_with_stats())
def test_quantiles_go_to_plus_and_minus_one(data):
    _, stats = data
    low = norm_stats.normalise(np.array(stats.q01), stats, "quantile")
    high = norm_stats.normalise(np.array(stats.q99), stats, "quantile")
    np.testing.assert_allclose(low, -1)
    np.testing.assert_allclose(high, 1, atol=3e-3)  # 1e-6 is added to a width of 1e-3 or more


@given(
    actions=arrays.arrays(np.float64, (2, 5, 4), elements=values),
    state=arrays.arrays(np.float64, (6,), elements=values),
    mask=st.lists(st.booleans(), max_size=4).map(tuple),
)
def test_absolute_undoes_offsets(actions, state, mask):
    offsets = transforms.to_offsets(actions, state, mask)
    for dim in range(4):
        shift = state[dim] if dim < len(mask) and mask[dim] else 0
        np.testing.assert_array_equal(offsets[..., dim], actions[..., dim] - shift)
    np.testing.assert_allclose(transforms.to_absolute(offsets, state, mask), actions, atol=1e-9)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 40), min_size=1, max_size=6))
@settings(max_examples=30)
def test_running_stats_equal_numpys(seed, sizes):
    draw = np.random.default_rng(seed)
    pieces = [draw.normal(3, 10 ** draw.uniform(-2, 2), (size, 3)) for size in [5, *sizes]]
    for piece in pieces:
        piece[:, 2] = 7.5  # a dimension that never moves
    running = norm_stats.RunningStats()
    for piece in pieces:
        running.update(piece)
    stats, whole = running.stats(), np.concatenate(pieces)
    np.testing.assert_allclose(stats.mean, whole.mean(0))
    np.testing.assert_allclose(stats.std, whole.std(0), atol=1e-9)
    # A histogram cannot know better than the neighbouring values and its own bins, whose content
    # has moved by up to a bin every time the range grew.
    bins = np.ptp(whole, axis=0) / 5000 * (len(pieces) + 1) + 1e-9
    for share, quantile in ((0.01, stats.q01), (0.99, stats.q99)):
        assert (np.quantile(whole, share, axis=0, method="lower") - bins <= quantile).all()
        above = np.quantile(whole, min(1, share + 1 / len(whole)), axis=0, method="higher")
        assert (quantile <= above + bins).all()


def test_numbers_that_do_not_fit_are_refused():
    stats = Stats((0.0,) * 3, (1.0,) * 3, None, None)
    with pytest.raises(ValueError, match="cover 3 dimensions, the data has 4"):
        norm_stats.normalise(np.zeros(4), stats, "z-score")
    with pytest.raises(ValueError, match="lack"):
        norm_stats.normalise(np.zeros(3), stats, "quantile")
    with pytest.raises(ValueError, match="not 'minmax'"):
        norm_stats.normalise(np.zeros(3), stats, "minmax")
    with pytest.raises(ValueError, match="another robot"):
        norm_stats.trim(stats, 4)
    with pytest.raises(ValueError, match="NaN or infinity"):
        norm_stats.RunningStats().update(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="at least two vectors, 0 came"):
        norm_stats.RunningStats().stats()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot read norm stats"),
        ("{}", "norm_stats"),
        ('{"norm_stats": {"state": {"mean": [0]}}}', "std"),
        (
            '{"norm_stats": {"state": {"mean": [0, 1], "std": [1]}}}',
            "state: the lengths differ: mean 2, std 1",
        ),
        (
            '{"norm_stats": {"state": {"mean": [0], "std": [NaN]}}}',
            r"state: std\[0\] is nan; expected finite",
        ),
        ('{"norm_stats": {"state": {"mean": [0], "std": [-1]}}}', "negative"),
        ('{"norm_stats": {"state": {"mean": ["a"], "std": [1]}}}', "mean is no list of numbers"),
        ('{"norm_stats": {"state": {"mean": ["1"], "std": [1]}}}', "mean is no list of numbers"),
        ('{"norm_stats": {"state": {"mean": [1], "std": [true]}}}', "std is no list of numbers"),
        (
            '{"norm_stats": {"actions": {"mean": [[0, 1], [0, 1]], "std": [1, 1]}}}',
            "actions: mean is a table of 2 x 2: stats for every step",
        ),
        ('{"norm_stats": {"state": {"mean": [0], "std": [1], "q01": [1], "q99": [0]}}}', "swapped"),
        ('{"norm_stats": [1]}', "cannot read"),
    ],
)
def test_bad_norm_stats_are_refused(tmp_path, text, match):
    (tmp_path / "norm_stats.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        norm_stats.read_norm_stats(tmp_path / "norm_stats.json")


def test_norm_stats_with_a_byte_order_mark_are_read(tmp_path):
    text = '{"norm_stats": {"state": {"mean": [0], "std": [1]}}}'
    (tmp_path / "norm_stats.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = norm_stats.read_norm_stats(tmp_path / "norm_stats.json")
    assert read == {"state": Stats((0.0,), (1.0,), None, None)}


def test_missing_norm_stats_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"norm stats from .*nowhere\.json"):
        norm_stats.read_norm_stats(tmp_path / "nowhere.json")


# --- what must hold for any picture -------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 60), st.integers(16, 60))
def test_resizing_keeps_the_aspect_and_centres(height, width, to_height, to_width):
    image = np.full((height, width, 3), 255, np.uint8)
    scale = min(to_height / height, to_width / width)
    if min(height * scale, width * scale) < 1.001:
        return  # refused, or about to be
    resized = transforms.resize_with_pad(image, to_height, to_width)
    assert resized.shape == (to_height, to_width, 3)
    rows, columns = (np.flatnonzero(resized.any((axis, 2))) for axis in (1, 0))
    # A white picture stays one white rectangle of the right shape to within a pixel,
    assert (resized[np.ix_(rows, columns)] == 255).all()
    assert height * scale - 1 - 1e-6 <= len(rows) <= height * scale + 1e-6
    assert width * scale - 1 - 1e-6 <= len(columns) <= width * scale + 1e-6
    # in the middle.
    for filled, size in ((rows, to_height), (columns, to_width)):
        assert size - 1 - filled[-1] - filled[0] in (0, 1)


def test_slivers_are_refused():
    with pytest.raises(ValueError, match=r"10000 x 1 pixels is too narrow.*crop"):
        transforms.resize_with_pad(np.zeros((1, 10_000, 3), np.uint8), 224, 224)


@given(height=st.integers(1, 700), width=st.integers(1, 700), size=st.sampled_from([56, 224]))
@example(height=288, width=288, size=224)
@example(height=3000, width=4000, size=224)
def test_a_picture_that_is_scaled_to_fit_is_the_same_to_the_model(height, width, size):
    assume(max(height, width) < 40 * min(height, width))
    pixels = np.arange(height, dtype=np.uint8)[:, None] * np.arange(width, dtype=np.uint8)
    image = np.stack([pixels, pixels + 1, pixels // 2], axis=-1)
    fitted = transforms.scaled_to_fit(image, size)
    assert max(fitted.shape[:2]) <= size
    np.testing.assert_array_equal(
        transforms.resize_with_pad(fitted, size, size),
        transforms.resize_with_pad(image, size, size),
    )
    if transforms.fitted_size(*fitted.shape[:2], size, size) == fitted.shape[:2]:
        bars = [transforms.letterbox(*one.shape[:2], size, size) for one in (fitted, image)]
        assert (fitted.shape == (size, size, 3)) or np.array_equal(*bars)


@pytest.mark.parametrize(
    ("picture", "match"),
    [
        (np.zeros((3, 8, 3), np.uint8), "height"),
        (np.zeros((8, 9), np.uint8), r"\[8, 9\]"),
        (np.zeros((8, 9, 4), np.uint8), r"\[8, 9, 4\]"),
        (np.zeros((0, 9, 3), np.uint8), r"\[0, 9, 3\]"),
        (np.zeros((8, 9, 3), np.int64), "int64"),
        (np.full((8, 9, 3), 127.0), "0..1"),
        (np.full((8, 9, 3), np.nan), "0..1"),
        (np.full((8, 9, 3), -0.1), "0..1"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(picture, match):
    with pytest.raises(ValueError, match=match):
        transforms.as_image(picture)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width=40, height=30):
    """A picture with no symmetry: red grows to the right, green downwards, a blue corner."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[:8, :8, 2] = 255
    return pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = photo()
    # How a camera stores an upright scene under each orientation (EXIF 2.3, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    np.testing.assert_array_equal(transforms.load_image(encoded(image, exif=exif)), upright)
    jpeg = transforms.load_image(encoded(image, "JPEG", exif=exif, quality=98, subsampling=0))
    assert np.abs(jpeg.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"])
def test_any_mode_becomes_rgb(mode):
    grey = np.asarray(Image.fromarray(photo()).convert("L"))
    if mode == "I;16":
        image, expected = Image.fromarray(grey.astype(np.uint16) << 8), grey
    elif mode == "PA":
        image, expected = Image.fromarray(grey).convert("P"), grey
        image.info["transparency"] = bytes([255] * 256)
    else:
        image = Image.fromarray(photo()).convert("L").convert(mode)
        expected = np.asarray(image.convert("L"))
    loaded = transforms.load_image(encoded(image))
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, np.repeat(expected[..., None], 3, axis=2))


def test_cmyk_and_transparency():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = transforms.load_image(encoded(cmyk, "JPEG", quality=95))
    assert (red[4, 4] - np.array([255, 0, 0]) <= 30).all()
    assert red[4, 4, 0] > 200
    clear = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    assert not transforms.load_image(encoded(clear)).any()  # transparent is black
    half = transforms.load_image(
        encoded(Image.new("RGBA", (8, 8), (200, 100, 50, 128)), "WEBP", lossless=True)
    )
    assert np.abs(half[0, 0].astype(int) - [100, 50, 25]).max() <= 2


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animated = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert transforms.load_image(animated)[0, 0].tolist() == [255, 0, 0]


def test_paths_and_files_load_too(tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(Image.fromarray(photo())))
    for source in (tmp_path / "photo.png", str(tmp_path / "photo.png")):
        np.testing.assert_array_equal(transforms.load_image(source), photo())
    with (tmp_path / "photo.png").open("rb") as file:
        np.testing.assert_array_equal(transforms.load_image(file), photo())


def huge_png(width, height):
    """A PNG header that claims a size, with hardly any data behind it."""

    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


@pytest.mark.parametrize("side", [4100, 10_000, 30_000])
def test_huge_pictures_are_refused_by_their_header(side):
    # The pixels behind the header are missing: decoding them would say "damaged".
    with pytest.raises(ValueError, match="at most 16,000,000"):
        transforms.load_image(huge_png(side, side))


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_photo_of_a_telephone_is_read_at_half_its_width(kind):
    """24 megapixels, held upright; the model sees what it would of the whole photo."""
    width, height = 6000, 4000
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    wave = (127 + 120 * np.sin(np.arange(height) / 300)).astype(np.uint8)
    whole = np.stack(np.broadcast_arrays(ramp[None], wave[:, None], np.uint8(90)), axis=-1)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(whole), kind, quality=90, exif=exif)
    found = transforms.load_image(data)
    assert found.shape == (3000, 2000, 3)
    assert transforms.read_size(data) == ((6000, 4000), (3000, 2000))
    upright = np.rot90(whole, -1)
    seen = transforms.resize_with_pad(found, 224, 224).astype(int)
    assert np.abs(seen - transforms.resize_with_pad(upright, 224, 224)).max() <= 4


def test_a_jpeg_larger_than_a_telephone_s_is_refused_by_its_header():
    data = bytearray(encoded(Image.fromarray(photo()), "JPEG"))
    sizes = data.index(b"\xff\xc0") + 5
    data[sizes : sizes + 4] = (8001).to_bytes(2, "big") + (8000).to_bytes(2, "big")
    with pytest.raises(ValueError, match="8000 x 8001 pixels, at most 64,000,000 are taken"):
        transforms.load_image(bytes(data))


def a_zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "a")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html><script>alert(1)</script></html>",
        a_zip(),
        encoded(Image.new("RGB", (8, 8)), "GIF"),
        encoded(Image.new("RGB", (8, 8)), "BMP"),
        encoded(Image.new("RGB", (8, 8)), "TIFF"),
    ],
)
def test_other_files_are_refused(data):
    with pytest.raises(ValueError, match="no readable PNG, JPEG or WebP"):
        transforms.load_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_cut_off_picture_is_refused(kind):
    data = encoded(Image.fromarray(photo(200, 150)), kind)
    with pytest.raises(ValueError, match=r"damaged or cut off|no readable"):
        transforms.load_image(data[: len(data) // 2])


@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=300)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about EXIF data that it then skips
def test_damaged_pictures_load_or_are_refused(kind, edits):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    data = bytearray(encoded(Image.fromarray(photo()), kind, exif=exif))
    for position, value in edits:
        data[position % len(data)] = value
    try:
        loaded = transforms.load_image(bytes(data))
    except ValueError:
        return
    assert loaded.dtype == np.uint8
    assert loaded.ndim == 3
