"""Numbers and pictures on their way into a model and back: offsets from the current state,
padding, and images from a file to the model's square.

Nothing here changes its arguments. Sources: openpi's `transforms.py` and
`openpi_client/image_tools.py`. H horizon (steps), D dimensions, S state dimensions.
"""

import dataclasses
import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:  # loaded where a picture is read or scaled: the 3B benchmark runs without it
    from PIL import Image

BLACK = -1.0  # as the models have it


@dataclasses.dataclass(frozen=True, slots=True)
class InputRules:
    """Where a policy's inputs differ from openpi's: LeRobot's rules changed with its versions.

    prompt_state_dims: the normalised state is padded with zeros to so many dimensions before it is
        written into the prompt; 0 for the robot's own
    bar_value: of the bars beside a picture that is not square, in the model's terms, where black
        is BLACK
    """

    prompt_state_dims: int = 0
    bar_value: float = BLACK


OPENPI_RULES = InputRules()


# --- offsets and padding ------------------------------------------------------------------------


def to_offsets(actions: np.ndarray, state: np.ndarray, mask: tuple[bool, ...]) -> np.ndarray:
    """Actions [..., H, D] as offsets from the state [..., S] at the start of the chunk, where the
    mask says so; the type of the actions stays. Never from the step before: a cumulative sum of
    offsets is wrong."""
    return _shifted(actions, state, mask, -1)


def to_absolute(actions: np.ndarray, state: np.ndarray, mask: tuple[bool, ...]) -> np.ndarray:
    """Undoes `to_offsets`."""
    return _shifted(actions, state, mask, 1)


def _shifted(actions, state, mask, sign) -> np.ndarray:
    actions, state, dims = np.asarray(actions), np.asarray(state), len(mask)
    if not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(f"actions must be floats to hold offsets, got {actions.dtype}")
    if actions.ndim < 2 or actions.shape[-1] < dims or state.ndim < 1 or state.shape[-1] < dims:
        raise ValueError(
            f"a mask of {dims} dimensions needs actions [steps, {dims} or more] and a state of at "
            f"least {dims}; got actions {list(actions.shape)}, state {list(state.shape)}"
        )
    shift = sign * np.where(mask, state[..., None, :dims], 0)
    moved = (actions[..., :dims] + shift).astype(actions.dtype)
    return np.concatenate([moved, actions[..., dims:]], axis=-1)


def pad(values: np.ndarray, dims: int) -> np.ndarray:
    """[..., D] with zeros at the end up to `dims`; raises ValueError if D is larger."""
    values = np.asarray(values)
    missing = dims - values.shape[-1]
    if missing < 0:
        raise ValueError(f"{values.shape[-1]} dimensions do not fit the model's {dims}")
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


# --- images -------------------------------------------------------------------------------------

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 16_000_000
# A JPEG can be decoded at half its width and height, never having been whole in memory.
MAX_JPEG_PIXELS = 4 * MAX_PIXELS

_JPEG = ("JPEG", "MPO")  # a telephone's photo may hold further pictures after the first
_MAX_SCANS = 100  # of a progressive JPEG, each of which decodes the whole picture; usual are 10
_KINDS = "PNG, JPEG or WebP"
# What Pillow raises on files that are damaged, in their pixels or in their EXIF.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, KeyError),
    *(TypeError, AttributeError, ArithmeticError),
)


def load_image(source: bytes | str | Path | BinaryIO) -> np.ndarray:
    """A PNG, JPEG or WebP as uint8 [height, width, 3], upright as its EXIF orientation says.

    Of several frames the first; transparency on black; 16-bit greys to their upper 8 bits; CMYK,
    palettes and the rest as Pillow turns them into RGB. Every pixel is decoded, since a picture is
    known by them all; but a JPEG of more than 16 million, a photo of a telephone, is read at half
    its width and height (`read_size`). Raises ValueError for anything else, and, before a pixel is
    decoded, for more than 16 million pixels, 64 in a JPEG, or 100 scans.
    """
    from PIL import ImageOps

    if isinstance(source, str | Path):
        source = Path(source).read_bytes()
    data = source if isinstance(source, bytes) else source.read()
    with _opened(data) as image:
        check_scans(image, data)
        try:
            _halve_if_large(image)
            return _rgb(ImageOps.exif_transpose(image))
        except _DAMAGED as error:
            raise ValueError(
                f"the {_KINDS} image is damaged or cut off: export it again"
            ) from error


