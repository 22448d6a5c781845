"""The box of a JPEG file, decoded by NVIDIA's nvImageCodec on the CPU.

Its libjpeg-turbo skips what lies outside of the box but for the entropy coding, with the bits of decoding everything.
The package is optional: it is large, for Linux only, and needs no GPU for this.
"""

import os
from typing import Any, Optional

import numpy as np

from utils.errors import ConfigError

from .crops import Box, is_filled_up
from .decode import without_stderr

_decoders: dict[int, Any] = {}  # one for each process, as its threads do not survive a fork


class RegionDecoder:
    """A whole JPEG file and a box -> the box's pixels, uint8 (height, width, 3), or None if they cannot be had.

    Raises:
        ConfigError: nvImageCodec is not installed.
    """

    def __init__(self):
        _decoder()

    def __call__(self, data: bytes, box: Box) -> Optional[np.ndarray]:
        decoder, nvimgcodec = _decoder()
        top, left, height, width = box
        region = nvimgcodec.Region(top, left, top + height, left + width)
        image = decoder.decode(nvimgcodec.CodeStream(data).get_sub_code_stream(region=region))
        pixels = None if image is None else np.asarray(image.cpu())
        return None if pixels is None or is_filled_up(pixels) else pixels


def _decoder() -> tuple[Any, Any]:
    if os.getpid() not in _decoders:
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a file that it cannot decode is Pillow's to judge
        with without_stderr():  # it says there which of NVIDIA's GPU codecs are not installed
            try:
                from nvidia import nvimgcodec
            except ImportError as error:
                raise ConfigError(
                    "DATA.BACKEND is 'nvimgcodec', but nvImageCodec cannot be imported; pip install nvidia-nvimgcodec-cu13, or use "
                    "cv2 or pil"
                ) from error
            decoder = nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
                max_num_cpu_threads=1,
                backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
                options=":fancy_upsampling=1",  # as Pillow and OpenCV have it
            )
        _decoders[os.getpid()] = decoder, nvimgcodec
    return _decoders[os.getpid()]
