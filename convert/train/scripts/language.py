"""Captions and questions about a simulator frame, made from its ground truth.

The language is closed: lower case, fixed grammar, fixed answers. Everything that is said can be seen in the picture or
follows from the expert's next actions.

Directions are the picture's. Camera corner2 (turned upright) looks along the table from one corner; its right is the
table direction RIGHT, its depth the table direction AWAY. `left of` and `right of` are along RIGHT, `above` and `below`
along the world's vertical. Inside the margins the two are `in line` or `level`.

    caption   = "the robot " phrase ". the hand is " side " and " height " the " object ", " distance
                ". the gripper is " gripper "."
    side      = "left of" | "right of" | "in line with"
    height    = "above" | "below" | "level with"
    distance  = "near" | "far"
    gripper   = "open" | "closed"

`python language.py --check` runs the hand-computed cases at the end of this file.
"""

import random
import sys
from dataclasses import dataclass

from tasks import BY_NAME, TASKS, THINGS

# The picture's right and its depth in table coordinates (x, y), from corner2's camera matrix.
RIGHT = (0.5517, 0.8340)
AWAY = (-0.8340, 0.5517)
SIDE_MARGIN_M = 0.04
HEIGHT_MARGIN_M = 0.05
NEAR_M = 0.12
OPEN_AT = 0.7  # gripper opening, 1 = fully open; a held puck is about 0.45, a closed hand 0.26
MOVE_MARGIN = 0.5  # sum of four expert actions under which the hand stays
MOVE_CLEAR = 1.25  # the largest direction must lead the second by this factor to be asked about

CAPTION_QUESTION = "what is happening?"


@dataclass(frozen=True)
class Scene:
    """Ground truth of one frame. Positions are (x, y, z) in metres, `ahead` the sum of the expert's next four actions."""

    task: str
    hand: tuple[float, float, float]
    object: tuple[float, float, float]
    gripper: float
    done: bool
    ahead: tuple[float, float, float]


def side(scene: Scene) -> str:
    """Where the hand is along the picture's horizontal, seen from the object."""
    offset = sum(r * (h - o) for r, h, o in zip(RIGHT, scene.hand, scene.object))
    if offset > SIDE_MARGIN_M:
        return "right of"
    return "left of" if offset < -SIDE_MARGIN_M else "in line with"


def height(scene: Scene) -> str:
    """Whether the hand is above, below or level with the object."""
    offset = scene.hand[2] - scene.object[2]
    if offset > HEIGHT_MARGIN_M:
        return "above"
    return "below" if offset < -HEIGHT_MARGIN_M else "level with"


def distance(scene: Scene) -> str:
    """Whether hand and object are near each other."""
    squared = sum((h - o) ** 2 for h, o in zip(scene.hand, scene.object))
    return "near" if squared < NEAR_M**2 else "far"


def gripper(scene: Scene) -> str:
    """Whether the gripper is open or closed."""
    return "open" if scene.gripper >= OPEN_AT else "closed"


def heading(scene: Scene) -> str | None:
    """Where the hand goes next, in the picture's directions; None when two directions compete."""
    x, y, z = scene.ahead
    along = {
        ("right", "left"): x * RIGHT[0] + y * RIGHT[1],
        ("away", "closer"): x * AWAY[0] + y * AWAY[1],
        ("up", "down"): z,
    }
    (names, first), (_, second) = sorted(along.items(), key=lambda item: -abs(item[1]))[:2]
    if abs(first) < MOVE_MARGIN:
        return "nowhere"
    if abs(first) < MOVE_CLEAR * abs(second):
        return None
    return names[0] if first > 0 else names[1]


def caption(scene: Scene) -> str:
    """The answer to `what is happening?`."""
    task = BY_NAME[scene.task]
    return (
        f"the robot {task.phrase}. the hand is {side(scene)} and {height(scene)} the {task.object}, "
        f"{distance(scene)}. the gripper is {gripper(scene)}."
    )


