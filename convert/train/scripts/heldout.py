"""The held-out sample that is committed: unseen simulator episodes as PNG strips with their truth beside them.

    python heldout.py --out ../../../examples/heldout

Per episode NN-<task>.png, the frames of every fourth simulator step side by side (64·T x 64), and NN-<task>.json:

    {"task", "instruction", "seed", "noise",
     "steps": [{"state": [4], "executed": [k][4], "chunk": [8][4], "caption", "qa": [[question, answer], ...]}, ...]}

`executed` are the actions carried out until the next frame (k = 4, fewer after the last), `chunk` the expert's clean
actions from this frame on. The seeds are used nowhere else.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from beside import replacing
from simulator import STRIDE, Episode, Simulator
from tasks import TASKS

FIRST_SEED = 910_000
SEEDS_PER_TASK = 100
EPISODES_PER_TASK = 3
LIMIT_BYTES = 4_000_000
DECIMALS = 5


def numbers(values: np.ndarray) -> list:
    """Nested lists of rounded numbers."""
    return np.round(values.astype(np.float64), DECIMALS).tolist()


def truth(episode: Episode, noise: bool) -> dict:
    """The JSON object of an episode."""
    steps = []
    for t in range(0, len(episode), STRIDE):
        caption, pairs = episode.words(t)
        steps.append(
            {
                "state": numbers(episode.state[t]),
                "executed": numbers(episode.executed[t : t + STRIDE]),
                "chunk": numbers(episode.chunk(t)),
                "caption": caption,
                "qa": [list(pair) for pair in pairs],
            }
        )
    return {"task": episode.task, "instruction": episode.instruction, "seed": episode.seed, "noise": noise, "steps": steps}


def write_episode(path: Path, episode: Episode, noise: bool) -> int:
    """Writes the strip and the truth; returns the number of steps."""
    record = truth(episode, noise)
    strip = np.concatenate(list(episode.frames[::STRIDE]), axis=1)
    Image.fromarray(strip).save(path.with_suffix(".png"), optimize=True)
    lines = ",\n".join(json.dumps(step, separators=(",", ":")) for step in record["steps"])
    head = json.dumps({k: v for k, v in record.items() if k != "steps"}, separators=(",", ":"))
    path.with_suffix(".json").write_text(f'{head[:-1]},"steps":[\n{lines}\n]}}\n')
    return len(record["steps"])


def main() -> None:
    """Reads the command line, draws the episodes task by task, checks the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as (part,):
        part.mkdir()
        for other in out.iterdir() if out.is_dir() else ():
            if other.suffix not in (".png", ".json"):
                shutil.copy2(other, part)
        number = steps = 0
        for position, task in enumerate(TASKS):
            simulator = Simulator(task.name)
            first = FIRST_SEED + SEEDS_PER_TASK * position
            for kept, episode in enumerate(simulator.episodes(first, EPISODES_PER_TASK)):
                steps += write_episode(part / f"{number:02d}-{task.name}", episode, noise=kept % 2 == 1)
                number += 1
            simulator.close()
            print(f"{task.name}: {number} episodes, {steps} steps so far", file=sys.stderr, flush=True)
        total = sum(f.stat().st_size for f in [*part.glob("*.png"), *part.glob("*.json")])
        if total > LIMIT_BYTES:
            sys.exit(f"{out} would have {total} bytes, more than {LIMIT_BYTES}; lower EPISODES_PER_TASK")
    print(f"{out}: {number} episodes, {steps} steps, {total} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
