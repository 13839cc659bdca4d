"""A data set that another package brings works as the page shows it, in a whole run."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import ofav2
from ofav2.config.schema import DataConfig
from ofav2.data import names, open_data
from ofav2.errors import UserError
from tests.ofav2 import tiny
from tests.ofav2.data.conftest import write_classes
from tests.ofav2.deploy.test_page import block

COUNTS = {"rose": 24, "tulip": 20}


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[None]:
    """The page's package, as pip would install it."""
    site = tmp_path / "site-packages"
    (site / "my_package").mkdir(parents=True)
    (site / "my_package" / "__init__.py").touch()
    (site / "my_package" / "flowers.py").write_text(block("own_data.md", "ofav2.data import Entry"), encoding="utf-8")
    described = site / "my_package-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n", encoding="utf-8")
    entry = "[ofav2.data]\nflowers = my_package.flowers:FLOWERS\n"
    (described / "entry_points.txt").write_text(entry, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Its images, listed in a file of its own."""
    root = tmp_path / "images"
    write_classes(root, COUNTS)
    index = [[str(path.relative_to(root)), path.parent.name] for path in sorted(root.rglob("*.jpg"))]
    (root / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return root


def test_it_is_listed_and_opened_by_its_name(installed: None, root: Path) -> None:
    assert names()[-1] == "flowers"
    data = open_data(DataConfig(name="flowers", root=str(root), resolutions=(16,), batch_size=8))
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


def test_what_is_no_data_set_is_refused(installed: None, root: Path, tmp_path: Path) -> None:
    entry = "[ofav2.data]\nflowers = my_package.flowers:read\n"
    (tmp_path / "site-packages" / "my_package-1.0.dist-info" / "entry_points.txt").write_text(entry, encoding="utf-8")
    with pytest.raises(UserError, match=r"my_package.flowers:read of an installed package is no Entry"):
        open_data(DataConfig(name="flowers", root=str(root), resolutions=(16,), batch_size=8))


def test_without_the_package_the_run_says_what_is_missing(root: Path) -> None:
    with pytest.raises(UserError, match=r"^data.name \(flowers\): data sets are digits, cifar10, "):
        open_data(DataConfig(name="flowers", root=str(root), resolutions=(16,), batch_size=8))
