"""Meta-World under its scripted experts: one episode as frames, states, actions and words.

Pictures are camera corner2, turned upright, without shadows, reflections and multisampling, cut to the quarter of the
picture that holds the work space, and reduced by a box filter. OSMesa draws them on a CPU.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("LP_NUM_THREADS", "0")  # draw in the calling thread: processes share the cores better

import mujoco  # noqa: E402
import numpy as np  # noqa: E402
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP  # noqa: E402
from PIL import Image  # noqa: E402

import language  # noqa: E402
from tasks import BY_NAME  # noqa: E402

FPS = 80  # simulator steps a second: 5 physics steps of 2.5 ms
STRIDE = 4  # steps between two decisions of the model
CHUNK = 8  # actions a decision predicts
SIDE_PX = 64
MAX_STEPS = 200
STEPS_AFTER_SUCCESS = 12
NOISE_STD = 0.3

# The part of the upright corner2 picture that holds the work space: half its sides, its corner at these shares of them.
WINDOW_SIDE, WINDOW_X, WINDOW_Y = 128 / 256, 76 / 256, 64 / 256
# Parts of the robot that never reach into it, and more than half of all triangles.
UNSEEN_MESHES = ("base", "head", "l0", "l1")


@dataclass
class Episode:
    """Everything of one episode; the arrays have one row a frame.

    frames uint8 [T, side, side, 3]; state, clean, executed f32 [T, 4]; environment f32 [T, 6] (object xyz, goal xyz).
    """

    task: str
    seed: int
    instruction: str
    frames: np.ndarray
    state: np.ndarray
    clean: np.ndarray
    executed: np.ndarray
    environment: np.ndarray
    success: np.ndarray

    def __len__(self) -> int:
        return len(self.state)

    def scene(self, t: int) -> language.Scene:
        """What the words about frame `t` are made from."""
        return language.Scene(
            task=self.task,
            hand=tuple(float(v) for v in self.state[t, :3]),
            object=tuple(float(v) for v in self.environment[t, :3]),
            gripper=float(self.state[t, 3]),
            done=bool(self.success[t]),
            ahead=tuple(float(v) for v in self.clean[t : t + STRIDE, :3].sum(axis=0)),
        )

    def words(self, t: int) -> tuple[str, list[tuple[str, str]]]:
        """Caption and question/answer pairs of frame `t`; the same for the same seed."""
        scene = self.scene(t)
        return language.caption(scene), language.questions(scene, random.Random(f"{self.task}/{self.seed}/{t}"))

    def chunk(self, t: int) -> np.ndarray:
        """The expert's actions at t .. t+7, the last one repeated past the end. f32 [8, 4]."""
        rows = np.minimum(np.arange(t, t + CHUNK), len(self) - 1)
        return self.clean[rows]


class Simulator:
    """One task's environment, expert and camera; kept for many episodes, since building one is slow."""

    def __init__(self, task: str, side_px: int = SIDE_PX) -> None:
        self.task = BY_NAME[task]
        self.side_px = side_px
        self.env = ALL_V3_ENVIRONMENTS[task]()
        self.env._partially_observable = False  # the expert sees the goal
        self.env._freeze_rand_vec = False
        self.env._set_task_called = True
        self.env.seeded_rand_vec = True  # or the same seed gives other object positions
        self.env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal hidden: it would clip it to zero
        self.policy = ENV_POLICY_MAP[task]()
        model = self.env.model
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        for geom in range(model.ngeom):
            if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH and model.mesh(model.geom_dataid[geom]).name in UNSEEN_MESHES:
                model.geom_group[geom] = 5  # a group that is not drawn
        # At 64 pixels the window is drawn at twice the size and reduced; larger pictures are drawn as they are.
        self.drawn_px = 2 * side_px if side_px == SIDE_PX else side_px
        model.vis.global_.offwidth = model.vis.global_.offheight = self.drawn_px
        self.renderer = mujoco.Renderer(model, self.drawn_px, self.drawn_px)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = 0

    def close(self) -> None:
        """Releases the renderer; a second one in the same process draws nothing until the first is closed."""
        self.renderer.close()

    def picture(self) -> np.ndarray:
        """The work space now. uint8 [side, side, 3]"""
        self.renderer.update_scene(self.env.data, "corner2")
        for camera in self.renderer.scene.camera:  # the camera hangs upside down: its picture is turned below
            half = camera.frustum_top
            camera.frustum_center = half * (1 - 2 * WINDOW_X - WINDOW_SIDE)
            camera.frustum_width = half * WINDOW_SIDE
            camera.frustum_top = half * (2 * (WINDOW_Y + WINDOW_SIDE) - 1)
            camera.frustum_bottom = half * (2 * WINDOW_Y - 1)
        upright = np.ascontiguousarray(self.renderer.render()[::-1, ::-1])
        if self.drawn_px == self.side_px:
            return upright
        return np.asarray(Image.fromarray(upright).resize((self.side_px,) * 2, Image.BOX))

    def object_position(self, obs: np.ndarray) -> np.ndarray:
        """The thing that captions speak of, xyz in metres."""
        if self.task.name == "reach-v3":
            return self.env._target_pos.copy()
        position = obs[4:7].copy()
        if self.task.name == "drawer-close-v3":
            position[2] -= 0.05  # this task's observation points 5 cm above the handle
        return position

    def episode(self, seed: int, noise: bool, max_steps: int = MAX_STEPS) -> Episode:
        """Runs the expert from the start that `seed` gives; with `noise` its actions are disturbed when executed."""
        rng = np.random.default_rng(seed)
        instruction = self.task.instructions[int(rng.integers(len(self.task.instructions)))]
        self.env.seed(seed)
        obs, _ = self.env.reset()
        mujoco.mj_forward(self.env.model, self.env.data)  # reset leaves the goal marker where the last episode had it
        rows = {k: [] for k in ("frames", "state", "clean", "executed", "environment", "success")}
        succeeded, after = False, 0
        for _ in range(max_steps):
            clean = np.clip(self.policy.get_action(obs), -1.0, 1.0).astype(np.float32)
            executed = clean
            if noise:
                executed = np.clip(clean + rng.normal(0.0, NOISE_STD, 4), -1.0, 1.0).astype(np.float32)
            rows["frames"].append(self.picture())
            rows["state"].append(obs[:4].astype(np.float32))
            rows["clean"].append(clean)
            rows["executed"].append(executed)
            rows["environment"].append(np.concatenate([self.object_position(obs), self.env._target_pos]).astype(np.float32))
            rows["success"].append(succeeded)
            obs, _, _, _, info = self.env.step(executed)
            succeeded |= info["success"] > 0
            after += succeeded
            if after > STEPS_AFTER_SUCCESS:
                break
        return Episode(self.task.name, seed, instruction, **{k: np.array(v) for k, v in rows.items()})

    def episodes(self, first_seed: int, count: int) -> Iterator[Episode]:
        """`count` episodes in which the expert succeeds, every second one with noise; seeds where it fails are passed over."""
        seed, kept = first_seed, 0
        while kept < count:
            episode = self.episode(seed, noise=kept % 2 == 1)
            seed += 1
            if episode.success[-1]:
                kept += 1
                yield episode
            elif seed - first_seed > 3 * count + 20:
                raise RuntimeError(f"{self.task.name}: the expert fails too often; is metaworld 3.1.1 installed?")
