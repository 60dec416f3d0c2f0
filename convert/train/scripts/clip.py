"""The bundled clip: roll-outs with unseen seeds, joined into one MJPEG AVI, and the truth about each of its frames.

    python clip.py --out ../../../examples/clips/metaworld.avi

One frame a decision (every fourth simulator step) at 20 frames a second is the robot's real pace. Beside the clip lies
<name>.json: {"fps", "width", "height", "frames": [{"task", "instruction", "caption", "qa": [[question, answer], ...]}, ...]}.
Needs ffmpeg.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from beside import replacing
from simulator import FPS, STRIDE, Simulator

FIRST_SEED = 920_000
TASKS = ("drawer-open-v3", "button-press-topdown-v3", "window-close-v3", "door-open-v3", "drawer-close-v3", "peg-insert-side-v3")
SIDE_PX = 192
MIN_FRAMES = 120
LIMIT_BYTES = 1_000_000
QUALITIES = range(3, 16)  # ffmpeg's -q:v, best first


def encode(pixels: bytes, quality: int, path: Path) -> int:
    """Encodes raw RGB frames; returns the size in bytes."""
    form = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIDE_PX}x{SIDE_PX}", "-r", str(FPS // STRIDE), "-i", "-"]
    codec = ["-c:v", "mjpeg", "-q:v", str(quality), "-pix_fmt", "yuvj422p", "-flags", "+bitexact", "-fflags", "+bitexact"]
    command = ["ffmpeg", "-v", "error", "-y", *form, *codec, "-f", "avi", str(path)]
    if subprocess.run(command, input=pixels, check=False).returncode != 0:
        sys.exit("ffmpeg could not encode the clip; its own message stands above")
    return path.stat().st_size


def main() -> None:
    """Reads the command line, draws the episodes, encodes them as well as the size allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.expanduser()
    if shutil.which("ffmpeg") is None:
        sys.exit("ffmpeg is not installed; install it with: apt-get install ffmpeg")
    out.parent.mkdir(parents=True, exist_ok=True)
    pixels, frames = [], []
    for position, name in enumerate(TASKS):
        simulator = Simulator(name, SIDE_PX)
        episode = next(simulator.episodes(FIRST_SEED + 100 * position, 1))
        simulator.close()
        for t in range(0, len(episode), STRIDE):
            caption, pairs = episode.words(t)
            pixels.append(episode.frames[t].tobytes())
            frames.append({"task": name, "instruction": episode.instruction, "caption": caption, "qa": [list(p) for p in pairs]})
    if len(frames) < MIN_FRAMES:
        sys.exit(f"the clip has {len(frames)} frames, fewer than {MIN_FRAMES}; add a task to TASKS")
    raw = b"".join(pixels)
    lines = ",\n".join(json.dumps(frame, separators=(",", ":")) for frame in frames)
    head = f'{{"fps":{FPS // STRIDE},"width":{SIDE_PX},"height":{SIDE_PX},"frames":[\n'
    with replacing(out, out.with_suffix(".json")) as (part, truth):
        quality = next((q for q in QUALITIES if encode(raw, q, part) <= LIMIT_BYTES), None)
        if quality is None:
            sys.exit(f"the clip stays above {LIMIT_BYTES} bytes; take a task out of TASKS")
        truth.write_text(f"{head}{lines}\n]}}\n")
    print(f"{out}: {len(frames)} frames, {out.stat().st_size} bytes, -q:v {quality}", file=sys.stderr)


if __name__ == "__main__":
    main()
