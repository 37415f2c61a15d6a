"""Write pictures to a video file (H.264 in .mp4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["write_video"]


def write_video(pictures: Sequence[Image.Image], path: Path, *, fps: int = 24) -> None:
    """Write pictures of one size; an odd size loses its last row or column.

    Raises ImportError with the command that installs what is missing.
    """
    try:
        import av
    except ImportError:
        raise ImportError('videos need PyAV: pip install "skipstep[video]"') from None
    width, height = (size - size % 2 for size in pictures[0].size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            pixels = np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
