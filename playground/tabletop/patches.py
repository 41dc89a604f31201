"""Which cubes an image patch of the table's camera shows."""

from collections.abc import Mapping

import numpy as np

from playground.tabletop.kinematics import project
from playground.tabletop.scene import CUBE


def cubes_in(
    cubes: Mapping[str, tuple[float, float, float]], row: int, column: int, side: int
) -> list[str]:
    """Names of the cubes of which a corner, or the middle, lies in a patch.

    cubes: by name, (x, y, yaw) in metres and radians
    row, column: of the patch, from 0
    side: patches in a row of the picture
    """
    corners = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (0, 1, 2)])
    found = []
    for name, (x, y, yaw) in cubes.items():
        turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        points = np.concatenate([corners[:, :2] @ turn, corners[:, 2:]], axis=1) * CUBE / 2
        cells = np.floor(project(points + np.array([x, y, 0]), side)).astype(int)
        if (column, row) in set(map(tuple, cells.tolist())):
            found.append(name)
    return found
