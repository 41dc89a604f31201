"""The table: two ALOHA arms, three coloured cubes and its cameras, in mujoco.

The arms are this project's own (`viperx.xml`), of the published lengths and limits, with a camera
on each gripper. Lengths in metres, angles in radians; x runs to the right of the picture, y away
from the viewer, z up, the table top at z = 0.
"""

# The names of mujoco come from a compiled module, which the type checker cannot read.
# pyright: reportAttributeAccessIssue=false

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import mujoco
import numpy as np

from playground.robots.builtin import TABLE_CAMERA
from playground.tabletop.kinematics import (
    ARMS,
    BASE,
    CAMERA_FOVY,
    CAMERA_POSITION,
    FACING,
    TIP_OFFSET,
    camera_rotation,
)

Verb = Literal["touch", "pick", "put_on", "put_next"]
COLOURS = ("red", "green", "blue")
CUBE = 0.04
CONTROL_HZ = 50
_SUBSTEPS = 5

# Where cubes may lie: 32 x 24 cm around the point between the arms, at least 10 cm apart.
WORKSPACE = ((-0.16, 0.16), (0.38, 0.62))
MIN_APART = 0.10
# Closer to the middle line than this, either arm may serve: such cubes count for no arm figure.
TIE = 0.02

# Arms folded back so that the table is clear; joints in ALOHA's order, gripper 0 closed, 1 open.
HOME = np.array([0.0, -0.95, 0.95, 0.0, 1.0, 0.0, 0.5] * 2)
HOME_SPREAD = np.array([0.06, 0.05, 0.05, 0.04, 0.06, 0.05, 0.12] * 2)

# ALOHA's linear map between a finger's slide (m) and the gripper's opening, as in ALOHA's own code.
_FINGER_CLOSED, _FINGER_OPEN = 0.01844, 0.058
_FINGER_RANGE = (0.021, 0.057)

# By camera slot of the models, the camera that fills it.
CAMERAS = {
    "base_0_rgb": TABLE_CAMERA,
    "left_wrist_0_rgb": "vx300s_left/wrist",
    "right_wrist_0_rgb": "vx300s_right/wrist",
}
IMAGE_SIZE, WRIST_SIZE = 224, 112
_ARM = Path(__file__).with_name("viperx.xml")

RGBA = {"red": (0.86, 0.13, 0.12), "green": (0.13, 0.62, 0.24), "blue": (0.13, 0.33, 0.86)}


@dataclasses.dataclass(frozen=True, slots=True)
class Plane:
    """A flat rectangle: the height of its top, its middle and half its size in x and y, colour."""

    height: float
    middle: tuple[float, float]
    half: tuple[float, float]
    rgb: tuple[float, float, float]


