"""CIFAR-10 and CIFAR-100 in their authors' Python format."""

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from utils.errors import DataError

CIFAR = {"cifar10": CIFAR10, "cifar100": CIFAR100}


class CIFARSource:
    """CIFAR's training split, or its test split as 'val'.

    Raises:
        DataError: it has no such split; the unpacked archive is missing under DATA_PATH, or a file's checksum is wrong.
    """

    def __init__(self, dataset: str, data_path: str, train: bool):
        kind = CIFAR[dataset]
        try:
            self.images = kind(data_path, train=train)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{data_path or 'DATA.DATA_PATH'}: holds no complete {kind.base_folder}/; download {kind.url}, "
                f"unpack {kind.filename} there and give that folder as --data-path"
            ) from error
        self.classes = self.images.classes
        self.labels = np.array(self.images.targets)
        self.split = f"{dataset} {'train' if train else 'test'}"
        self.fingerprint = self.split

    @classmethod
    def open(cls, dataset: str, split: str, data_path: str, **_) -> "CIFARSource":
        if split not in ("train", "val", "test"):
            raise DataError(
                f"DATA.TRAIN_SPLIT or DATA.VAL_SPLIT is {split!r}, but {dataset} has train and test; give one of them"
            )
        return cls(dataset, data_path, train=split == "train")

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"{self.split} {index}"

    def key(self, index: int) -> str:
        return str(index)

    def load(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index]
