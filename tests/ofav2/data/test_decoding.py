"""What a file holds decides how it is decoded; whatever it holds, pixels of its header's size come out or one line."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin

from ofav2.data import decoding
from ofav2.data.decoding import decode, format_of, read_header, read_size, shrunk_size
from ofav2.data.images import decode_file
from ofav2.errors import UserError
from tests.ofav2.data.importing.scenes import tif

Saved = dict[str, Any]


def noise(height: int = 10, width: int = 14, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth enough that two JPEG decoders agree within a few grey levels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def saved(pixels: npt.NDArray[np.uint8], kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def expected(content: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).transpose(2, 0, 1)


def refusal(content: bytes) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        decode(content)
    assert "\n" not in str(error.value)
    return str(error.value)


FORMATS: dict[str, tuple[str, str, Saved]] = {
    "JPEG": ("JPEG", "RGB", {"quality": 95}),
    "progressive JPEG": ("JPEG", "RGB", {"quality": 95, "progressive": True}),
    "grey JPEG": ("JPEG", "L", {"quality": 95}),
    "PNG": ("PNG", "RGB", {}),
    "PNG with alpha": ("PNG", "RGBA", {}),
    "PNG palette": ("PNG", "P", {}),
    "lossy WebP": ("WEBP", "RGB", {"quality": 95}),
    "lossless WebP": ("WEBP", "RGB", {"lossless": True}),
    "WebP with alpha": ("WEBP", "RGBA", {"lossless": True}),
    "BMP": ("BMP", "RGB", {}),
    "grey BMP": ("BMP", "L", {}),
    "BMP of two colours": ("BMP", "1", {}),
    "TIFF": ("TIFF", "RGB", {}),
    "TIFF LZW": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "TIFF JPEG": ("TIFF", "RGB", {"compression": "jpeg"}),
    "TIFF CMYK": ("TIFF", "CMYK", {}),
}


@pytest.mark.parametrize("case", FORMATS)
def test_pixels_are_those_of_pillow(case: str) -> None:
    kind, mode, options = FORMATS[case]
    content = saved(noise(), kind, mode, **options)
    image = decode(content)
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 10, 14))
    assert np.abs(image.numpy().astype(int) - expected(content)).max() <= (3 if "J" in case or "lossy" in case else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    content = saved(noise(), kind, exif=turned(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    image, stored = decode(content), decode(content, upright=False)
    assert np.abs(image.numpy().astype(int) - expected(content)).max() <= (3 if kind == "JPEG" else 0)
    assert tuple(image.shape) == ((3, 14, 10) if orientation > 4 else (3, 10, 14))
    if kind != "TIFF":
        assert tuple(stored.shape) == (3, 10, 14)
        assert torch.equal(image, stored) == (orientation == 1)
        assert read_header(BytesIO(content)) == (10, 14, orientation)
    # Crops are cut fastest, and resized to the same bits, where a pixel's channels lie side by side.
    assert image.stride() == (1, 3 * image.shape[2], 3)


@pytest.mark.parametrize("size", [(10, 14), (14, 10), (7, 7), (37, 101), (101, 38), (6, 50)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_large_images_are_shrunk_to_a_size_that_their_header_tells(kind: str, size: tuple[int, int]) -> None:
    content = saved(np.zeros((*size, 3), np.uint8), kind)
    small = decode(content, shrink_to=7)
    assert small.shape[1:] == shrunk_size(*read_size(BytesIO(content)), 7)
    assert min(small.shape[1:]) == min(7, *size)
    assert small.stride() == (1, 3 * small.shape[2], 3)


def test_only_images_that_are_too_large_are_shrunk() -> None:
    content = saved(noise(), "PNG")
    assert all(torch.equal(decode(content), decode(content, shrink_to=side)) for side in (0, 10, 11))
    assert read_size(BytesIO(content)) == (10, 14)
    with pytest.raises(ValueError, match="damaged"):
        read_size(BytesIO(saved(noise(), "TIFF")[:40]))


def test_an_orientation_that_stands_after_the_pixels_counts() -> None:
    content = saved(noise(), "PNG")
    block = turned(6).removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    late = content[:-12] + chunk + content[-12:]
    assert read_header(BytesIO(late)).orientation == 6
    assert tuple(decode(late).shape) == (3, 14, 10)


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 40, turned(0), turned(9)])
def test_an_exif_block_that_says_nothing_leaves_an_image_as_stored(block: bytes) -> None:
    content = saved(noise(), "JPEG", exif=block)
    assert read_header(BytesIO(content)).orientation == 1
    assert torch.equal(decode(content), decode(saved(noise(), "JPEG")))


@pytest.mark.parametrize("case", [case for case in FORMATS if FORMATS[case][0] in ("JPEG", "PNG", "WEBP")])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (301, 2), (64, 64)])
def test_headers_tell_the_size(case: str, height: int, width: int) -> None:
    kind, mode, options = FORMATS[case]
    assert read_header(BytesIO(saved(noise(height, width), kind, mode, **options))) == (height, width, 1)


def test_bytes_between_a_jpegs_markers_are_passed_over_as_libjpeg_does() -> None:
    content = saved(noise(), "JPEG")
    odd = content[:2] + b"\xff\xff\xff" + content[3:20] + b"\x00\x01\x02" + content[20:]
    assert read_header(BytesIO(odd)) == (10, 14, 1)
    assert torch.equal(decode(odd), decode(content))


# What is refused


def animated(kind: str) -> bytes:
    file = BytesIO()
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def gif_beyond_its_screen() -> bytes:
    """A GIF whose only frame begins 5 pixels too far right: torchvision's decoder writes past its image."""
    content = bytearray(saved(noise(20, 20), "GIF"))
    content[content.index(b",\0\0\0\0") + 1] = 5
    return bytes(content)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tif"])
