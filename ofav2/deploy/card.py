"""Write the model card of an extracted network, for the Hugging Face Hub."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

CARD = "model_card.md"


def model_card(described: Mapping[str, Any]) -> str:
    """A card: YAML front matter with the results, and a page for people.

    Args:
        described: The content of `subnet.json`.
    """
    return "\n".join(["---", *_front_matter(described), "---", "", *_page(described), ""])


def _front_matter(described: Mapping[str, Any]) -> Iterator[str]:
    yield "license: other"
    yield "license_name: unspecified"
    yield "library_name: ofav2"
    yield "pipeline_tag: image-classification"
    yield "tags:"
    for tag in ("image-classification", "once-for-all", "ofav2", "mobilenetv3", described["supernet"]["variant"]):
        yield f"- {_quoted(tag)}"
    yield "datasets:"
    yield f"- {_quoted(described['data'])}"
    yield "metrics:"
    yield "- accuracy"
    yield "model-index:"
    yield f"- name: {_quoted(_name(described))}"
    yield "  results:"
    yield "  - task:"
    yield "      type: image-classification"
    yield "      name: Image classification"
    yield "    dataset:"
    yield f"      type: {_quoted(described['data'])}"
    yield f"      name: {_quoted(described['data'])}"
    yield "      split: test"
    yield "    metrics:"
    for exit, top1 in _final_top1(described)["test"].items():
        yield "    - type: accuracy"
        yield f"      name: {_quoted(f'Top-1 accuracy, exit {exit}')}"
        yield f"      value: {top1!r}"


def _page(described: Mapping[str, Any]) -> Iterator[str]:
    cost, given, origin = described["cost"], described["input"], described["provenance"]
    side, variant = given["resolution"], described["supernet"]["variant"]
    yield f"# {_plain(_name(described))}"
    yield ""
    yield (
        f"An image classifier with {len(described['classes'])} classes: one sub-network of a Once-For-All v2 supernet"
        f" (`{variant}`, width {described['supernet']['width_mult']}), trained on {_code(described['data'])}."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| input | {given['channels']} channels, {side} x {side} pixels, values in 0..1, normalised as below |"
    yield f"| parameters | {cost['params']:,} |"
    yield f"| multiply-adds per image | {cost['macs']:,} |"
    yield f"| peak activation memory per image | {cost['memory']:,} bytes |"
    yield f"| sub-network | {_code(described['name'])} |"
    yield f"| logits of exits | {', '.join(_final_top1(described)['test'])} |"
    yield ""
    yield "## Accuracy"
    yield ""
    yield from _fine_tuned_accuracy(described) if described.get("finetuning") else _extracted_accuracy(described)
    yield ""
    yield "## Use"
    yield ""
    yield "Class names, in the order of the logits, are in `subnet.json` under `classes`."
    yield ""
    yield from _usage(described)
    yield ""
    yield "## Where it comes from"
    yield ""
    yield f"- run {_code(origin['run'])}, phase {_code(origin['phase'])}"
    yield f"- checkpoint SHA-256 `{origin['checkpoint_sha256']}`"
    yield f"- data fingerprint {_code(origin['data_fingerprint'])}"
    if found := described.get("choice"):
        limits = ", ".join(f"{name} {value:,}" for name, value in found["limits"].items()) or "none"
        count, seed = found["candidates"], found["seed"]
        yield f"- the best on validation of {count} random networks (seed {seed}); limits: {limits}"
    for step in described.get("finetuning", ()):
        yield (
            f"- fine-tuned from weights SHA-256 `{step['source_sha256']}` on {_code(step['data'])}, fingerprint"
            f" {_code(step['data_fingerprint'])}, {step['epochs']} epochs"
        )
    yield f"- torch {_code(origin['versions'].get('torch'))}, ofav2 {_code(origin['versions'].get('ofav2'))}"
    yield ""
    yield "The whole recipe, the architecture block by block and all costs are in `subnet.json`."
    yield ""
    yield "## Limits and licence"
    yield ""
    yield (
        "The accuracy holds for images like those of the data set; nothing is known about others. No licence has been"
        " chosen for these weights: set `license` in the front matter before you publish them, and mind the terms of"
        " the data set."
    )


def _extracted_accuracy(described: Mapping[str, Any]) -> Iterator[str]:
    yield "Top-1 in %, measured by the command that wrote these files; batch norm was recalibrated on training images."
    yield ""
    yield "| exit | validation | test | test before recalibration |"
    yield "|---|---|---|---|"
    before, after = (described["top1_per_exit"][f"{when}_recalibration"] for when in ("before", "after"))
    for exit, top1 in after["test"].items():
        yield f"| {exit} | {100 * after['val'][exit]:.2f} | {100 * top1:.2f} | {100 * before['test'][exit]:.2f} |"


def _fine_tuned_accuracy(described: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Top-1 in %, measured once by the command that wrote these files. Validation images were trained on in the end,"
        " so accuracy on them would say nothing."
    )
    yield ""
    yield "| exit | test |"
    yield "|---|---|"
    for exit, top1 in _final_top1(described)["test"].items():
        yield f"| {exit} | {100 * top1:.2f} |"


def _final_top1(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """Top-1 of what the files hold, by split and exit."""
    found = described["top1_per_exit"]
    last: Mapping[str, Any] = found["after_finetuning" if described.get("finetuning") else "after_recalibration"]
    return last


def _usage(described: Mapping[str, Any]) -> Iterator[str]:
    given = described["input"]
    yield "```python"
    yield "import torch"
    yield ""
    yield f"mean = torch.tensor({given['mean']}).view(1, -1, 1, 1)"
    yield f"std = torch.tensor({given['std']}).view(1, -1, 1, 1)"
    yield f"images = torch.rand(2, {given['channels']}, {given['resolution']}, {given['resolution']})  # yours, in 0..1"
    yield "images = (images - mean) / std"
    yield ""
    if "onnx" in described["formats"]:
        yield "import onnxruntime  # needs nothing of ofav2"
        yield ""
        yield 'session = onnxruntime.InferenceSession("model.onnx")'
        outputs = ", ".join(described["checks"]["outputs"])
        yield f'outputs = session.run(None, {{"images": images.numpy()}})  # {outputs}'
        yield ""
    if "pt2" in described["formats"]:
        yield 'program = torch.export.load("model.pt2").module()  # torch alone'
        yield "outputs = program(images)"
        yield ""
    yield "import ofav2  # the plain torch module, to train on or to quantise"
    yield ""
    yield 'module = ofav2.load_subnet(".")'
    yield "outputs = module(images)"
    yield "```"


def _name(described: Mapping[str, Any]) -> str:
    return f"{described['provenance']['run']}: {described['name']}"


def _printable(text: object) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def _quoted(text: object) -> str:
    """A YAML scalar: JSON's quoted text is one, as long as all letters are printable."""
    return json.dumps(_printable(text), ensure_ascii=False)


def _code(text: object) -> str:
    """A span of code in a Markdown table."""
    return f"`{_printable(text).replace('`', ' ').replace('|', ' ')}`"


def _plain(text: object) -> str:
    """Text of a Markdown heading, with nothing in it that means something there."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|&" else letter for letter in _printable(text))
