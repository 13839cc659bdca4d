"""Import a folder of GeoTIFFs, with masks in folders beside it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from ofav2 import files
from ofav2.data.importing.rasters import BandFile, SceneError, library
from ofav2.data.importing.scenes import Content, Form, Imported, Scene, import_scenes
from ofav2.data.readers.folders import SPLIT_NAMES
from ofav2.data.readers.patches import SPLITS
from ofav2.errors import UserError
from ofav2.messages import show

SUFFIXES = (".tif", ".tiff")
MASK_SUFFIXES = tuple(form for suffix in (*SUFFIXES, ".png") for form in (suffix, suffix.upper(), suffix.title()))


@dataclass(frozen=True)
class Layout:
    """How a folder of GeoTIFFs is laid out."""

    single_bands: bool = False
    """Whether a file has one band and a folder is a scene: the band's name is the end of the file's, after the last
    `_`."""
    band_names: tuple[str, ...] | None = None
    """Names of the bands of each file, in its order; None: those that it states."""
    places: Literal["cell", "file", "folder"] = "cell"
    """What names a scene's place: the 10 km cell of its middle, its file, or the folder that the file lies in."""
    classes: bool = False
    """Whether a scene's folder names its class."""
    masks: Mapping[str, Path] | None = None
    """Folder of each target's masks: at the same path there as the scene, `.tif`, `.tiff` or `.png`."""


def import_geotiffs(root: Path, layout: Layout, form: Form, out: Path) -> Imported:
    """Import a folder of GeoTIFFs; folders `train`, `val` (or `valid`, `validation`) and `test` on top are splits.

    Raises:
        UserError: There is none, rasterio is not installed, or as `import_scenes`.
    """
    library()
    return import_scenes(list_scenes(root, layout), replace(form, about="GeoTIFFs"), out)


def list_scenes(root: Path, layout: Layout) -> list[Scene]:
    """List the scenes of a folder, in the order of their paths.

    Raises:
        UserError: The folder can't be read or holds no GeoTIFF.
    """
    masks = {name: folder.expanduser() for name, folder in (layout.masks or {}).items()}
    for name, folder in masks.items():
        if not folder.is_dir():
            raise UserError(f"masks of {name} ({folder}): is no folder; correct the path")
    found = files_below(root, SUFFIXES, [folder.resolve() for folder in masks.values()])
    if not found:
        raise UserError(f"folder ({root}): holds no file {' or '.join(SUFFIXES)}; correct the path")
    groups: dict[Path, list[Path]] = {}
    for path in found:
        groups.setdefault(path.parent if layout.single_bands else path.with_suffix(""), []).append(path)
    if not layout.single_bands and (twice := next((some for some in groups.values() if len(some) > 1), None)):
        raise UserError(f"folder ({root}): {twice[0]} and {twice[1]} are one scene by their name; rename one")
    return [_scene(root, where, paths, layout, masks) for where, paths in groups.items()]


def files_below(root: Path, suffixes: Sequence[str], without: Sequence[Path] = ()) -> list[Path]:
    """Return the paths, below a folder, of its files with some suffixes in the order of their names.

    Links to folders are followed, each folder once, and by its own name where it lies below, too; hidden files and
    folders are left out.

    Args:
        root: The folder.
        suffixes: Suffixes in small letters; those of files may be in capitals.
        without: Resolved folders that are left out.

    Raises:
        UserError: The folder can't be read.
    """
    found: list[Path] = []
    top = root.expanduser()
    own = {Path(where).resolve() for where, _, _ in os.walk(top)}
    seen = {*without}

    def fail(error: OSError) -> None:
        raise UserError(f"folder ({root}): {error.filename} cannot be read ({error.strerror}); correct the path")

    for where, folders, names in os.walk(top, onerror=fail, followlinks=True):
        here, new = Path(where), []
        for name in sorted(folders):
            target = (here / name).resolve()
            elsewhere = (here / name).is_symlink() and target in own
            if name[0] != "." and target not in seen and not elsewhere:
                seen.add(target)
                new.append(name)
        folders[:] = new
        found += [(here / name).relative_to(top) for name in names if name[0] != "."]
    return sorted((path for path in found if path.suffix.lower() in suffixes), key=Path.as_posix)


def _scene(root: Path, where: Path, paths: Sequence[Path], layout: Layout, masks: Mapping[str, Path]) -> Scene:
    """Return the scene of some files; `where` is its path below the root, without a suffix."""
    # A file `test.tif` on top is a scene, not a split.
    top = where.parts[0] if len(where.parts) > 1 else ""
    split = next((name for name in SPLITS if SPLIT_NAMES.get(top) == name), None)
    if split is None and top.lower() in SPLIT_NAMES:
        raise UserError(
            f"folder {root / top}: splits are called train, val and test; rename it to {top.lower()}, or if it is a"
            " place or a class, to another name"
        )
    rest = Path(*where.parts[1:]) if split else where
    if layout.classes and len(rest.parts) < 2:
        raise UserError(f"scene {show(where.as_posix())}: lies in no folder that names its class; move it into one")
    # Files of one name in two splits are two places; a folder of one name is one place, which two splits may not share.
    folder = rest.parent.as_posix()
    place = {
        "cell": None,
        "file": where.as_posix(),
        "folder": folder if folder != "." else split or root.resolve().name,
    }
    return Scene(
        name=where.as_posix(),
        read=partial(_read, root.expanduser(), where, tuple(paths), layout, masks),
        split=split,
        place=place[layout.places],
        label=rest.parts[0] if layout.classes else None,
        product=where.name,
    )


def _read(root: Path, where: Path, paths: Sequence[Path], layout: Layout, masks: Mapping[str, Path]) -> Content:
    bands = [read_band(root / path, layout.band_names) for path in paths]
    if layout.single_bands:
        bands = [band._replace(bands=(path.stem.rpartition("_")[2],)) for band, path in zip(bands, paths, strict=True)]
    found = {name: _mask_of(folder, where) for name, folder in masks.items()}
    return Content(bands, {name: read_band(path) for name, path in found.items() if path is not None})


def _mask_of(folder: Path, where: Path) -> Path | None:
    # A name may hold a dot, so a suffix is added and not replaced.
    candidates = [folder / where.parent / f"{where.name}{suffix}" for suffix in MASK_SUFFIXES]
    return next((path for path in candidates if path.is_file()), None)


def read_band(path: Path, bands: tuple[str, ...] | None = None) -> BandFile:
    """Read a file into memory.

    Raises:
        SceneError: It can't be read.
    """
    try:
        return BandFile(str(path), files.read_bytes(path), bands)
    except OSError as error:
        raise SceneError("unreadable file", f"{path} cannot be read ({error.strerror})") from error
