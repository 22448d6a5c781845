"""What a process of `verify` does with an image. It imports little, so that the processes start at once."""

import hashlib
from io import BytesIO
from typing import Optional

from ..decode import decode_image


def check(item: tuple[str, Optional[int], bytes], decode: bool) -> tuple[str, Optional[int], str, int, str]:
    """(key, label, hash of the bytes, their number, what is wrong with the image)."""
    key, label, data = item
    reason = ""
    if decode:
        try:
            decode_image(BytesIO(data))
        except Exception as error:  # of Pillow's many kinds
            reason = "empty" if not data else " ".join(f"{type(error).__name__}: {error}".split())
    return key, label, hashlib.blake2b(data, digest_size=16).hexdigest(), len(data), reason
