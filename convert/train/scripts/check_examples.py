"""Checks the committed clip and held-out sample with the standard library alone: sizes, shapes, grammar of the words.

    python3 check_examples.py            # from anywhere; looks at examples/ of this repository
"""

import json
import re
import struct
import sys
from pathlib import Path

from language import CAPTION_QUESTION, yes_or_no
from tasks import BY_NAME, TASKS

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
HELDOUT_BYTES, CLIP_BYTES, CLIP_FRAMES = 4_000_000, 1_000_000, 120
SIDE_PX = 64


def caption_pattern(task: str) -> re.Pattern:
    """What a caption of this task may look like."""
    t = BY_NAME[task]
    return re.compile(
        rf"the robot {t.phrase}\. the hand is (left of|right of|in line with) and (above|below|level with) "
        rf"the {t.object}, (near|far)\. the gripper is (open|closed)\."
    )


def check_words(where: str, task: str, caption: str, pairs: list) -> None:
    """Caption grammar; answers that follow from the caption agree with it."""
    match = caption_pattern(task).fullmatch(caption)
    assert match, f"{where}: caption is outside the grammar: {caption}"
    side, height, distance, gripper = match.groups()
    answers = {question: answer for question, answer in pairs}
    assert len(answers) == len(pairs) >= 10, f"{where}: {len(pairs)} questions, some twice"
    assert CAPTION_QUESTION not in answers, f"{where}: the caption's own question is among the others"
    thing = BY_NAME[task].object
    follow = {
        "what is the robot doing?": BY_NAME[task].doing,
        "how is the gripper?": gripper,
        "is the gripper open?": yes_or_no(gripper == "open"),
        "is the gripper closed?": yes_or_no(gripper == "closed"),
        "where is the hand?": f"{side} and {height} the {thing}",
        f"is the hand near the {thing}?": yes_or_no(distance == "near"),
        f"is the hand far from the {thing}?": yes_or_no(distance == "far"),
    }
    for word, truth in [(w, side) for w in ("left of", "right of", "in line with")] + [(w, height) for w in ("above", "below", "level with")]:
        follow[f"is the hand {word} the {thing}?"] = yes_or_no(word == truth)
    for question, answer in follow.items():
        assert answers.get(question, answer) == answer, f"{where}: `{question}` is answered {answers[question]}, the caption says {answer}"


def png_size(path: Path) -> tuple[int, int]:
    """Width and height from the header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n", f"{path} is not a PNG file"
    return struct.unpack(">II", head[16:24])


def check_heldout(folder: Path) -> str:
    """Every episode's strip against its steps."""
    count, steps = dict.fromkeys(BY_NAME, 0), 0
    for path in sorted(folder.glob("*.json")):
        episode = json.loads(path.read_text())
        task = episode["task"]
        count[task] += 1
        assert episode["instruction"] in BY_NAME[task].instructions, f"{path}: unknown instruction"
        length = len(episode["steps"])
        assert png_size(path.with_suffix(".png")) == (SIDE_PX * length, SIDE_PX), f"{path}: the strip does not fit {length} steps"
        for i, step in enumerate(episode["steps"]):
            where = f"{path.name} step {i}"
            assert len(step["state"]) == 4 and len(step["chunk"]) == 8, f"{where}: wrong shape"
            assert 1 <= len(step["executed"]) <= 4 and (len(step["executed"]) == 4 or i == length - 1), f"{where}: wrong number of executed actions"
            values = [v for row in step["chunk"] + step["executed"] for v in row]
            assert len(values) % 4 == 0 and max(map(abs, values)) <= 1, f"{where}: action outside -1..1"
            if not episode["noise"] and i + 1 < length:
                assert step["executed"] == step["chunk"][:4], f"{where}: executed differs from the chunk without noise"
            check_words(where, task, step["caption"], step["qa"])
        steps += length
    assert min(count.values()) >= 2, f"fewer than two episodes of a task: {count}"
    total = sum(f.stat().st_size for f in folder.iterdir())
    assert total <= HELDOUT_BYTES, f"{folder} has {total} bytes"
    return f"heldout: {sum(count.values())} episodes, {steps} steps, {total} bytes"


def check_clip(path: Path) -> str:
    """The AVI's own count of frames and its size against the truth beside it."""
    data = path.read_bytes()
    truth = json.loads(path.with_suffix(".json").read_text())
    assert data[:4] == b"RIFF" and data[8:12] == b"AVI " and data[24:28] == b"avih", f"{path} is not an AVI file"
    microseconds, frames, width, height = (struct.unpack_from("<I", data, 32 + 4 * i)[0] for i in (0, 4, 8, 9))
    assert (width, height) == (truth["width"], truth["height"]), f"{path}: size differs from its JSON"
    assert frames == len(truth["frames"]) >= CLIP_FRAMES, f"{path}: {frames} frames, {len(truth['frames'])} in the JSON"
    assert microseconds * truth["fps"] == 1_000_000, f"{path}: pace differs from its JSON"
    assert len(data) <= CLIP_BYTES, f"{path} has {len(data)} bytes"
    for i, frame in enumerate(truth["frames"]):
        check_words(f"{path.name} frame {i}", frame["task"], frame["caption"], frame["qa"])
    return f"clip: {frames} frames, {len({f['task'] for f in truth['frames']})} of {len(TASKS)} tasks, {len(data)} bytes"


def main() -> None:
    """Checks both; one sentence for what is wrong."""
    try:
        print(check_heldout(EXAMPLES / "heldout"))
        print(check_clip(EXAMPLES / "clips/metaworld.avi"))
    except (AssertionError, OSError, KeyError, ValueError) as error:
        sys.exit(f"{error}; make the examples again as convert/train/scripts/README.md says")


if __name__ == "__main__":
    main()