def check_scans(image: "Image.Image", data: bytes) -> None:
    """Raises ValueError for a JPEG, opened and not yet decoded, that takes long. data: its file."""
    # The marker of a scan stands for nothing else in a JPEG's pixels.
    if image.format in _JPEG and data.count(b"\xff\xda") > _MAX_SCANS:
        raise ValueError(f"the image has more than {_MAX_SCANS} scans: export it again")


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the file's header says; raises ValueError as `load_image` does."""
    with _opened(data) as image:
        return image.size


def read_size(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of the file and of what `load_image` makes of it, before it is turned
    upright: smaller where a JPEG is large. Raises ValueError as `load_image` does."""
    with _opened(data) as image:
        size = image.size
        _halve_if_large(image)
        return size, image.size


def _halve_if_large(image: "Image.Image") -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.draft(None, (width // 2, height // 2))


def _opened(data: bytes) -> "Image.Image":
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"the image is far too large: at most {MAX_PIXELS:,} pixels") from error
    except _DAMAGED as error:
        raise ValueError(f"this is no readable {_KINDS} image: save it as one of these") from error
    width, height = image.size
    most = MAX_JPEG_PIXELS if image.format in _JPEG else MAX_PIXELS
    if width * height > most:
        image.close()
        raise ValueError(
            f"the image has {width} x {height} pixels, at most {most:,} are taken: "
            "scale it down (the models see 224 x 224)"
        )
    return image


def _rgb(image: "Image.Image") -> np.ndarray:
    from PIL import Image

    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image, np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return np.asarray(image.convert("RGB"))


def as_image(picture: np.ndarray) -> np.ndarray:
    """uint8 [height, width, 3] from what robots send: channels first or last, uint8 or floats in
    0..1 (times 255, truncated, as openpi does). Raises ValueError where openpi guesses: no axis of
    three channels or two of them, floats outside 0..1."""
    picture = np.asarray(picture)
    channels = [axis for axis in (0, -1) if picture.ndim == 3 and picture.shape[axis] == 3]
    if len(channels) != 1 or 0 in picture.shape:
        raise ValueError(
            f"an image is [height, width, 3] or [3, height, width], got {list(picture.shape)}"
        )
    if np.issubdtype(picture.dtype, np.floating):
        with np.errstate(invalid="ignore"):
            levels = np.trunc(picture * 255)
        if not ((levels >= 0) & (levels <= 255)).all():
            raise ValueError("a float image must lie in 0..1 (0..255 belongs in uint8)")
        picture = levels.astype(np.uint8)
    if picture.dtype != np.uint8:
        raise ValueError(f"an image is uint8 or float, got {picture.dtype}")
    return np.moveaxis(picture, channels[0], -1)


def resize_with_pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3] to uint8 [height, width, 3]: scaled (bilinear) to fit, centred on black.

    PARITY: the ratio is a float and scaled sides are truncated, so a side can come out one pixel
    short (288 to 224 does), and an odd rest pads one more at the bottom or right.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"an image is uint8 [height, width, 3], got {image.dtype} {list(image.shape)}"
        )
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    image_height, image_width = image.shape[:2]
    fitted_height, fitted_width = fitted_size(image_height, image_width, height, width)
    fitted = Image.fromarray(image).resize((fitted_width, fitted_height), Image.Resampling.BILINEAR)
    top, left = (height - fitted_height) // 2, (width - fitted_width) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + fitted_height, left : left + fitted_width] = np.asarray(fitted)
    return canvas


def scaled_to_fit(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h, w, 3], no side above `size`, of which `resize_with_pad` to size x size makes what
    it makes of this image. So does `letterbox`, but where a side came out a pixel short."""
    square = resize_with_pad(image, size, size)
    fitted = height, width = fitted_size(image.shape[0], image.shape[1], size, size)
    if fitted_size(height, width, size, size) != fitted:
        return square
    top, left = (size - height) // 2, (size - width) // 2
    return square[top : top + height, left : left + width]


def letterbox(image_height: int, image_width: int, height: int, width: int) -> np.ndarray:
    """bool [height, width]: which of the pixels that `resize_with_pad` makes are its black bars."""
    fitted_height, fitted_width = fitted_size(image_height, image_width, height, width)
    top, left = (height - fitted_height) // 2, (width - fitted_width) // 2
    bars = np.ones((height, width), bool)
    bars[top : top + fitted_height, left : left + fitted_width] = False
    return bars


def fitted_size(image_height: int, image_width: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) of what `resize_with_pad` scales an image to, before padding; raises
    ValueError where a side would vanish."""
    ratio = max(image_width / width, image_height / height)
    fitted = int(image_height / ratio), int(image_width / ratio)
    if not all(fitted):
        raise ValueError(
            f"an image of {image_width} x {image_height} pixels is too narrow: nothing of it "
            f"would be left at {width} x {height}; crop it"
        )
    return fitted
