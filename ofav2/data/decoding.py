"""Decode image files: JPEG, PNG, WebP, BMP and TIFF.

The first bytes of a file choose its decoder, never its name, and no decoder sees another format: torchvision's
`decode_image` would, and hands GIFs to one that corrupts memory. Headers are read first, so that an image over
`MAX_PIXELS` takes no memory. What a decoder returns is compared with the header.
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from io import BytesIO
from types import MappingProxyType
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png, decode_webp
from torchvision.transforms.v2 import functional

from ofav2.messages import first_line

MAX_PIXELS = 2**28
"""Most pixels of an image, 16384 x 16384: 0.8 GB decoded."""
START = 32
"""Bytes from the beginning of a file that `format_of` looks at."""

DECODERS = ("torchvision", "pillow")
"""Packages whose versions pixels may depend on."""

READABLE = ("JPEG", "PNG", "WebP", "BMP", "TIFF")
"""Formats that are decoded."""

# What files of a format begin with; dots stand for any byte.
_STARTS = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WebP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\x00|MM\x00[*+]"),
    ("BMP", rb"BM.{4}\x00{4}"),
    ("GIF", rb"GIF8[79]a"),
    ("AVIF", rb"....ftypavi[fs]"),
    ("HEIC", rb"....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)"),
    ("JPEG XL", rb"\xff\x0a|\x00\x00\x00\x0cJXL "),
    ("JPEG 2000", rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  "),
    ("PSD", rb"8BPS"),
    ("ICO", rb"\x00\x00[\x01\x02]\x00[\x01-\xff]\x00"),
    ("OpenEXR", rb"\x76\x2f\x31\x01"),
)
_PATTERNS = tuple((name, re.compile(start, re.DOTALL)) for name, start in _STARTS)

# JPEG: frame headers; markers without a length; those that end the header without a frame.
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})
_ENDS = frozenset({0xD8, 0xD9, 0xDA})
# More pieces, or more bytes between two of them, than any camera writes; they would only take time.
_MOST_CHUNKS = 2**17
_MOST_MARKERS = 2**12
_MOST_GARBAGE = 2**9

_ORIENTATION = 0x0112
_SUBFILE_TYPE = 254
_BITS_PER_SAMPLE = 258
_DNG_VERSION = 50706
# EXIF orientation -> (whether rows and columns change places, dimensions that are flipped after that).
_TURNS = MappingProxyType(
    {
        2: (False, (-1,)),
        3: (False, (-2, -1)),
        4: (False, (-2,)),
        5: (True, ()),
        6: (True, (-1,)),
        7: (True, (-2, -1)),
        8: (True, (-2,)),
    }
)

# Pillow's names of layouts whose samples have 8 bits or less, so that turning them into RGB changes no brightness.
_PLAIN_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


class Header(NamedTuple):
    """What an image says of itself before its pixels."""

    height: int
    """Height in pixels, as stored."""
    width: int
    """Width in pixels, as stored."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 is upright, and stands for none."""


def decoder_versions() -> Mapping[str, str]:
    """Return the versions of what decodes, without the part that says which device they were built for."""
    return {package: version(package).partition("+")[0] for package in DECODERS}


def format_of(start: bytes) -> str | None:
    """Return the name of the picture format that a file's first `START` bytes tell; None for anything else."""
    return next((name for name, pattern in _PATTERNS if pattern.match(start)), None)


def read_size(file: IO[bytes]) -> tuple[int, int]:
    """Read height and width of an image, as stored, without its pixels.

    Args:
        file: The image, at its beginning.

    Raises:
        ValueError: It is no image that is read, or its header is damaged.
    """
    name = _readable(file.read(START))
    file.seek(0)
    if name not in _PILLOWS:
        return read_header(file)[:2]
    try:
        with Image.open(file, formats=(name,)) as image:
            return image.height, image.width
    except Exception as error:
        # Damaged files make Pillow fail in every way there is.
        raise ValueError("its header is damaged") from error


def read_header(file: IO[bytes]) -> Header:
    """Read the size and the orientation of a JPEG, PNG or WebP image, without its pixels.

    Args:
        file: The image, at its beginning.

    Raises:
        ValueError: It is no such image, or its header is damaged.
    """
    name = _readable(file.read(START))
    if name not in _HEADERS:
        raise ValueError(f"the header of a {name} image is left to its decoder")
    try:
        header = _HEADERS[name](file)
    except (struct.error, IndexError) as error:
        raise ValueError("the file ends in its header") from error
    if not header.height * header.width:
        raise ValueError("its header gives no size")
    return header