TABLE_TOP = Plane(0.0, (0.0, 0.55), (0.75, 0.50), (0.74, 0.68, 0.60))
MAT = Plane(0.0004, (0.0, 0.50), (0.205, 0.165), (0.86, 0.84, 0.80))
# The planes' geoms are of this group, which mujoco's rays can leave out.
PLANES_GROUP = 1
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_STIFFNESS = (800, 1600, 800, 200, 400, 100)


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A start: where the cubes lie and how the arms stand.

    cubes: by colour, (x, y, yaw). state: 14 values in ALOHA's order and units.
    """

    cubes: dict[str, tuple[float, float, float]]
    state: tuple[float, ...]


def random_scene(seed: int | np.random.Generator) -> Scene:
    """Three cubes, uniform over all arrangements `MIN_APART` apart; arms near home."""
    rng = np.random.default_rng(seed)
    low, high = np.array(WORKSPACE).T
    while True:
        places = rng.uniform(low, high, size=(len(COLOURS), 2))
        gaps = [np.linalg.norm(places[i] - places[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        if min(gaps) >= MIN_APART:
            break
    yaws = rng.uniform(-0.15, 0.15, size=len(COLOURS))
    state = HOME + HOME_SPREAD * np.clip(rng.standard_normal(HOME.size), -2, 2)
    cubes = {
        colour: (float(x), float(y), float(yaw))
        for colour, (x, y), yaw in zip(COLOURS, places, yaws, strict=True)
    }
    return Scene(cubes=cubes, state=tuple(float(value) for value in state))


def nearer_arm(x: float) -> str:
    """The arm that serves a cube at x."""
    return "left" if x < 0 else "right"


def _xml() -> str:
    """The scene without the arms: table, light, camera, cubes and actuators."""
    cubes = "".join(
        f"""<body name="{colour}" pos="{0.1 * i} .5 .02"><freejoint name="{colour}"/>
        <inertial pos="0 0 0" mass=".04" diaginertia="1.1e-5 1.1e-5 1.1e-5"/>
        <geom name="{colour}" type="box" size=".02 .02 .02" rgba="{r} {g} {b} 1"
        condim="4" friction="1.5 .02 .0005" contype="1" conaffinity="7"/></body>"""
        for i, (colour, (r, g, b)) in enumerate(RGBA.items())
    )
    actuators = "".join(
        f'<position name="{arm}/{joint}" joint="vx300s_{arm}/{joint}" kp="{kp}" dampratio="1"/>'
        for arm in ARMS
        for joint, kp in zip(_JOINTS, _STIFFNESS, strict=True)
    ) + "".join(
        f'<position name="{arm}/{side}" joint="vx300s_{arm}/{side}_finger" kp="400" '
        f'dampratio="1" forcelimited="true" forcerange="-12 12"/>'
        for arm in ARMS
        for side in ("left", "right")
    )
    return f"""<mujoco model="tabletop">
    <compiler angle="radian"/>
    <option timestep="{1 / CONTROL_HZ / _SUBSTEPS}" integrator="implicitfast" cone="elliptic"
        impratio="10" noslip_iterations="0"/>
    <visual><map znear=".01"/><quality offsamples="4"/>
      <headlight ambient=".35 .35 .35" diffuse=".2 .2 .2" specular="0 0 0"/></visual>
    <worldbody>
      <light pos="-.35 .1 1.2" dir=".3 .35 -1" diffuse=".6 .6 .6" specular=".1 .1 .1"/>
      <camera name="{TABLE_CAMERA}" pos="0 0 1" fovy="{CAMERA_FOVY}"/>
      {_slab("table", TABLE_TOP, 0.04)}
      {_slab("mat", MAT, MAT.height)}
      {cubes}
    </worldbody>
    <actuator>{actuators}</actuator>
    </mujoco>"""


def _slab(name: str, plane: Plane, thickness: float) -> str:
    """A plane as the top of a box; cubes and fingers stand on the table, nothing on the mat."""
    (x, y), (width, depth), (r, g, b) = plane.middle, plane.half, plane.rgb
    solid = name == "table"
    return f"""<geom name="{name}" type="box" size="{width} {depth} {thickness / 2}"
        pos="{x} {y} {plane.height - thickness / 2}" rgba="{r} {g} {b} 1" group="{PLANES_GROUP}"
        contype="{int(solid)}" conaffinity="{5 * int(solid)}" friction="1 .01 .001"/>"""


@functools.cache
def build_model() -> mujoco.MjModel:
    """The compiled scene, shared by every table of this process."""
    spec = mujoco.MjSpec.from_string(_xml())
    _attach_arms(spec)
    for joint in spec.joints:
        # As published they carry up to 60 N m of dry friction, which the position servos never
        # overcome for the last centimetres; here the servos hold what is asked of them.
        if joint.type != mujoco.mjtJoint.mjJNT_FREE:
            joint.frictionloss = 0.5
            joint.armature = 0.02
    for body in spec.bodies:
        if not body.name.startswith("vx300s"):
            continue
        body.gravcomp = 1.0
        for geom in body.geoms:
            # Arms meet cubes; fingers meet the table too; nothing else of the arms collides.
            if "finger" in body.name:
                geom.contype, geom.conaffinity, geom.friction[0] = 4, 0, 1.5
            else:
                geom.contype, geom.conaffinity = 2, 0
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, camera_rotation().ravel())
    camera = spec.camera(TABLE_CAMERA)
    camera.pos, camera.quat = CAMERA_POSITION, quat
    return spec.compile()


def _attach_arms(spec: mujoco.MjSpec) -> None:
    for arm in ARMS:
        half = FACING[arm] / 2
        frame = spec.worldbody.add_frame(pos=BASE[arm], quat=(np.cos(half), 0, 0, np.sin(half)))
        spec.attach(mujoco.MjSpec.from_file(str(_ARM)), prefix=f"vx300s_{arm}/", frame=frame)


def _finger(opening):
    slide = _FINGER_CLOSED + np.asarray(opening) * (_FINGER_OPEN - _FINGER_CLOSED)
    return np.clip(slide, *_FINGER_RANGE)


class Table:
    """One simulated table. State and actions are ALOHA's 14 values: per arm six joint angles (rad)
    and the gripper's opening (0 closed, 1 open), the left arm first."""

    def __init__(self, scene: Scene):
        self.model = build_model()
        self.data = mujoco.MjData(self.model)
        self._joints = {
            arm: [self.model.joint(f"vx300s_{arm}/{name}").qposadr[0] for name in _JOINTS]
            for arm in ARMS
        }
        self._fingers = {
            arm: [
                self.model.joint(f"vx300s_{arm}/{s}_finger").qposadr[0] for s in ("left", "right")
            ]
            for arm in ARMS
        }
        self._tip_bodies = {arm: self.model.body(f"vx300s_{arm}/gripper_link").id for arm in ARMS}
        self._cube_geoms = {self.model.geom(colour).id: colour for colour in COLOURS}
        bodies = [self.model.body(body).name for body in self.model.geom_bodyid]
        self._arm_geoms = {
            geom: arm
            for geom, body in enumerate(bodies)
            for arm in ARMS
            if body.startswith(f"vx300s_{arm}")
        }
        self._finger_geoms = {
            arm: [
                {geom for geom, body in enumerate(bodies) if body == f"vx300s_{arm}/{side}_link"}
                for side in ("left_finger", "right_finger")
            ]
            for arm in ARMS
        }
        self.reset(scene)

    def reset(self, scene: Scene) -> None:
        """Puts cubes and arms where the scene has them, at rest."""
        mujoco.mj_resetData(self.model, self.data)
        self.set_state(np.array(scene.state))
        for colour, (x, y, yaw) in scene.cubes.items():
            address = self.model.joint(colour).qposadr[0]
            half = yaw / 2
            self.data.qpos[address : address + 7] = (
                x, y, CUBE / 2, np.cos(half), 0, 0, np.sin(half),
            )  # fmt: skip
        self.data.qvel[:] = 0
        self._command(np.array(scene.state))
        mujoco.mj_forward(self.model, self.data)

    def set_state(self, state: np.ndarray) -> None:
        """Places the arms (positions only) and updates the geometry."""
        for i, arm in enumerate(ARMS):
            part = state[7 * i : 7 * i + 7]
            self.data.qpos[self._joints[arm]] = part[:6]
            slide = _finger(part[6])
            self.data.qpos[self._fingers[arm]] = (slide, -slide)
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def state(self) -> np.ndarray:
        """float64 [14], measured."""
        parts = []
        for arm in ARMS:
            left, right = self.data.qpos[self._fingers[arm]]
            opening = ((left - right) / 2 - _FINGER_CLOSED) / (_FINGER_OPEN - _FINGER_CLOSED)
            parts += [*self.data.qpos[self._joints[arm]], opening]
        return np.array(parts)

    def _command(self, action: np.ndarray) -> None:
        joints, openings = action.reshape(2, 7)[:, :6], action.reshape(2, 7)[:, 6]
        slides = _finger(openings)
        self.data.ctrl[:] = np.concatenate(
            [joints.ravel(), np.stack([slides, -slides], axis=1).ravel()]
        )

    def step(self, action: np.ndarray) -> None:
        """One control period (1/50 s) towards the 14 absolute targets of `action`."""
        self._command(np.asarray(action, dtype=np.float64))
        for _ in range(_SUBSTEPS):
            mujoco.mj_step(self.model, self.data)

    def cube(self, colour: str) -> np.ndarray:
        """The cube's centre, float64 [3]."""
        return self.data.body(colour).xpos.copy()

    def tip(self, arm: str) -> np.ndarray:
        """The point between the fingertips, float64 [3]."""
        body = self._tip_bodies[arm]
        return self.data.xpos[body] + self.data.xmat[body].reshape(3, 3)[:, 0] * TIP_OFFSET

    def touching(self) -> dict[str, set[str]]:
        """By colour, the arms in contact with the cube now."""
        found: dict[str, set[str]] = {colour: set() for colour in COLOURS}
        contacts = self.data.contact
        for first, second in contacts.geom[contacts.dist <= 0]:
            for cube, other in ((first, second), (second, first)):
                if cube in self._cube_geoms and other in self._arm_geoms:
                    found[self._cube_geoms[cube]].add(self._arm_geoms[other])
        return found

    def holder(self, colour: str) -> int:
        """The arm both of whose fingers touch the cube (0 left, 1 right), or -1."""
        contacts, cube = self.data.contact, self.model.geom(colour).id
        pairs = contacts.geom[contacts.dist <= 0]
        others = set(pairs[(pairs == cube).any(axis=1)].ravel().tolist())
        for i, arm in enumerate(ARMS):
            if all(finger & others for finger in self._finger_geoms[arm]):
                return i
        return -1
