"""What a trained model takes image files for."""

from dataclasses import dataclass
from typing import Iterator, Optional, Sequence

import numpy as np
import torch

from data.batches import Batch, Finish
from data.dataset import ImageDataset
from data.sources.image_paths import FileSource
from utils.conflicts import is_rgb
from utils.device import is_out_of_memory
from utils.errors import CheckpointError, ConfigError, OutputError, one_line
from utils.image_size import Size, size_text
from utils.pictures import pixels_of

from ..evaluation.views import mean_of_softmaxes, predict_views
from ..setup.precision import create_precision
from .engines import open_engine, require_engine
from .examination import Examination
from .trained import Trained


@dataclass(frozen=True)
class Prediction:
    """Of one file, the K likeliest classes, the likeliest first."""

    path: str
    labels: list[int]
    probabilities: list[float]
    frames: int  # pictures in the file, of which the first was looked at
    # uint8 (H, W, 3), as the model saw it (of five crops the centre); part of its batch: keep a copy
    pixels: np.ndarray


class Predictor:
    """Predicts as the model's evaluation does (TEST.CROPS and TEST.FLIP too), whatever the batch size and the workers.

        trained = load_trained(Path("best.pth"))
        for prediction in Predictor(trained)(["a.jpg", "b.png"]):
            print(prediction.path, trained.names[prediction.labels[0]], prediction.probabilities[0])

    Args:
        trained: its model is moved to the device.
        img_size: 0: what the model was evaluated on.
        workers: loading processes; 0: this one loads. A single batch is always loaded by this one.
        fused: whether the deployed form predicts, see `models.fuse`.
        amp: whether a GPU computes in 16 bits, see `engine.setup.precision`.
        engine: what computes, see `engine.inference.engines`.

    Raises:
        ConfigError: the model has no deployed form, or the engine is not there or does not take it.
    """

    mean = staticmethod(mean_of_softmaxes)  # of several views

    def __init__(
        self,
        trained: Trained,
        device: torch.device = torch.device("cpu"),
        img_size: Size = 0,
        batch_size: int = 64,
        workers: int = 0,
        fused: bool = False,
        amp: bool = False,
        engine: str = "torch",
    ):
        self.trained = trained
        self.device = device
        self.img_size = img_size or trained.own_size
        self.batch_size = batch_size
        self.workers = workers
        precision = create_precision(amp, "auto", device)
        require_engine(engine, device, precision)
        self.examination = Examination(trained.cfg, trained.model, device, precision=precision)
        self.engine = open_engine(
            engine, self.examination.model, precision, self.img_size, fused, trained.cfg.DATA.IN_CHANS
        )
        self.failures: list[str] = []  # a line for each file that could not be read

    def __call__(self, paths: Sequence[str], topk: int = 5) -> Iterator[Prediction]:
        """The predictions of the files in their order, without those that go to `failures`.

        Args:
            topk: K; the number of classes, if these are fewer.

        Raises:
            ConfigError: memory runs out, or the model does not take images of this size.
            CheckpointError: the model's outputs are not finite.
            OutputError: a file is read without an end.
        """
        cfg = self.trained.cfg
        topk = min(topk, len(self.trained.classes))
        transform = self.trained.transform(self.img_size, cfg.TEST.CROPS)
        dataset = ImageDataset(FileSource(paths, transform.decode), transform, on_error="skip")
        workers = self.workers if len(paths) > self.batch_size else 0
        loader = self.examination.loader(dataset, batch_size=self.batch_size, num_workers=workers)
        try:
            for batch in loader.batches():
                yield from self._predict(batch, loader.finish, topk)
                self.failures += loader.take_failures()
        except OutputError as error:
            remedy = "look at the disk or the network, or leave the file out, and start the same command again"
            raise error.with_remedy(remedy) from error
        except (RuntimeError, MemoryError, ValueError, AssertionError) as error:
            raise self._explain(error) or error from error
        self.failures += loader.take_failures()

    @torch.inference_mode()
    def _predict(self, batch: Batch, finish: Finish, topk: int) -> list[Prediction]:
        examples, paths = finish(batch), batch.keys
        logits = predict_views(self.engine, examples.tensor.split(len(paths)), self.trained.cfg.TEST.FLIP, self.mean)
        if not logits.isfinite().all():
            raise CheckpointError(f"{self.trained.path}: the model's outputs are not finite; use another checkpoint")
        centre = slice(-len(paths), None)  # torchvision's last crop
        pixels = self._shown(batch.tensor[centre], examples.tensor[centre])
        return self.describe(logits, topk, paths, examples.targets.tolist(), pixels)

    def describe(
        self, logits: torch.Tensor, topk: int, paths: Sequence[str], frames: Sequence[int], pixels: Sequence[np.ndarray]
    ) -> list[Prediction]:
        """The predictions of B files from the model's logits (B, C); the other arguments are as in `Prediction`."""
        likeliest = logits.float().softmax(dim=1).topk(topk, dim=1)
        labels, probabilities = likeliest.indices.tolist(), likeliest.values.tolist()
        return list(map(Prediction, paths, labels, probabilities, frames, pixels))

    def _shown(self, pixels: torch.Tensor, images: torch.Tensor) -> Sequence[np.ndarray]:
        """RGB pictures of images as loaded and as normalised."""
        data = self.trained.cfg.DATA
        if is_rgb(self.trained.cfg):
            return list(pixels.permute(0, 2, 3, 1).numpy())
        return [pixels_of(image, data.MEAN, data.STD) for image in images]

    def _explain(self, error: BaseException) -> Optional[ConfigError]:
        """What the user can do about an error; None if nothing."""
        reason = one_line(error, 120)
        if is_out_of_memory(error):
            return ConfigError(f"--batch-size is {self.batch_size}: {self.device} is out of memory; use a smaller one")
        if "DataLoader worker" in reason:
            return ConfigError(
                f"--workers is {self.workers}: a loading process was killed, perhaps as memory ran out ({reason}); use fewer"
            )
        if self.img_size != self.trained.own_size:
            name = self.trained.cfg.MODEL.NAME
            return ConfigError(
                f"--img-size is {size_text(self.img_size)}: {name} cannot take such images ({reason}); leave it out, or use another"
            )
        return None
