"""Which class each of ImageNet's validation images has, as the development kit says.

ILSVRC2012's own numbers of classes are not the labels that models have, which are places among the sorted WordNet ids: its
ground truth goes number -> WordNet id, and no further.
"""

import tarfile
from io import BytesIO
from pathlib import Path

from utils.cli import importing
from utils.errors import DataError

from ..sources.archive import read_member

NAME = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
META = "data/meta.mat"


def read_devkit(path: Path) -> list[str]:
    """The WordNet id of validation image 1, 2, ...

    (torchvision's parser takes only the archive with one checksum, unpacks it and writes a file of its own beside it.)

    Raises:
        ConfigError: scipy, which reads meta.mat, is missing.
        DataError: the archive is missing, cut short, or another year's.
    """
    with importing("scipy"):
        from scipy.io import loadmat

    again = f"fetch {NAME} (ILSVRC2012, task 1 and 2) again"
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                for wanted in (TRUTH, META):
                    if member.isfile() and ("/" + member.name).endswith("/" + wanted):
                        contents[wanted] = read_member(archive, member)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; put {NAME} there, or leave out val by --splits train") from error
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read to its end ({error}); {again}") from error
    for wanted in (TRUTH, META):
        if wanted not in contents:
            raise DataError(f"{path}: holds no {wanted}, so it is no devkit of ILSVRC2012; {again}")
    try:
        synsets = loadmat(BytesIO(contents[META]), squeeze_me=True)["synsets"]
        # Groups of synsets (animal, ...) have numbers above the leaves', and children.
        leaves = synsets[synsets["num_children"] == 0]
        names = {int(number): str(name) for number, name in zip(leaves["ILSVRC2012_ID"], leaves["WNID"])}
        return [names[int(line)] for line in contents[TRUTH].split()]
    except Exception as error:  # scipy raises of many kinds at damaged files
        raise DataError(
            f"{path}: its meta.mat and ground truth do not fit ({type(error).__name__}: {error}); {again}"
        ) from error
