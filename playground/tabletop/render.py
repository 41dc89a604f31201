"""Pictures of the table without any graphics library: rays through mujoco's own collision code.

The table's top and the mat on it are planes, met by one division; they fill most pictures. Only
pixels where something stands or may throw its shadow, as far as bounding boxes say, are asked of
mujoco: one ray finds surface and normal, a second one from the lamp the shadow. Pixels at an edge
get four more. Light is a lamp (Lambert, a soft highlight) and a sky. Every picture of the product
and of training is made here, so that what a policy sees is the same on every machine.

Axes: n rays, g geoms. Vectors lie as [3, n]: their parts are then added in long rows.
"""

# The names of mujoco come from a compiled module, which the type checker cannot read.
# pyright: reportAttributeAccessIssue=false

import dataclasses
import functools

import mujoco
import numpy as np

from playground.robots.builtin import TABLE_CAMERA
from playground.tabletop.kinematics import TABLE_VIEW, View
from playground.tabletop.scene import (
    CAMERAS,
    IMAGE_SIZE,
    MAT,
    PLANES_GROUP,
    TABLE_TOP,
    WRIST_SIZE,
    Table,
)

_LAMP = np.array([-0.25, 0.20, 1.30])
_SKY, _LAMP_STRENGTH, _HIGHLIGHT = 0.50, 0.56, 0.10
_BACKGROUND = np.array([0.93, 0.94, 0.95])
# Neighbouring pixels that differ by more than this in any colour are an edge.
_EDGE = 0.08
_SUBPIXELS = np.array([(-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)])
# Shadows are looked for on a grid of this many cells a side, over what lies this far from below the
# lamp, in units of the height that it hangs above.
_SHADOW_CELLS, _SHADOW_REACH = 160, 0.9
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
_BOX_EDGES = np.array([(i, j) for i in range(8) for j in range(i) if (i ^ j).bit_count() == 1])
_NEAR = 0.002  # metres before a camera that nothing is drawn in
# mujoco's switches for groups of geoms: all but the planes.
_OBJECTS = np.array([group != PLANES_GROUP for group in range(mujoco.mjNGROUP)], np.uint8)


@dataclasses.dataclass(frozen=True, slots=True)
class _Planes:
    """What rays meet of table and mat. distances float64 [n], inf where they meet neither; points
    float64 [3, n]; bright and dark float64 [3, n], the colour there in the lamp's light and in
    shadow; cells int [n], where in the grid of shadows."""

    distances: np.ndarray
    points: np.ndarray
    bright: np.ndarray
    dark: np.ndarray
    cells: np.ndarray


def render(table: Table, size: int = IMAGE_SIZE, camera: str = TABLE_CAMERA) -> np.ndarray:
    """What a camera sees, uint8 [size, size, 3]. camera: the table's, or another of CAMERAS."""
    view, boxes = view_of(table, camera), _boxes(table)
    shadows = _shadows(boxes)
    rays = view.rotation @ _grid(size, view.fovy)
    planes = (
        _planes_of_table_camera(size)
        if camera == TABLE_CAMERA
        else planes_along(view.position, rays)
    )
    occupied = _occupied(view, boxes, size)
    picture = _shade(table, view.position, rays, planes, occupied, shadows)

    edge = _edges(picture.reshape(3, size, size))
    rays = view.rotation @ _subpixels(size, view.fovy)[:, edge].reshape(3, -1)
    planes = planes_along(view.position, rays)
    occupied = np.repeat(occupied[edge], len(_SUBPIXELS))
    finer = _shade(table, view.position, rays, planes, occupied, shadows)
    picture[:, edge] = finer.reshape(3, -1, len(_SUBPIXELS)).mean(-1)
    levels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(levels.T).reshape(size, size, 3)


def render_cameras(table: Table) -> dict[str, np.ndarray]:
    """By camera slot, what every camera of the table sees; those on the grippers at the size that
    the policies are made for, the table's own, which people look at, larger."""
    return {
        slot: render(table, IMAGE_SIZE if camera == TABLE_CAMERA else WRIST_SIZE, camera)
        for slot, camera in CAMERAS.items()
    }


# --- rays ---------------------------------------------------------------------------------------


def view_of(table: Table, camera: str) -> View:
    """Where a camera is now."""
    if camera == TABLE_CAMERA:
        return TABLE_VIEW
    index = table.model.camera(camera).id
    rotation = table.data.cam_xmat[index].reshape(3, 3)
    return View(table.data.cam_xpos[index], rotation, float(table.model.cam_fovy[index]))


@functools.lru_cache(maxsize=8)
def _grid(size: int, fovy: float) -> np.ndarray:
    """Unit directions through the pixels' centres, row by row from the top, in the camera's frame:
    float64 [3, size * size]."""
    return _directions(_centres(size), size, fovy)