def decode(content: bytes, upright: bool = True, shrink_to: int = 0) -> Tensor:
    """Decode an image file's bytes to a uint8 tensor (3, H, W).

    Grey is repeated, CMYK and palettes are converted, alpha is dropped. 16-bit samples of a PNG keep their upper half.

    Args:
        content: A JPEG, PNG, WebP, BMP or TIFF file.
        upright: Whether to turn the image as its EXIF orientation says; a TIFF's own orientation is always applied.
        shrink_to: Pixels that the short side of a larger image is shrunk to; 0 keeps the image as it is.

    Raises:
        ValueError: It is no such image, a part of one, or over `MAX_PIXELS`.
    """
    name = _readable(content[:START])
    image = _decode_by_pillow(content, name) if name in _PILLOWS else _decode_by_torchvision(content, name, upright)
    return shrunk(image, shrink_to)


def shrunk(image: Tensor, shrink_to: int) -> Tensor:
    """Shrink an image (3, H, W) whose short side is longer than `shrink_to` to it (bilinear, antialiased); 0: none."""
    if not 0 < shrink_to < min(image.shape[1:]):
        return image
    small: Tensor = functional.resize(image, [shrink_to], antialias=True)
    return _side_by_side(small)


def shrunk_size(height: int, width: int, shrink_to: int) -> tuple[int, int]:
    """Return height and width that `shrunk` leaves of an image."""
    short, long = sorted((height, width))
    if not 0 < shrink_to < short:
        return height, width
    # As torchvision's resize rounds.
    other = int(shrink_to * long / short)
    return (shrink_to, other) if height <= width else (other, shrink_to)


