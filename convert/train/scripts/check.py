"""Checks a finished data set folder: indices without gaps, words that agree with the numbers, pictures that decode.

    python check.py ~/.cache/saccade/metaworld-mt10
"""

import collections
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

import language
from lerobot_v3 import IMAGE, VECTORS
from tasks import instruction_table

EVERY = 97  # pictures are decoded for one row in so many


def check_rows(table, episode: dict, first: int, task_of: list[str], tally: collections.Counter) -> None:
    """One episode: running indices, caption against ground truth, picture sizes."""
    name = episode["metaworld_task"]
    for t, row in enumerate(table.to_pylist()):
        where = f"episode {episode['episode_index']} frame {t}"
        assert row["frame_index"] == t and row["index"] == first + t, f"{where}: indices have a gap"
        assert row["episode_index"] == episode["episode_index"], f"{where}: belongs to another episode"
        assert task_of[row["task_index"]] == name, f"{where}: instruction of another task"
        state, environment = row["observation.state"], row["observation.environment_state"]
        scene = language.Scene(name, tuple(state[:3]), tuple(environment[:3]), state[3], row["success"], (0.0, 0.0, 0.0))
        assert row["caption"] == language.caption(scene), f"{where}: the caption does not follow from the state"
        for vector, dims in VECTORS.items():
            assert len(row[vector]) == len(dims) and np.isfinite(row[vector]).all(), f"{where}: {vector} is not {len(dims)} finite numbers"
        assert max(map(abs, row["action"] + row["action.executed"])) <= 1, f"{where}: action outside -1..1"
        for _, answer in json.loads(row["qa"]):
            tally[answer] += 1
        if row["index"] % EVERY == 0:
            picture = Image.open(io.BytesIO(row[IMAGE]["bytes"]))
            assert picture.size == (64, 64) and picture.mode == "RGB", f"{where}: picture is {picture.size} {picture.mode}"
            assert np.asarray(picture).std() > 20, f"{where}: picture is empty"


def main() -> None:
    """Goes through all files of one data set."""
    if len(sys.argv) != 2:
        sys.exit("usage: python check.py DATASET")
    root = Path(sys.argv[1]).expanduser()
    if not (root / "meta/info.json").exists():
        sys.exit(f"{root} holds no finished data set; run metaworld_rollouts.py --out {root} first")
    info = json.loads((root / "meta/info.json").read_text())
    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    task_of = [name for name, _ in instruction_table()]
    tally: collections.Counter = collections.Counter()
    per_file = collections.defaultdict(list)
    for episode in episodes:
        per_file[episode["data/file_index"]].append(episode)
    index, moved = 0, 0.0
    for file_index, members in sorted(per_file.items()):
        table = pq.read_table(root / f"data/chunk-000/file-{file_index:03d}.parquet")
        offset = 0
        for episode in members:
            assert episode["dataset_from_index"] == index, f"episode {episode['episode_index']} starts at the wrong index"
            rows = table.slice(offset, episode["length"])
            check_rows(rows, episode, index, task_of, tally)
            clean, executed = (np.array(rows[n].to_pylist()) for n in ("action", "action.executed"))
            moved = np.abs(clean - executed).max()
            assert (moved > 0) == episode["noise"], f"episode {episode['episode_index']}: noise is not as noted"
            offset += episode["length"]
            index += episode["length"]
        assert offset == len(table), f"file {file_index} has {len(table)} rows, its episodes {offset}"
    assert (len(episodes), index) == (info["total_episodes"], info["total_frames"]), "info.json counts otherwise"
    answers = ", ".join(f"{answer} {count}" for answer, count in tally.most_common(8))
    print(f"{root}: ok, {len(episodes)} episodes, {index} frames; most frequent answers: {answers}")


if __name__ == "__main__":
    main()
