"""Which decoder of JPEGs is the fastest of those that give PIL's pixels, bit for bit?

    python benchmarks/decoders.py [--images DIR] [--sides 500 800]

DIR holds real images, which are enlarged (`_photos.write_photos`). A decoder that is not installed is left out.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import interleave, parser, print_table, ratio, summary
from _photos import write_photos
from _record import write_record
from PIL import Image

from task2vec_ext.data import Preprocess, to_rgb

Decode = Callable[[bytes], np.ndarray[Any, Any]]


def main() -> None:
    """Read, check, time, print, write."""
    arguments = parser(__doc__, repeats=7)
    arguments.add_argument("--images", type=Path, help="real images to enlarge")
    arguments.add_argument("--sides", type=int, nargs="+", default=[500, 800])
    arguments.add_argument("--count", type=int, default=24)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rows = []
    for side in options.sides:
        with tempfile.TemporaryDirectory() as folder:
            files = [f.read_bytes() for f in write_photos(Path(folder), side, options.count, options.images)]
        rows += measure(files, side, options.repeats)
    print_table(
        f"{options.count} JPEGs a size, one thread",
        ["decoder", "longer side", "ms an image", "÷ PIL", "PIL's pixels"],
        [(r["decoder"], r["side"], r["ms"]["median"], r["to_pil"]["median"], r["same_pixels"]) for r in rows],
    )
    print(write_record("decoders", {"real_images": options.images is not None, "rows": rows}))


def measure(files: list[bytes], side: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each decoder, and one for what comes after: resize, crop, round."""
    known = decoders()
    expected = [known["PIL"](content) for content in files]
    preprocess = Preprocess()
    rgb = [to_rgb(pixels) for pixels in expected]
    ways = {name: lambda decode=decode: [decode(content) for content in files] for name, decode in known.items()}
    same = {
        name: bool(all(np.array_equal(decode(f), e) for f, e in zip(files, expected, strict=True)))
        for name, decode in known.items()
    }
    ways["resize to 256, crop 224"] = lambda: [preprocess.cropped(image) for image in rgb]
    ways["the same in bytes (other pixels)"] = lambda: [_resized_bytes(image) for image in rgb]
    for way in ways.values():
        way()
    seconds = interleave(ways, repeats, "cpu")
    return [
        {
            "decoder": name,
            "side": side,
            "kilobytes": sum(map(len, files)) / len(files) / 1e3,
            "ms": summary([1e3 * value / len(files) for value in values]),
            "to_pil": ratio(values, seconds["PIL"]),
            "same_pixels": same.get(name),
        }
        for name, values in seconds.items()
    ]


def decoders() -> dict[str, Decode]:
    """Return those that are installed, each from a file's content to ``[H, W, 3]``."""
    from torchvision.io import ImageReadMode, decode_jpeg

    found: dict[str, Decode] = {
        "PIL": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),
        "PIL, draft": _draft,
        "torchvision.io": lambda content: _array(
            decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        ),
    }
    try:
        import simplejpeg

        found["simplejpeg"] = lambda content: simplejpeg.decode_jpeg(content, "RGB", False, False)
        found["simplejpeg, fast DCT and upsampling"] = lambda content: simplejpeg.decode_jpeg(
            content, "RGB", True, True
        )
    except ImportError:
        pass
    try:
        from torchcodec.decoders import decode_image

        found["torchcodec"] = lambda content: _array(decode_image(content))
    except (ImportError, RuntimeError):
        pass
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG

        turbo = TurboJPEG()
        found["PyTurboJPEG"] = lambda content: turbo.decode(content, pixel_format=TJPF_RGB)
    except (ImportError, RuntimeError):  # needs libturbojpeg of the system
        pass
    return found


def _array(image: torch.Tensor) -> np.ndarray[Any, Any]:
    return image.permute(1, 2, 0).numpy()


def _draft(content: bytes) -> np.ndarray[Any, Any]:
    image = Image.open(io.BytesIO(content))
    image.draft(None, (256, 256))
    return np.asarray(image.convert("RGB"))


def _resized_bytes(image: torch.Tensor) -> torch.Tensor:
    height, width = image.shape[1:]
    scale = 256 / min(height, width)
    size = (round(height * scale), round(width * scale))
    return torch.nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)


if __name__ == "__main__":
    main()