@pytest.mark.parametrize("make", [gif_beyond_its_screen, lambda: animated("GIF")])
def test_a_gif_reaches_no_decoder_whatever_its_name(make: Callable[[], bytes], name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(make())
    with pytest.raises(UserError, match="it is a GIF image; JPEG, PNG, WebP, BMP, TIFF are read") as error:
        decode_file(tmp_path / name)
    assert str(error.value).startswith(f"image {tmp_path / name}: cannot be decoded (")


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(saved(noise(), "PNG"))
    assert np.array_equal(decode_file(tmp_path / "x.jpg").permute(1, 2, 0).numpy(), noise())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b"no image", "it is no image that is known"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "it is an AVIF image"),
        (b"\0\0\0\x1cftypheic" + bytes(40), "it is a HEIC image"),
        (b"\xff\x0a" + bytes(40), "it is a JPEG XL image"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "its header gives no size"),
        (b"\xff\xd8\xff", "the file ends in its header"),
        (b"\x89PNG\r\n\x1a\n", "the file ends in its header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "its header is damaged"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "the file ends in its header"),
        (b"RIFF\0\0\0\0WEBPVP8X" + bytes(40), "WebPGetFeatures failed"),
        (b"BM" + bytes(40), "Unsupported BMP header"),
        (b"II*\0" + bytes(40), "cannot identify image"),
    ],
)
def test_what_is_no_image_is_told_in_one_line(content: bytes, told: str) -> None:
    assert told in refusal(content)


def test_images_that_hold_several_are_refused() -> None:
    assert "animated" in refusal(animated("WEBP"))
    assert "animated" in refusal(animated("PNG"))
    assert "it holds 3 images" in refusal(animated("TIFF"))


@pytest.mark.parametrize("tag", [254, 50706])
def test_the_preview_of_a_camera_raw_file_is_no_photo(tag: int) -> None:
    """Such files begin as TIFF does, and hold a small picture first."""
    file, tags = BytesIO(), TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag] = 1 if tag == 254 else b"\x01\x04\0\0"
    Image.fromarray(noise()).save(file, "TIFF", tiffinfo=tags)
    assert "it is a preview, as of a camera raw file" in refusal(file.getvalue())


