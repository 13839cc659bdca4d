"""Images whose classes stand in a CSV file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ofav2 import data
from ofav2.config.schema import DataConfig
from ofav2.errors import UserError


def opened(root: Path, text: str, name: str = "imagefolder") -> data.ImageData:
    (root / "labels.csv").write_text(text, encoding="utf-8-sig")
    config = DataConfig(name, str(root), labels=str(root / "labels.csv"), val_fraction=0.25, test_fraction=0.25)
    return data.open_data(config)


@pytest.fixture
def root(tmp_path: Path, classes: Callable[..., None]) -> Path:
    classes(tmp_path, {"x": 8, "y": 8})
    return tmp_path


def lines(splits: str = "") -> str:
    rows = [f"{folder}/{n:03d}.jpg,{'odd' if n % 2 else 'even'}" for folder in "xy" for n in range(8)]
    if not splits:
        return "path,label\n" + "\n".join(rows)
    return "path,label,split\n" + "\n".join(f"{row},{splits.split()[n // 2 % 4]}" for n, row in enumerate(rows))


def test_labels_are_those_of_the_file(root: Path) -> None:
    found = opened(root, lines())
    assert found.classes == ("even", "odd")
    for split in (found.train, found.val, found.test):
        names = split.images.names() or []
        assert [int(name[-5]) % 2 for name in names] == split.targets.tolist()
    assert [len(split) for split in (found.train, found.val, found.test)] == [8, 4, 4]


def test_splits_are_those_of_the_file(root: Path) -> None:
    found = opened(root, lines("train train validation test"))
    assert [len(split) for split in (found.train, found.val, found.test)] == [8, 4, 4]
    assert found.val.images.names() == ["x/004.jpg", "x/005.jpg", "y/004.jpg", "y/005.jpg"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,label\na.jpg,b", "column path is missing"),
        ("", "column path is missing"),
        ("path,label\nx/000.jpg,a", "two or more labels"),
        ("path,label\nx/000.jpg,a\nx/000.jpg,b", "line 3: x/000.jpg is there twice"),
        ("path,label\n../x.jpg,a\nx/000.jpg,b", r"line 2: path \(../x.jpg\)"),
        ("path,label\n./,a\nx/000.jpg,b", r"line 2: path \(./\)"),
        ("path,label\n.,a\nx/000.jpg,b", r"line 2: path \(.\)"),
        ("path,label\n/x.jpg,a\nx/000.jpg,b", r"line 2: path \(/x.jpg\)"),
        ("path,label\nx/000.jpg,\nx/001.jpg,b", r"line 2: label \(\)"),
        ("path,label,set\nx/000.jpg,a,test", r'column "set" must be one of path, label, split; rename or remove it'),
        ("path,label,split,split\nx/000.jpg,a,test,train", "column split is there twice; remove one"),
        (
            "path,label\nx/000.jpg,New York, NY\nx/001.jpg,b",
            r"line 2: has 3 fields, and the first line 2 \(path,label\)",
        ),
        ("path,label,split\nx/000.jpg,a,test\nx/001.jpg,b", "line 3: has 2 fields, and the first line 3"),
        ("path,label,split\nx/000.jpg,a,dev", r"line 2: split \(dev\)"),
        ("path,label,split\nx/000.jpg,a,train\nx/001.jpg,b,test", "class 'b' has no image in train"),
        (lines() + "\nx/none.jpg,odd", "x/none.jpg: cannot be read"),
        ('path,label\n"x/000.jpg,a', "is no CSV"),
    ],
)
def test_a_wrong_file_is_refused(root: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        opened(root, text)


def test_data_sets_with_labels_of_their_own_take_none(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.labels .*: imagenet brings its labels"):
        opened(root, lines(), "imagenet")


@pytest.mark.parametrize("head", ["path,label,Split", "path,label, split", "PATH,Label,SPLIT "])
def test_names_of_columns_may_have_capitals_and_blanks(root: Path, head: str) -> None:
    text = lines("train train validation test").replace("path,label,split", head)
    found = opened(root, text)
    assert found.val.images.names() == ["x/004.jpg", "x/005.jpg", "y/004.jpg", "y/005.jpg"]


def test_labels_with_a_comma_stand_in_quotes(root: Path) -> None:
    text = lines().replace(",odd", ',"odd, not even"').replace("x/002.jpg", "\nx/002.jpg")
    assert opened(root, text).classes == ("even", "odd, not even")
