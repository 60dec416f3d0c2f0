"""Writes beside a place, then swaps: what is there stays as it is until the new is whole, and nothing else stays behind.

    python3 beside.py --check
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def swap(part: Path, place: Path) -> None:
    """Gives PART the name of PLACE. A folder that has it steps aside first."""
    aside = place.with_name(place.name + ".replaced.part")
    remove(aside)
    if place.is_dir():
        place.rename(aside)
    try:
        part.replace(place)
    except OSError:
        if aside.exists():
            aside.rename(place)
        raise
    remove(aside)


@contextlib.contextmanager
def replacing(*places: Path) -> Iterator[list[Path]]:
    """The paths to write to instead of PLACES; they take the places at the end, or are removed when something fails."""
    parts = [place.with_name(place.name + ".part") for place in places]
    try:
        for part, place in zip(parts, places):
            aside = place.with_name(place.name + ".replaced.part")
            if aside.exists() and not place.exists():  # killed while swapping
                aside.rename(place)
            remove(part)
        yield parts
        for part, place in zip(parts, places):
            swap(part, place)
    finally:
        for part in parts:
            remove(part)


def check() -> None:
    """Files and folders: replaced when all went well, untouched when not, healed after a kill, with nothing left over."""

    def listing() -> dict[str, str]:
        return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}

    def write(fail: bool) -> None:
        with replacing(folder, clip) as (part, clip_part):
            part.mkdir()
            (part / "a").write_text("new")
            clip_part.write_text("new")
            if fail:
                sys.exit("half way")

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder, clip = root / "folder", root / "clip.avi"
        write(fail=False)
        assert listing() == {"folder/a": "new", "clip.avi": "new"}, listing()
        old = {"folder/a": "old", "folder/b": "old", "clip.avi": "old"}
        for path, text in old.items():
            (root / path).write_text(text)
        (root / "folder.part").write_text("of a killed run")
        for attempt in ("as it is", "killed while swapping"):
            if attempt != "as it is":
                folder.rename(root / "folder.replaced.part")
            with contextlib.suppress(SystemExit):
                write(fail=True)
            assert listing() == old, (attempt, listing())
        write(fail=False)
        assert listing() == {"folder/a": "new", "clip.avi": "new"}, listing()
    print("beside.py: all checks passed", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        sys.exit(__doc__)
    check()