def test_tiffs_of_more_than_8_bits_are_refused() -> None:
    for samples in (np.full((4, 4), 4000, dtype=np.uint16), np.full((4, 4), 0.5, dtype=np.float32)):
        file = BytesIO()
        Image.fromarray(samples).save(file, "TIFF")
        assert "no 8-bit ones" in refusal(file.getvalue())


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("photometric", ["RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"interleave": "band"}], ids=str)
def test_coloured_tiffs_of_more_than_8_bits_are_refused(dtype: str, photometric: str, options: Saved) -> None:
    """Pillow calls some of them RGB, and keeps one byte of each sample."""
    values = np.full((len(photometric), 8, 8), 3000, dtype)
    assert "no" in refusal(tif(values, photometric=photometric, **options))
    eight = np.full((len(photometric), 8, 8), 200, np.uint8)
    assert decode(tif(eight, photometric=photometric, **options)).shape == (3, 8, 8)


def claimed(content: bytes, height: int, width: int) -> bytes:
    """An image whose header gives another size."""
    if content.startswith(b"\xff\xd8"):
        at = content.index(b"\xff\xc0") + 5
        return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]
    if content.startswith(b"\x89PNG"):
        head = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
        return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]
    return content[:18] + struct.pack("<ii", width, height) + content[26:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_images_over_the_bound_are_refused_by_their_header(kind: str) -> None:
    content = saved(noise(), kind)
    told = refusal(claimed(content, 30000, 30000))
    assert "30000 x 30000 pixels, more than 268435456" in told or "exceeds limit" in told
    assert decoding.MAX_PIXELS == 2**28


def test_an_image_at_the_bound_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 140)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
        assert decode(saved(noise(), kind)).shape == (3, 10, 14)
        assert "10 x 15 pixels, more than 140" in refusal(saved(noise(10, 15), kind))


def test_pixels_of_another_size_than_the_header_gives_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((3, 10, 15), (1, 10, 14), (2, 3, 10, 14)):
        wrong = {"PNG": lambda content, mode, shape=shape: torch.zeros(shape, dtype=torch.uint8)}
        monkeypatch.setattr(decoding, "_DECODERS", wrong)
        assert "its header gives 10 x 14 pixels" in refusal(saved(noise(), "PNG"))


def test_formats_are_told_by_their_beginning() -> None:
    for kind, name in (("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "WebP"), ("BMP", "BMP"), ("TIFF", "TIFF")):
        assert format_of(saved(noise(), kind)[: decoding.START]) == name
    for kind in ("GIF", "AVIF", "ICO"):
        assert format_of(saved(noise(16, 16), kind)[: decoding.START]) == kind
    for text in (b"", b"a,b\n1,2\n", b"P1 was born in 1970", b"{}", b"\x7fELF", b"PK\x03\x04", b"SQLite format 3\0"):
        assert format_of(text) is None


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", FORMATS)
def test_any_damage_gives_pixels_or_one_line(case: str) -> None:
    """A test that ends the process has failed."""
    kind, mode, options = FORMATS[case]
    content = saved(noise(), kind, mode, **options)
    rng = np.random.default_rng([18, sorted(FORMATS).index(case)])
    for _ in range(60):
        damaged = damage(content, rng)
        image, told = decoded(damaged)
        if image is None:
            assert told, damaged
            assert "\n" not in told
        else:
            assert (image.dtype, image.shape[0], image.ndim) == (torch.uint8, 3, 3)


def decoded(content: bytes) -> tuple[torch.Tensor | None, str]:
    try:
        return decode(content), ""
    except ValueError as error:
        return None, str(error)


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        # Headers are what most can be done to.
        place = int(rng.integers(0, min(len(changed), 64) if rng.random() < 0.5 else len(changed)))
        match rng.integers(4):
            case 0:
                changed[place] = int(rng.integers(256))
            case 1:
                del changed[place : place + int(rng.integers(1, 9))]
            case 2:
                changed[place:place] = rng.bytes(int(rng.integers(1, 9)))
            case _:
                del changed[max(place, 12) :]
    return bytes(changed)
