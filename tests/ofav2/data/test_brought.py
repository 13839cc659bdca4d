"""A data set that another package brings works as the page shows it, in a whole run."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import ofav2
from ofav2.config.schema import DataConfig
from ofav2.data import ImageData, names, open_data
from ofav2.errors import UserError
from tests.ofav2 import tiny
from tests.ofav2.data.conftest import write_classes
from tests.ofav2.deploy.test_page import block
from tests.ofav2.packages import describe_package

COUNTS = {"rose": 24, "tulip": 20}
FLOWERS = "[ofav2.data]\nflowers = my_package.flowers:FLOWERS"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[None]:
    """The page's package, as pip would install it."""
    site = tmp_path / "site-packages"
    (site / "my_package").mkdir(parents=True)
    (site / "my_package" / "__init__.py").touch()
    (site / "my_package" / "flowers.py").write_text(block("own_data.md", "ofav2.data import Entry"), encoding="utf-8")
    describe_package(site, "my_package", FLOWERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield
    # Other tests write other modules of this name.
    for name in ("my_package", "my_package.flowers"):
        sys.modules.pop(name, None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Its images, listed in a file of its own."""
    root = tmp_path / "images"
    write_classes(root, COUNTS)
    index = [[str(path.relative_to(root)), path.parent.name] for path in sorted(root.rglob("*.jpg"))]
    (root / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return root


def open_flowers(root: Path) -> ImageData:
    return open_data(DataConfig(name="flowers", root=str(root), resolutions=(16,), batch_size=8))


def test_it_is_listed_and_opened_by_its_name(installed: None, root: Path) -> None:
    assert names()[-1] == "flowers"
    data = open_flowers(root)
    found = Counter(data.classes[label] for split in (data.train, data.val, data.test) for label in split.targets)
    assert found == COUNTS


def test_a_run_on_it_is_trained_resumed_and_extracted(installed: None, root: Path, tmp_path: Path) -> None:
    text = tiny.TWO.replace("name: digits", f"name: flowers, root: {root}").replace("0.02, test", "0.1, test")
    run = ofav2.train(tiny.written(tmp_path, text), run_dir=tmp_path / "run")
    assert ofav2.resume(run.folder).record == run.record
    opened = ofav2.open_run(run.folder)
    ofav2.extract(opened, opened.loaded.net.space.smallest(), tmp_path / "out", formats=())
    assert ofav2.evaluate_network(tmp_path / "out").same_images
    with pytest.raises(UserError, match=r"lies in .*, where it would be taken for images"):
        ofav2.extract(opened, opened.loaded.net.space.smallest(), root / "out", formats=())


@pytest.mark.parametrize(
    ("end", "entry", "words"),
    [
        ("", "flowers:read", "my_package.flowers:read must be an Entry of ofav2.data"),
        ("", "missing:FLOWERS", "my_package.missing:FLOWERS can't be imported .No module named 'my_package.missing'"),
        ("", "flowers:ROSES", "my_package.flowers:ROSES can't be imported"),
        ("import sys; sys.nowhere", "flowers:FLOWERS", "can't be imported .module 'sys' has no attribute 'nowhere'"),
        ("FLOWERS = Entry('tulips', read)", "flowers:FLOWERS", "must be an Entry of ofav2.data with this name"),
        ("FLOWERS = Entry('flowers', read, mean=(0, 0, 0))", "flowers:FLOWERS", "and with mean and std; repair"),
        ("FLOWERS = Entry('flowers', read)", "flowers:FLOWERS", "and with mean and std; repair"),
    ],
)
def test_a_package_that_is_wrong_is_refused_in_a_line(
    end: str, entry: str, words: str, installed: None, root: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site-packages"
    with (site / "my_package" / "flowers.py").open("a", encoding="utf-8") as module:
        module.write(f"\n{end}\n")
    describe_package(site, "my_package", f"[ofav2.data]\nflowers = my_package.{entry}")
    with pytest.raises(UserError, match=rf"^data.name \(flowers\): .*{words}"):
        open_flowers(root)


def test_a_folder_that_is_missing_is_refused_in_a_line(installed: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.root \(null\): flowers is read from a folder"):
        open_data(DataConfig(name="flowers", resolutions=(16,), batch_size=8))
    with pytest.raises(UserError, match=r"^data.name \(flowers\): .*index.json can't be read \(No such file"):
        open_flowers(tmp_path / "nowhere")


def test_a_reader_that_fails_without_a_number_of_the_system_is_told(
    installed: None, root: Path, tmp_path: Path
) -> None:
    with (tmp_path / "site-packages" / "my_package" / "flowers.py").open("a", encoding="utf-8") as module:
        module.write("\ndef broken(config):\n    raise OSError('not of this kind')\n")
        module.write("FLOWERS = Entry('flowers', broken, mean=(0, 0, 0), std=(1, 1, 1))\n")
    with pytest.raises(UserError, match=r"^data.name \(flowers\): .* can't be read \(not of this kind\)"):
        open_flowers(root)


def test_two_packages_of_one_data_set_are_refused(installed: None, root: Path, tmp_path: Path) -> None:
    describe_package(tmp_path / "site-packages", "another", FLOWERS)
    with pytest.raises(UserError, match=r"^data.name \(flowers\): several installed packages bring it"):
        open_flowers(root)


def test_without_the_package_the_run_says_what_is_missing(root: Path) -> None:
    with pytest.raises(UserError, match=r"^data.name \(flowers\): data sets are .* install the package that brings it"):
        open_flowers(root)
