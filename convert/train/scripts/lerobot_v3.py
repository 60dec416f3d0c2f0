"""LeRobotDataset v3.0 on disk: what a frame's row looks like, and the files under meta/.

Pictures are PNG bytes in the parquet files (feature dtype `image`), as struct{bytes, path}.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simulator import FPS, SIDE_PX
from tasks import instruction_table

IMAGE = "observation.images.corner2"
VECTORS = {
    "observation.state": ["hand_x", "hand_y", "hand_z", "gripper"],
    "action": ["dx", "dy", "dz", "gripper"],
    "action.executed": ["dx", "dy", "dz", "gripper"],
    "observation.environment_state": ["object_x", "object_y", "object_z", "goal_x", "goal_y", "goal_z"],
}
SCALARS = {
    "success": ("bool", pa.bool_()),
    "timestamp": ("float32", pa.float32()),
    "frame_index": ("int64", pa.int64()),
    "episode_index": ("int64", pa.int64()),
    "index": ("int64", pa.int64()),
    "task_index": ("int64", pa.int64()),
}
STRINGS = ("caption", "qa")
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
IMAGE_STATS_ROWS = 200


def schema() -> pa.Schema:
    """The schema of data/*.parquet, with the note that makes the `datasets` library read pictures as pictures."""
    fields = [pa.field(IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    fields += [pa.field(name, pa.list_(pa.float32(), len(dims))) for name, dims in VECTORS.items()]
    fields += [pa.field(name, pa.string()) for name in STRINGS]
    fields += [pa.field(name, arrow) for name, (_, arrow) in SCALARS.items()]
    hub = {IMAGE: {"_type": "Image"}}
    hub |= {n: {"_type": "Sequence", "length": len(d), "feature": {"_type": "Value", "dtype": "float32"}} for n, d in VECTORS.items()}
    hub |= {n: {"_type": "Value", "dtype": "string"} for n in STRINGS}
    hub |= {n: {"_type": "Value", "dtype": dtype} for n, (dtype, _) in SCALARS.items()}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": hub}})})


def features() -> dict:
    """The `features` object of info.json."""
    out = {IMAGE: {"dtype": "image", "shape": [SIDE_PX, SIDE_PX, 3], "names": ["height", "width", "channels"]}}
    out |= {name: {"dtype": "float32", "shape": [len(dims)], "names": dims} for name, dims in VECTORS.items()}
    out |= {name: {"dtype": "string", "shape": [1], "names": None} for name in STRINGS}
    out |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, (dtype, _) in SCALARS.items()}
    return out


def stats_of(values: np.ndarray) -> dict:
    """min, max, mean, std, count and quantiles along the first axis."""
    values = np.asarray(values, dtype=np.float64)
    out = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    out |= {name: np.quantile(values, q, axis=0) for name, q in QUANTILES.items()}
    return {name: v.tolist() for name, v in out.items()} | {"count": [len(values)]}


def image_stats(pixels: np.ndarray) -> dict:
    """Statistics per channel of uint8 pictures [N, H, W, 3], in 0..1 and of shape [3, 1, 1] as LeRobot has them."""
    flat = pixels.reshape(-1, 3) / 255.0
    stats = stats_of(flat)
    count = [len(pixels)]
    return {name: [[[v]] for v in value] for name, value in stats.items() if name != "count"} | {"count": count}


def write_tasks(path: Path) -> None:
    """tasks.parquet: one row per instruction, indexed by its text as pandas would store it; `name` is the Meta-World task."""
    rows = instruction_table()
    table = pa.table(
        {
            "task_index": pa.array(range(len(rows)), pa.int64()),
            "name": [name for name, _ in rows],
            "task": [text for _, text in rows],
        }
    )
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": {"encoding": "UTF-8"}}],
        "columns": [_pandas_column("task_index", "int64", "int64"), _pandas_column("name", "unicode", "object"), _pandas_column("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    write(path, table.replace_schema_metadata({"pandas": json.dumps(pandas)}))


def _pandas_column(name: str, kind: str, numpy: str) -> dict:
    return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}


def write_info(path: Path, episodes: int, frames: int, extra: dict) -> None:
    """meta/info.json; `extra` holds the project's own keys."""
    info = {
        "codebase_version": "v3.0",
        "robot_type": "sawyer",
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": len(instruction_table()),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features(),
    }
    write_json(path, info | extra)


def write_json(path: Path, value: object) -> None:
    """Writes the whole file or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)


def write(path: Path, table: pa.Table) -> None:
    """Writes a parquet file, whole or not at all. Row groups of 500 frames let a reader go through it in pieces."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    # Pictures do not repeat, captions do: a dictionary for the words alone.
    dictionary = list(STRINGS) if STRINGS[0] in table.column_names else True
    pq.write_table(table, part, compression="snappy", row_group_size=500, use_dictionary=dictionary)
    part.replace(path)