def questions(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Question and answer pairs about one frame.

    A yes/no question about a state with two values is asked in one of its two forms at random, so that its answer is
    yes half the time whatever the state is. States that are rarely true are asked about less often while they are false.
    """
    task = BY_NAME[scene.task]
    obj = task.object
    pairs = [
        ("what is the robot doing?", task.doing),
        ("what does the hand work on?", f"the {obj}"),
        ("which object is there?", f"a {task.thing}"),
        (f"what colour is the {task.colour[0]}?", task.colour[1]),
        ("where is the hand?", f"{side(scene)} and {height(scene)} the {obj}"),
        (f"how far is the {obj} from the hand?", distance(scene)),
        ("how is the gripper?", gripper(scene)),
    ]
    # Two forms of one state: the answer is balanced by the choice of the form.
    state = rng.choice(("open", "closed"))
    pairs.append((f"is the gripper {state}?", yes_or_no(gripper(scene) == state)))
    word, value = rng.choice((("near", "near"), ("far from", "far")))
    pairs.append((f"is the hand {word} the {obj}?", yes_or_no(distance(scene) == value)))
    # One of three values: ask about the true one half the time.
    pairs.append(_is_it(rng, "is the hand {} the " + obj + "?", side(scene), ("left of", "right of", "in line with")))
    pairs.append(_is_it(rng, "is the hand {} the " + obj + "?", height(scene), ("above", "below", "level with")))
    pairs.append(_is_it(rng, "is there a {}?", task.thing, THINGS))
    doings = tuple(t.doing for t in TASKS)
    pairs.append(_is_it(rng, "is the robot {}?", task.doing, doings))
    # About one frame in eight is done: ask always then, and one time in seven otherwise.
    if scene.done or rng.random() < 1 / 7:
        pairs.append(("is the task done?", yes_or_no(scene.done)))
    if (direction := heading(scene)) is not None:
        pairs.append(("where does the hand go next?", direction))
    return pairs


def yes_or_no(truth: bool) -> str:
    """The answer to a yes/no question."""
    return "yes" if truth else "no"


def _is_it(rng: random.Random, form: str, true: str, values: tuple[str, ...]) -> tuple[str, str]:
    if rng.random() < 0.5:
        return form.format(true), "yes"
    return form.format(rng.choice([v for v in values if v != true])), "no"


# How the yes/no questions of each kind begin; `is the task done?` is balanced by the share of frames, not here.
FORMS = {
    "the gripper": ("is the gripper",),
    "distance": ("is the hand near", "is the hand far"),
    "side": ("is the hand left", "is the hand right", "is the hand in line"),
    "height": ("is the hand above", "is the hand below", "is the hand level"),
    "things": ("is there",),
    "doings": ("is the robot",),
}


def check() -> None:
    """Hand-computed cases; raises AssertionError on the first that fails."""
    base = Scene("door-open-v3", (0.0, 0.6, 0.19), (0.2, 0.7, 0.15), 1.0, False, (4.0, 0.0, 0.0))
    # 0.5517 * -0.2 + 0.834 * -0.1 = -0.194 m: left; 0.04 m higher: level; 0.23 m apart: far.
    expect = "the robot opens the door. the hand is left of and level with the door handle, far. the gripper is open."
    assert caption(base) == expect, caption(base)
    close = Scene("reach-v3", (0.0, 0.6, 0.2), (0.0, 0.55, 0.1), 0.69, True, (0.1, 0.1, 0.1))
    # 0.834 * 0.05 = 0.0417 m: just right of; 0.1 m above; sqrt(0.05^2 + 0.1^2) = 0.112 m: near.
    expect = "the robot reaches the goal. the hand is right of and above the goal, near. the gripper is closed."
    assert caption(close) == expect, caption(close)
    assert heading(close) == "nowhere"
    # Along +x: right 2.2, closer 3.3.
    assert heading(base) == "closer", heading(base)
    below = Scene("button-press-topdown-v3", (0.0, 0.4, 0.19), (0.0, 0.4, 0.3), 0.7, False, (1.0, 1.0, 1.2))
    # (1, 1, 1.2): right 1.386, up 1.2, and 1.386 < 1.25 * 1.2, so the two compete.
    assert height(below) == "below" and side(below) == "in line with" and gripper(below) == "open"
    assert heading(below) is None

    rng = random.Random(0)
    answers: dict[str, list[bool]] = {kind: [] for kind in FORMS}
    for _ in range(4000):
        for scene in (base, close, below):
            for question, answer in questions(scene, rng):
                assert question == question.lower() and answer == answer.lower()
                assert question.endswith("?") and answer
                for kind, starts in FORMS.items():
                    if question.startswith(starts):
                        answers[kind].append(answer == "yes")
    for kind, said in answers.items():
        share = sum(said) / len(said)
        assert 0.47 < share < 0.53, f"answers about {kind} are out of balance: {share:.3f} yes"
    assert len({q for s in (base,) for _ in range(200) for q, _ in questions(s, rng)}) > 10
    assert len({i for task in TASKS for i in task.instructions}) == sum(len(t.instructions) for t in TASKS)
    assert all(len(t.instructions) >= 3 for t in TASKS)
    print(f"language: ok, {len(FORMS)} kinds of yes/no questions in balance")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check()
    else:
        sys.exit("usage: python language.py --check")
