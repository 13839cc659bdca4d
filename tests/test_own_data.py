"""What docs/own_data.md shows is what there is: its commands, and its way of preparing an image."""

import re
import shlex
from pathlib import Path

import torch
from torchvision.transforms import v2

from ofav2.cli import main as cli
from ofav2.config import recipe
from ofav2.data.views import evaluation_view, normalise

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "own_data.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    shell = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in shell.splitlines() if line.startswith("ofav2 ")]


def test_commands_of_own_data_md_are_taken_and_their_settings_are_a_recipe() -> None:
    assert {command[0] for command in commands()} == {"plan", "train", "extract", "predict", "evaluate"}
    for command in commands():
        cli.parser().parse_args(command)
        settings = [part for part in command[2:] if re.match(r"[a-z_.]+=", part)]
        if command[0] in ("plan", "train"):
            config = recipe.load(command[1], settings)
            assert (config.data.name, config.data.cache) == ("imagefolder", "cache")


def test_keys_named_in_own_data_md_can_be_set_as_shown() -> None:
    shown = re.findall(r"`(data\.[a-z_]+=[^`]+)`", PAGE)
    assert len(shown) >= 5
    for setting in shown:
        recipe.load("digits", [setting.replace("'", "")])


def test_preparing_an_image_as_own_data_md_shows_equals_evaluation() -> None:
    image = torch.randint(0, 256, (3, 60, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    steps = [v2.Resize(48, antialias=True), v2.CenterCrop(48), v2.ToDtype(torch.float32, scale=True)]
    shown = v2.Compose([*steps, v2.Normalize(mean, std)])
    expected = normalise(evaluation_view(image, 48, 1.0), mean, std)
    torch.testing.assert_close(shown(image), expected, rtol=1e-5, atol=1e-5)