@functools.lru_cache(maxsize=8)
def _subpixels(size: int, fovy: float) -> np.ndarray:
    """The same through four points of each pixel: float64 [3, size * size, 4]."""
    return _directions(_centres(size)[:, None] + _SUBPIXELS, size, fovy)


def _centres(size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5


def _directions(pixels: np.ndarray, size: int, fovy: float) -> np.ndarray:
    """Unit directions [3, ...] through pixels [..., 2] (column, row)."""
    half = np.tan(np.radians(fovy) / 2)
    x, y = np.moveaxis((pixels / size * 2 - 1) * [half, -half], -1, 0)
    return _unit(np.stack([x, y, -np.ones_like(x)]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(_dot(vectors, vectors))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of [3, ...] and [3, ...]."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cast(table: Table, origin: np.ndarray, rays: np.ndarray):
    """(geom [n], -1 for none; distance [n]; normal [3, n]) of the first object along each ray
    [3, n]; table and mat are none."""
    count = rays.shape[1]
    geoms = np.empty(count, np.int32)
    distances = np.empty(count)
    normals = np.empty(3 * count)
    mujoco.mj_multiRay(
        table.model, table.data, origin, np.ravel(rays.T), _OBJECTS, 1, -1,
        geoms, distances, normals, count, mujoco.mjMAXVAL,
    )  # fmt: skip
    return geoms, distances, normals.reshape(-1, 3).T


def _edges(square: np.ndarray) -> np.ndarray:
    """The numbers of the pixels of [3, size, size] that differ much from a neighbour."""
    edge = np.zeros(square.shape[1:], bool)
    across = (np.abs(np.diff(square, axis=2)) > _EDGE).any(0)
    down = (np.abs(np.diff(square, axis=1)) > _EDGE).any(0)
    for part, found in (
        (edge[:, 1:], across),
        (edge[:, :-1], across),
        (edge[1:], down),
        (edge[:-1], down),
    ):
        part |= found
    return np.flatnonzero(edge)


# --- light --------------------------------------------------------------------------------------


def _shade(
    table: Table,
    origin: np.ndarray,
    rays: np.ndarray,
    planes: _Planes,
    occupied: np.ndarray,
    shadows: np.ndarray,
) -> np.ndarray:
    """The colour along each ray from `origin`, float64 [3, n]. Where `occupied` (bool [n]) is
    False there is no object, where `shadows` (see `_shadows`) is False no shadow of one."""
    asked = np.flatnonzero(occupied)
    geoms, distances, normals = _cast(table, origin, rays[:, asked])
    nearer = np.flatnonzero((geoms >= 0) & (distances < planes.distances[asked]))
    struck = asked[nearer]

    colours = planes.bright.copy()
    dark = shadows[planes.cells]
    dark[struck] = False
    dark = np.flatnonzero(dark)
    dark = dark[~_lit(table, planes.points[:, dark])]
    colours[:, dark] = planes.dark[:, dark]

    rays = rays[:, struck]
    points = origin[:, None] + rays * distances[nearer]
    normals = normals[:, nearer]
    normals *= np.where(_dot(normals, rays) > 0, -1.0, 1.0)
    # What faces away from the lamp is dark by itself.
    facing = np.flatnonzero(_dot(normals, _LAMP[:, None] - points) > 0)
    lit = np.zeros(len(struck), bool)
    lit[facing] = _lit(table, points[:, facing])
    albedo = table.model.geom_rgba[geoms[nearer], :3].T
    colours[:, struck] = _reflect(rays, points, normals, albedo, lit)
    return colours


def _lit(table: Table, points: np.ndarray) -> np.ndarray:
    """Whether the lamp sees each of the points [3, n], bool [n]."""
    rays = points - _LAMP[:, None]
    reach = np.sqrt(_dot(rays, rays))
    geoms, first, _ = _cast(table, _LAMP, rays / reach)
    return (geoms < 0) | (first > reach - 2e-3)


def _reflect(rays, points, normals, albedo, lit) -> np.ndarray:
    """The colour [3, n] of surfaces seen along `rays`: Lambert and a highlight where `lit`."""
    to_lamp = _unit(_LAMP[:, None] - points)
    halfway = _unit(to_lamp - rays)
    diffuse = np.where(lit, np.clip(_dot(normals, to_lamp), 0, 1), 0.0)
    shine = np.where(lit, np.clip(_dot(normals, halfway), 0, 1), 0.0)
    shine = shine * shine * shine  # to the 24th power in all
    for _ in range(3):
        shine = shine * shine
    light = _SKY * (0.75 + 0.25 * normals[2]) + _LAMP_STRENGTH * diffuse
    return albedo * light + _HIGHLIGHT * shine


# --- the planes ---------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _planes_of_table_camera(size: int) -> _Planes:
    """The table's camera never moves."""
    return planes_along(TABLE_VIEW.position, TABLE_VIEW.rotation @ _grid(size, TABLE_VIEW.fovy))


def planes_along(origin: np.ndarray, rays: np.ndarray) -> _Planes:
    """Where the table's planes lie on rays float64 [3, N] from origin [3], and how they look."""
    down = np.minimum(rays[2], -1e-9)
    count = rays.shape[1]
    distances, albedo = np.full(count, np.inf), np.zeros((3, count))
    for plane in (TABLE_TOP, MAT):
        reach = (plane.height - origin[2]) / down
        on = np.ones(count, bool)
        for axis in (0, 1):
            aside = origin[axis] + rays[axis] * reach - plane.middle[axis]
            on &= np.abs(aside) <= plane.half[axis]
        distances[on] = reach[on]
        albedo[:, on] = np.array(plane.rgb)[:, None]
    met = np.isfinite(distances)
    points = origin[:, None] + rays * np.where(met, distances, 0.0)
    up = np.array([0.0, 0.0, 1.0])
    bright = _reflect(rays, points, up, albedo, True)
    dark = albedo * _SKY
    for colours in (bright, dark):
        colours[:, ~met] = _BACKGROUND[:, None]
    return _Planes(distances, points, bright, dark, _shadow_cells(points))


# --- where nothing need be asked ----------------------------------------------------------------


def _boxes(table: Table) -> np.ndarray:
    """Corners of the objects' boxes, float64 [g, 8, 3]."""
    objects = table.model.geom_group != PLANES_GROUP
    middle, half = np.split(table.model.geom_aabb[objects][:, None], 2, axis=-1)
    turned = (middle + half * _CORNERS) @ table.data.geom_xmat[objects].reshape(-1, 3, 3).mT
    return turned + table.data.geom_xpos[objects][:, None]


def _shadow_cells(points: np.ndarray) -> np.ndarray:
    """Where points [3, n] below the lamp lie in the grid of shadows: int [n]."""
    columns, rows = _shadow_places(points).astype(np.int32)
    return rows * _SHADOW_CELLS + columns


def _shadow_places(points: np.ndarray) -> np.ndarray:
    """[2, ...] (column, row), in cells, of points [3, ...]."""
    x, y, z = points
    places = np.stack([x - _LAMP[0], y - _LAMP[1]]) / (_LAMP[2] - z)
    places = (places / _SHADOW_REACH + 1) * (_SHADOW_CELLS / 2)
    return np.clip(places, 0, _SHADOW_CELLS - 1)


def _shadows(boxes: np.ndarray) -> np.ndarray:
    """The cells, bool [cells * cells], where an object's box hides the lamp."""
    places = np.moveaxis(_shadow_places(np.moveaxis(boxes, -1, 0)), 0, -1)
    return marked(places.min(1), places.max(1), _SHADOW_CELLS)


def _occupied(view: View, boxes: np.ndarray, size: int) -> np.ndarray:
    """The pixels, bool [size * size], where an object's box may be. What of a box is behind the
    camera is cut off first."""
    corners = (boxes - view.position) @ view.rotation
    first, second = corners[:, _BOX_EDGES[:, 0]], corners[:, _BOX_EDGES[:, 1]]
    before, after = first[..., 2:] + _NEAR, second[..., 2:] + _NEAR
    through = (before < 0) != (after < 0)
    share = np.where(through, before / np.where(through, before - after, 1.0), 0.0)
    points = np.concatenate([corners, first + share * (second - first)], axis=1)
    front = np.concatenate([corners[..., 2:] <= -_NEAR, through], axis=1)
    scale = 1 / np.tan(np.radians(view.fovy) / 2)
    plane = scale * points[..., :2] / np.where(front, -points[..., 2:], 1.0)
    pixels = (plane * [1, -1] + 1) * size / 2
    low = np.where(front, pixels, np.inf).min(1)
    high = np.where(front, pixels, -np.inf).max(1)
    return marked(low, high, size)


def marked(low: np.ndarray, high: np.ndarray, size: int) -> np.ndarray:
    """The cells of a square grid, bool [size * size], that the rectangles from `low` to `high`
    [g, 2] (column, row) touch."""
    marked = np.zeros((size, size), bool)
    starts = np.clip(np.floor(low), 0, size).astype(int)
    stops = np.clip(np.floor(high) + 1, 0, size).astype(int)
    for (left, top), (right, bottom) in zip(starts.tolist(), stops.tolist(), strict=True):
        marked[top:bottom, left:right] = True
    return marked.ravel()
