"""Roll-outs of Meta-World's scripted experts on MT10, as a LeRobotDataset v3.0 folder.

    python metaworld_rollouts.py --episodes 120 --seed 1000 --processes 2 --out ~/.cache/saccade/metaworld-mt10

Every second episode is executed with action noise; the action that is learned from is always the clean one. A task that
is finished stays in OUT/parts, so that a stopped run goes on where it was; the last step joins the parts.
"""

import argparse
import io
import json
import multiprocessing
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import lerobot_v3
from lerobot_v3 import IMAGE, VECTORS
from simulator import CHUNK, FPS, NOISE_STD, STRIDE, Episode, Simulator
from tasks import BY_NAME, TASKS, instruction_table

SEEDS_PER_TASK = 10_000  # the seeds of two tasks never meet


def png(frame: np.ndarray) -> bytes:
    """A picture as PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG", compress_level=6)
    return out.getvalue()


def rows(episode: Episode, number: int) -> pa.Table:
    """One episode as a table; `index` is filled in when the parts are joined."""
    count = len(episode)
    words = [episode.words(t) for t in range(count)]
    task_index = instruction_table().index((episode.task, episode.instruction))
    columns = {
        IMAGE: [{"bytes": png(frame), "path": f"episode-{number:06d}-frame-{t:06d}.png"} for t, frame in enumerate(episode.frames)],
        "observation.state": episode.state.tolist(),
        "action": episode.clean.tolist(),
        "action.executed": episode.executed.tolist(),
        "observation.environment_state": episode.environment.tolist(),
        "caption": [caption for caption, _ in words],
        "qa": [json.dumps(pairs) for _, pairs in words],
        "success": episode.success.tolist(),
        "timestamp": [t / FPS for t in range(count)],
        "frame_index": list(range(count)),
        "episode_index": [number] * count,
        "index": [0] * count,
        "task_index": [task_index] * count,
    }
    return pa.table(columns, schema=lerobot_v3.schema())


def run_task(job: tuple[str, int, int, Path]) -> str:
    """Generates the part of one task: parts/<task>.parquet and, written last, parts/<task>.json."""
    name, episodes, seed, parts = job
    done = parts / f"{name}.json"
    if done.exists():
        return f"{name}: already there"
    start = time.monotonic()
    position = list(BY_NAME).index(name)
    first = seed + SEEDS_PER_TASK * position
    simulator = Simulator(name)
    tables, records, samples, last_seed = [], [], [], first - 1
    for kept, episode in enumerate(simulator.episodes(first, episodes)):
        tables.append(rows(episode, position * episodes + kept))
        samples.append(episode.frames[:: max(1, len(episode) // 4)])
        stats = {f"stats/{n}/{k}": v for n in VECTORS for k, v in lerobot_v3.stats_of(column(tables[-1], n)).items()}
        records.append({"task": episode.instruction, "length": len(episode), "seed": episode.seed, "noise": kept % 2 == 1, "stats": stats})
        last_seed = episode.seed
    simulator.close()
    lerobot_v3.write(parts / f"{name}.parquet", pa.concat_tables(tables))
    np.save(parts / f"{name}.npy", np.concatenate(samples)[: lerobot_v3.IMAGE_STATS_ROWS])
    failed = last_seed - first + 1 - episodes
    lerobot_v3.write_json(done, {"episodes": records, "failed": failed})
    frames = sum(record["length"] for record in records)
    return f"{name}: {episodes} episodes, {frames} frames, {failed} seeds passed over, {time.monotonic() - start:.0f} s"


def column(table: pa.Table, name: str) -> np.ndarray:
    """A vector column as [rows, dims]."""
    values = table[name].combine_chunks()
    return values.flatten().to_numpy().reshape(len(values), -1)


def join(out: Path, tasks: list[str], seed: int) -> tuple[int, int]:
    """Makes the LeRobot folder from the parts: running indices, meta files. Returns (episodes, frames)."""
    parts = out / "parts"
    meta = out / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    vectors = {name: [] for name in VECTORS}
    episodes, index, failed = [], 0, 0
    for file_index, name in enumerate(tasks):
        part = json.loads((parts / f"{name}.json").read_text())
        failed += part["failed"]
        table = pq.read_table(parts / f"{name}.parquet")
        first = len(episodes)
        numbers = np.repeat(np.arange(len(part["episodes"])) + first, [e["length"] for e in part["episodes"]])
        for field, values in (("index", np.arange(index, index + len(table))), ("episode_index", numbers)):
            table = table.set_column(table.schema.get_field_index(field), field, pa.array(values, pa.int64()))
        for vector in VECTORS:
            vectors[vector].append(column(table, vector))
        lerobot_v3.write(out / f"data/chunk-000/file-{file_index:03d}.parquet", table.cast(lerobot_v3.schema()))
        for record in part["episodes"]:
            episodes.append(
                {
                    "episode_index": len(episodes),
                    "tasks": [record["task"]],
                    "length": record["length"],
                    "data/chunk_index": 0,
                    "data/file_index": file_index,
                    "dataset_from_index": index,
                    "dataset_to_index": index + record["length"],
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                    "metaworld_task": name,
                    "seed": record["seed"],
                    "noise": record["noise"],
                }
                | record["stats"]
            )
            index += record["length"]
    stats = {name: lerobot_v3.stats_of(np.concatenate(values)) for name, values in vectors.items()}
    stats[IMAGE] = lerobot_v3.image_stats(np.concatenate([np.load(parts / f"{name}.npy") for name in tasks]))
    lerobot_v3.write_json(meta / "stats.json", stats)
    lerobot_v3.write_tasks(meta / "tasks.parquet")
    lerobot_v3.write(meta / "episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(episodes))
    source = {"seed": seed, "noise_std": NOISE_STD, "decision_stride": STRIDE, "chunk": CHUNK, "failed_seeds": failed, "camera": "corner2"}
    lerobot_v3.write_info(meta / "info.json", len(episodes), index, {"metaworld": source})
    return len(episodes), index


def main() -> None:
    """Reads the command line, runs the tasks that are missing, joins them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set; made if missing")
    parser.add_argument("--episodes", type=int, default=120, help="successful episodes per task")
    parser.add_argument("--seed", type=int, default=1000, help="seed of the first episode of the first task")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tasks", nargs="*", default=[task.name for task in TASKS], choices=list(BY_NAME), metavar="TASK")
    options = parser.parse_args()
    if options.episodes < 1 or options.processes < 1:
        sys.exit("--episodes and --processes must be at least 1")
    out = options.out.expanduser()
    if (out / "meta/info.json").exists():
        sys.exit(f"{out} already holds a finished data set; remove it or choose another --out")
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    settings = {"episodes": options.episodes, "seed": options.seed}
    note = parts / "settings.json"
    if note.exists() and json.loads(note.read_text()) != settings:
        sys.exit(f"{out} was begun with other settings ({note.read_text().strip()}); use the same or another --out")
    lerobot_v3.write_json(note, settings)

    jobs = [(name, options.episodes, options.seed, parts) for name in options.tasks]
    # A fresh process for every task: OSMesa keeps its contexts until the process ends.
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        for line in pool.imap_unordered(run_task, jobs):
            print(line, file=sys.stderr, flush=True)
    episodes, frames = join(out, options.tasks, options.seed)
    shutil.rmtree(parts)
    print(f"{out}: {episodes} episodes, {frames} frames", file=sys.stderr)


if __name__ == "__main__":
    main()
