"""Pictures of the table without any graphics library: rays through mujoco's own collision code.

One ray a pixel finds surface and normal, a second one from the lamp the shadow; pixels at an edge
get four more. Light is a lamp (Lambert, a soft highlight) and a sky. Every picture of the product
and of training is made here, so that what a policy sees is the same on every machine.
"""

import functools

import mujoco
import numpy as np

from playground.tabletop.kinematics import CAMERA_FOVY, CAMERA_POSITION, camera_rotation
from playground.tabletop.scene import IMAGE_SIZE, Table

_LAMP = np.array([-0.25, 0.20, 1.30])
_SKY, _LAMP_STRENGTH, _HIGHLIGHT = 0.50, 0.56, 0.10
_BACKGROUND = np.array([0.93, 0.94, 0.95])
# Neighbouring pixels that differ by more than this in any colour are an edge.
_EDGE = 0.08
_SUBPIXELS = np.array([(-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)])


@functools.cache
def _pixels(size: int) -> np.ndarray:
    """Centres of the pixels (column, row), float64 [size * size, 2], row by row from the top."""
    rows, columns = np.mgrid[:size, :size]
    return np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5


def _rays(pixels: np.ndarray, size: int) -> np.ndarray:
    """Unit directions [n, 3] through `pixels` [n, 2]."""
    half = np.tan(np.radians(CAMERA_FOVY) / 2)
    x, y = ((pixels / size * 2 - 1) * [half, -half]).T
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1) @ camera_rotation().T
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _cast(table: Table, origin: np.ndarray, rays: np.ndarray):
    """(geom [n], -1 for none; distance [n]; normal [n, 3]) of the first surface along each ray."""
    geoms = np.empty(len(rays), np.int32)
    distances = np.empty(len(rays))
    normals = np.empty(rays.size)
    mujoco.mj_multiRay(
        table.model, table.data, origin, rays.ravel(), None, 1, -1,
        geoms, distances, normals, len(rays), mujoco.mjMAXVAL,
    )  # fmt: skip
    return geoms, distances, normals.reshape(-1, 3)


def _shade(table: Table, rays: np.ndarray) -> np.ndarray:
    """The colour along each ray from the camera, float64 [n, 3]."""
    geoms, distances, normals = _cast(table, CAMERA_POSITION, rays)
    hit = geoms >= 0
    rays, normals = rays[hit], normals[hit]
    points = CAMERA_POSITION + rays * distances[hit, None]
    normals *= np.where((normals * rays).sum(1, keepdims=True) > 0, -1.0, 1.0)

    to_lamp = _LAMP - points
    reach = np.linalg.norm(to_lamp, axis=1, keepdims=True)
    to_lamp /= reach
    _, first, _ = _cast(table, _LAMP, -to_lamp)
    lit = first > reach[:, 0] - 2e-3
    halfway = to_lamp - rays
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    diffuse = np.where(lit, np.clip((normals * to_lamp).sum(1), 0, 1), 0.0)
    shine = np.where(lit, np.clip((normals * halfway).sum(1), 0, 1) ** 24, 0.0)

    light = _SKY * (0.75 + 0.25 * normals[:, 2]) + _LAMP_STRENGTH * diffuse
    colours = np.tile(_BACKGROUND, (len(geoms), 1))
    albedo = table.model.geom_rgba[geoms[hit], :3]
    colours[hit] = albedo * light[:, None] + (_HIGHLIGHT * shine)[:, None]
    return colours


def render(table: Table, size: int = IMAGE_SIZE) -> np.ndarray:
    """The table camera's image, uint8 [size, size, 3]."""
    pixels = _pixels(size)
    picture = _shade(table, _rays(pixels, size))
    square = picture.reshape(size, size, 3)
    edge = np.zeros((size, size), bool)
    across = np.abs(np.diff(square, axis=1)).max(-1) > _EDGE
    down = np.abs(np.diff(square, axis=0)).max(-1) > _EDGE
    for part, found in (
        (edge[:, 1:], across),
        (edge[:, :-1], across),
        (edge[1:], down),
        (edge[:-1], down),
    ):
        part |= found
    edge = edge.ravel()
    finer = (pixels[edge, None] + _SUBPIXELS).reshape(-1, 2)
    picture[edge] = _shade(table, _rays(finer, size)).reshape(-1, len(_SUBPIXELS), 3).mean(1)
    return (np.clip(picture, 0, 1).reshape(size, size, 3) * 255 + 0.5).astype(np.uint8)
