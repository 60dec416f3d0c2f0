"""The ten Meta-World tasks of MT10: their names, the words for them and the object each one is about.

No simulator is imported here, so that the language can be checked without one.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task. `thing` stands in the scene; `object` is what the hand has to get to."""

    name: str
    phrase: str  # third person, for captions: "the robot <phrase>."
    doing: str  # for the answer to "what is the robot doing?"
    object: str
    thing: str
    colour: tuple[str, str]  # (what is asked about, its colour in the picture)
    instructions: tuple[str, ...]


TASKS = (
    Task(
        "reach-v3",
        "reaches the goal",
        "reaching the goal",
        "goal",
        "puck",
        ("goal", "red"),
        ("reach the goal", "move the hand to the red point", "go to the red goal", "touch the goal"),
    ),
    Task(
        "push-v3",
        "pushes the puck",
        "pushing the puck",
        "puck",
        "puck",
        ("goal", "green"),
        ("push the puck to the goal", "push the puck to the green point", "slide the puck to the goal", "move the puck over the table"),
    ),
    Task(
        "pick-place-v3",
        "picks up the puck",
        "picking up the puck",
        "puck",
        "puck",
        ("goal", "blue"),
        ("pick up the puck", "bring the puck to the blue point", "lift the puck to the goal", "pick the puck and place it at the goal"),
    ),
    Task(
        "door-open-v3",
        "opens the door",
        "opening the door",
        "door handle",
        "door",
        ("door", "black"),
        ("open the door", "pull the door open", "open the black door", "turn the door on its hinge"),
    ),
    Task(
        "drawer-open-v3",
        "opens the drawer",
        "opening the drawer",
        "drawer handle",
        "drawer",
        ("drawer", "green"),
        ("open the drawer", "pull the drawer out", "pull the drawer handle", "open the green drawer"),
    ),
    Task(
        "drawer-close-v3",
        "closes the drawer",
        "closing the drawer",
        "drawer handle",
        "drawer",
        ("drawer", "green"),
        ("close the drawer", "push the drawer in", "push the drawer shut", "close the green drawer"),
    ),
    Task(
        "button-press-topdown-v3",
        "presses the button",
        "pressing the button",
        "button",
        "button",
        ("button", "red"),
        ("press the button", "push the button down", "press the red button from above", "press the button on the box"),
    ),
    Task(
        "peg-insert-side-v3",
        "inserts the peg",
        "inserting the peg",
        "peg",
        "peg",
        ("peg", "green"),
        ("insert the peg", "put the peg into the hole", "push the green peg into the box", "insert the peg from the side"),
    ),
    Task(
        "window-open-v3",
        "opens the window",
        "opening the window",
        "window handle",
        "window",
        ("window frame", "brown"),
        ("open the window", "slide the window open", "push the window handle open", "open the sliding window"),
    ),
    Task(
        "window-close-v3",
        "closes the window",
        "closing the window",
        "window handle",
        "window",
        ("window frame", "brown"),
        ("close the window", "slide the window shut", "push the window handle shut", "close the sliding window"),
    ),
)

BY_NAME = {task.name: task for task in TASKS}
THINGS = tuple(dict.fromkeys(task.thing for task in TASKS))


def instruction_table() -> list[tuple[str, str]]:
    """Every (task name, instruction), in the order of their task_index in a data set."""
    return [(task.name, text) for task in TASKS for text in task.instructions]