def _decode_by_torchvision(content: bytes, name: str, upright: bool) -> Tensor:
    header = read_header(BytesIO(content))
    _refuse_large(header.height, header.width)
    try:
        image: Tensor = _DECODERS[name](torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError as error:
        # torchvision puts the place in its own sources before the reason.
        raise ValueError(re.sub(r"^.*\.cpp:\d+, ", "", first_line(error))) from error
    if image.dtype == torch.uint16:
        image = functional.to_dtype(image, torch.uint8, scale=True)
    if image.dtype != torch.uint8 or image.shape != (3, header.height, header.width):
        raise ValueError(
            f"decodes to {tuple(image.shape)}, and its header gives {header.height} x {header.width} pixels"
        )
    return _turned(image, header.orientation) if upright else image


def _readable(start: bytes) -> str:
    if not start:
        raise ValueError("the file is empty")
    name = format_of(start)
    if name in READABLE:
        return name
    told = "no image that is known" if name is None else f"{'an' if name[0] in 'AIO' else 'a'} {name} image"
    raise ValueError(f"it is {told}; {', '.join(READABLE)} are read")


def _refuse_large(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"it has {height} x {width} pixels, more than {MAX_PIXELS}")


# Headers


def _jpeg_header(file: IO[bytes]) -> Header:
    """Read a JPEG up to its frame header, piece by piece as libjpeg does."""
    file.seek(2)
    exif = b""
    for _ in range(_MOST_MARKERS):
        marker = _next_marker(file)
        if marker in _ENDS:
            break
        if marker in _BARE:
            continue
        (length,) = struct.unpack(">H", file.read(2))
        if length < 2:
            break
        if marker in _FRAMES:
            height, width = struct.unpack(">xHH", file.read(5))
            return Header(height, width, _orientation(exif))
        if marker == 0xE1 and not exif:
            found = file.read(length - 2)
            exif = found if found.startswith(b"Exif\0\0") else b""
        else:
            file.seek(length - 2, 1)
    raise ValueError("its header gives no size")


def _next_marker(file: IO[bytes]) -> int:
    """Skip to a marker, which follows one or more bytes of 255."""
    before = 0
    for _ in range(_MOST_GARBAGE):
        byte = file.read(1)[0]
        if before == 0xFF and byte != 0xFF:
            return byte
        before = byte
    raise ValueError("its header is damaged")


def _png_header(file: IO[bytes]) -> Header:
    file.seek(8)
    length, kind, width, height = struct.unpack(">I4sII", file.read(16))
    if (length, kind) != (13, b"IHDR"):
        raise ValueError("its header is damaged")
    file.seek(33)
    exif = b""
    for kind, length in _chunks(file, ">I4s", 4):
        if kind == b"acTL":
            raise ValueError("it is animated; still images are read")
        if kind == b"eXIf":
            exif = file.read(length)
    return Header(height, width, _orientation(exif))


def _webp_header(file: IO[bytes]) -> Header:
    file.seek(12)
    kind = file.read(8)[:4]
    start = file.read(10)
    if kind == b"VP8 ":
        frame, width, height = struct.unpack("<3x3sHH", start)
        if frame != b"\x9d\x01\x2a":
            raise ValueError("its header is damaged")
        return Header(height & 0x3FFF, width & 0x3FFF)
    if kind == b"VP8L":
        signature, bits = struct.unpack("<BI5x", start)
        if signature != 0x2F:
            raise ValueError("its header is damaged")
        return Header((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
    if kind != b"VP8X" or len(start) < 10:
        raise ValueError("its header is damaged")
    flags = start[0]
    width, height = (int.from_bytes(start[place : place + 3], "little") + 1 for place in (4, 7))
    if flags & 0x02:
        raise ValueError("it is animated; still images are read")
    file.seek(12)
    chunks = _chunks(file, "<4sI", 0) if flags & 0x08 else iter(())
    exif = next((file.read(length) for kind, length in chunks if kind == b"EXIF"), b"")
    return Header(height, width, _orientation(exif))


def _chunks(file: IO[bytes], layout: str, after: int) -> Iterator[tuple[bytes, int]]:
    """Yield name and length of each chunk of a PNG or WebP file, which then lies at the chunk's content.

    Args:
        file: The image, at its first chunk.
        layout: How a chunk begins.
        after: Bytes that follow its content. WebP's contents are filled up to an even number of bytes.
    """
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        first, second = struct.unpack(layout, head)
        kind, length = (second, first) if isinstance(first, int) else (first, second)
        place = file.tell()
        yield kind, length
        file.seek(place + length + (after or length % 2))


def _orientation(exif: bytes) -> int:
    """Return the orientation of an EXIF block; 1 if it gives none."""
    if not exif:
        return 1
    block = Image.Exif()
    try:
        block.load(exif)
        found = block.get(_ORIENTATION)
    except Exception:
        # Cameras and editors write all kinds of damaged blocks, on which Pillow fails in as many ways. Like any viewer,
        # show such an image as it is stored.
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _turned(image: Tensor, orientation: int) -> Tensor:
    """Return an image (3, H, W) upright, its pixels' channels side by side as decoders leave them."""
    if orientation not in _TURNS:
        return image
    transposed, flipped = _TURNS[orientation]
    image = (image.mT if transposed else image).flip(flipped)
    return _side_by_side(image)


def _side_by_side(image: Tensor) -> Tensor:
    """Return an image (3, H, W) whose pixels' channels lie side by side."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


_HEADERS: MappingProxyType[str, Callable[[IO[bytes]], Header]] = MappingProxyType(
    {"JPEG": _jpeg_header, "PNG": _png_header, "WebP": _webp_header}
)
_DECODERS: MappingProxyType[str, Callable[..., Tensor]] = MappingProxyType(
    {"JPEG": decode_jpeg, "PNG": decode_png, "WebP": decode_webp}
)


# BMP and TIFF

_PILLOWS = ("BMP", "TIFF")


def _decode_by_pillow(content: bytes, name: str) -> Tensor:
    try:
        with Image.open(BytesIO(content), formats=(name,)) as image:
            _refuse_large(image.height, image.width)
            frames = getattr(image, "n_frames", 1)
            if frames != 1:
                raise ValueError(f"it holds {frames} images; files of one are read")
            tags = getattr(image, "tag_v2", {})
            if tags.get(_SUBFILE_TYPE, 0) & 1 or _DNG_VERSION in tags:
                raise ValueError("it is a preview, as of a camera raw file; convert the photo to JPEG or PNG")
            if image.mode not in _PLAIN_MODES:
                raise ValueError(f"its samples are no 8-bit ones (Pillow's mode {image.mode})")
            # Of colours with 16 bits Pillow keeps the upper half, and calls them RGB.
            if (bits := max(tags.get(_BITS_PER_SAMPLE, (1,)))) > 8:
                raise ValueError(f"its samples are no 8-bit ones ({bits} bits)")
            size = (image.height, image.width, 3)
            pixels = np.array(image.convert("RGB"))
    except Exception as error:
        # Damaged files make Pillow fail in every way there is.
        raise ValueError(first_line(error)) from error
    if pixels.shape != size:
        raise ValueError(f"decodes to {pixels.shape[:2]}, and its header gives {size[:2]} pixels")
    return torch.from_numpy(pixels).permute(2, 0, 1)
