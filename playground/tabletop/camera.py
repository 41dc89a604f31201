"""Whether a picture is one of the table's own: the bundled policies know no other.

Needs no simulator. The table, its mat and the wall behind never move; what three pictures of the
table have in common, a picture of the table has too.
"""

import functools

import numpy as np

from playground.robots.builtin import TABLE_CAMERA, TABLETOP
from playground.robots.examples import examples

FOREIGN = (
    "This picture is not from the simulated table. The small bundled policies know nothing else: "
    "the answer shows how the model works, not what it can do."
)
_SIDE = 28  # cells a side that pictures are compared in
_SAME = 6.0  # grey levels by which cells of the table alone may differ
_KNOWN = 0.7  # of those cells, the share that arms and cubes leave free


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """(colours float [cells, 3], which cells show the table alone) of the example pictures."""
    cells = np.stack([_cells(example.images[TABLE_CAMERA]) for example in examples(TABLETOP)])
    return np.median(cells, axis=0), (np.ptp(cells, axis=0) < _SAME).all(-1)


def _cells(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(image).convert("RGB")
    small = picture.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small, np.float64).reshape(-1, 3)


def shows_table(image: np.ndarray) -> bool:
    """Whether uint8 [height, width, 3] is the table camera's view, at any size."""
    height, width = image.shape[:2]
    if height != width:
        return False
    colours, alone = _table()
    near = np.all(np.abs(_cells(image) - colours) < 2 * _SAME, axis=-1)
    return float(near[alone].mean()) > _KNOWN
