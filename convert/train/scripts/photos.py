"""Unpacks the CIFAR-10 train photos from a tar file that you have; only the standard library is needed.

    python photos.py --archive cifar10-train.tar.gz --out ~/.cache/saccade/cifar10

gives OUT/train/<class>/<n>.jpg, 32x32. The pictures carry no stated licence: train and measure with them locally, never
copy one into a repository.
"""

import argparse
import sys
import tarfile
from pathlib import Path

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = 5000


def unpack(archive: Path, out: Path) -> int:
    """Writes every <anything>/train/<class>/<name>.jpg of the archive; returns how many there were."""
    count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) < 3 or parts[-3] != "train" or parts[-2] not in CLASSES or not parts[-1].endswith(".jpg"):
                continue
            target = out.joinpath(*parts[-3:])
            target.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            target.write_bytes(source.read())
            count += 1
    return count


def main() -> None:
    """Reads the command line, unpacks, counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("~/.cache/saccade/cifar10"))
    options = parser.parse_args()
    out = options.out.expanduser()
    try:
        count = unpack(options.archive, out)
    except (OSError, tarfile.TarError) as error:
        sys.exit(f"{options.archive} could not be unpacked ({error}); give the path of cifar10-train.tar.gz")
    if count != PER_CLASS * len(CLASSES):
        sys.exit(f"{options.archive} holds {count} photos, expected {PER_CLASS * len(CLASSES)}; is it the whole archive?")
    print(f"{out}: {count} photos", file=sys.stderr)


if __name__ == "__main__":
    main()
