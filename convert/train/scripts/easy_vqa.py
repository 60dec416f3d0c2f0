"""Fetches easy-vqa 1.0 (MIT licence) with pip and unpacks it; only the standard library is needed.

    python easy_vqa.py --out ~/.cache/saccade/easy-vqa

gives OUT/answers.txt, OUT/{train,test}/questions.json ([[question, answer, image id], ...]) and
OUT/{train,test}/images/<image id>.png, 64x64.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "easy_vqa-1.0-py3-none-any.whl"
PREFIX = "easy_vqa/data/"
EXPECT = {"train": (4000, 38575), "test": (1000, 9673)}


def fetch(out: Path, part: Path) -> Path:
    """The wheel, from OUT when it is there, through pip into PART otherwise."""
    if (out / WHEEL).exists():
        return out / WHEEL
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(part), "easy-vqa==1.0"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        sys.exit(f"pip could not download easy-vqa 1.0 ({reason}); install pip and go online, or put {WHEEL} into {out} and run this again")
    return part / WHEEL


def unpack(wheel: Path, part: Path) -> None:
    """Unpacks the data of the wheel, without its package folder."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                relative = Path(name.removeprefix(PREFIX))
                if not name.startswith(PREFIX) or name.endswith("/") or ".." in relative.parts or relative.name == ".DS_Store":
                    continue
                target = part / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    except (OSError, zipfile.BadZipFile) as error:
        sys.exit(f"{wheel} is not a whole wheel ({error}); remove it and run this again")


def check(part: Path, wheel: Path) -> None:
    """Counts pictures and questions, and looks whether every answer is a known one."""
    answers = set((part / "answers.txt").read_text().split())
    for split, (pictures, questions) in EXPECT.items():
        rows = json.loads((part / split / "questions.json").read_text())
        found = len(list((part / split / "images").glob("*.png")))
        if (found, len(rows)) != (pictures, questions) or any(answer not in answers for _, answer, _ in rows):
            sys.exit(f"{wheel}: {split} has {found} pictures and {len(rows)} questions, expected {pictures} and {questions}; remove it and run this again")


def publish(part: Path, out: Path) -> None:
    """Moves what was checked to its place, each entry in one step, over what an older run left."""
    for name in ("answers.txt", *EXPECT):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        (part / name).replace(out / name)


def main() -> None:
    """Reads the command line, fetches and unpacks beside the place, checks, moves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("~/.cache/saccade/easy-vqa"))
    out = parser.parse_args().out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as part:
            wheel = fetch(out, Path(part))
            unpack(wheel, Path(part))
            check(Path(part), wheel)
            publish(Path(part), out)
    except OSError as error:
        sys.exit(f"{error}; make room or choose another folder")
    print(f"{out}: {sum(p for p, _ in EXPECT.values())} pictures, {sum(q for _, q in EXPECT.values())} questions", file=sys.stderr)


if __name__ == "__main__":
    main()
