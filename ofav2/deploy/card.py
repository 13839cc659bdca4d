"""Write the model card of an extracted network, for the Hugging Face Hub."""

import json
from collections.abc import Iterator, Sequence
from types import MappingProxyType

from ofav2.deploy.artifact import ChoiceRecord, ExtractionRecord, Provenance, StockProvenance, SubnetRecord
from ofav2.tasks.class_results import ClassResults, worst_first
from supernets.backbone import AnyArchitecture, Backbone

CARD = "model_card.md"
_CLASSES_SHOWN = 20
"""Classes that the card lists, at most."""
_MATRIX_SHOWN = 12
"""Classes up to which the card shows their confusion matrix."""
_HUB_NAMES = MappingProxyType({"classification": ("image-classification", "accuracy")})
"""Task -> what the Hub calls the task, and its main metric; another task keeps its own names."""


def model_card(record: SubnetRecord) -> str:
    """Return a card: YAML front matter with the results, and a page for people.

    Args:
        record: What the network is.
    """
    return "\n".join(["---", *_front_matter(record), "---", "", *_page(record), ""])


def _front_matter(record: SubnetRecord) -> Iterator[str]:
    yield "license: other"
    yield "license_name: unspecified"
    yield "library_name: ofav2"
    task, metric = _HUB_NAMES.get(record.task, (record.task, record.metric.name))
    if record.task in _HUB_NAMES:
        yield f"pipeline_tag: {task}"
    yield "tags:"
    arch = record.architecture
    kinds: tuple[str, ...] = ("once-for-all", "mobilenetv3")
    if isinstance(arch, Backbone):
        kinds = ("early-exit", "timm") if arch.taps else ("timm",)
    for tag in (task, *kinds, "ofav2", arch.variant):
        yield f"- {_quoted(tag)}"
    yield "datasets:"
    yield f"- {_quoted(record.data)}"
    yield "metrics:"
    yield f"- {_quoted(metric)}"
    yield "model-index:"
    yield f"- name: {_quoted(_name(record))}"
    yield "  results:"
    yield "  - task:"
    yield f"      type: {_quoted(task)}"
    yield f"      name: {_quoted(record.task.replace('_', ' ').capitalize())}"
    yield "    dataset:"
    yield f"      type: {_quoted(record.data)}"
    yield f"      name: {_quoted(record.data)}"
    yield "      split: test"
    yield "    metrics:"
    for exit, score in record.scores["test"].items():
        yield f"    - type: {_quoted(metric)}"
        yield f"      name: {_quoted(f'{record.metric.title}, exit {exit}')}"
        yield f"      value: {score!r}"
    if record.ensemble and record.by_class:
        yield f"    - type: {_quoted(metric)}"
        yield f"      name: {_quoted(f'{record.metric.title}, ensemble of exits')}"
        yield f"      value: {record.by_class.accuracy!r}"


def _page(record: SubnetRecord) -> Iterator[str]:
    yield f"# {_plain(_name(record))}"
    yield ""
    yield (
        f"A network for {_plain(record.task.replace('_', ' '))}: {_kind(record.architecture)}, trained on"
        f" {_code(record.data)}, {_outputs(record)}."
    )
    yield ""
    yield from _facts(record)
    yield ""
    yield f"## {_plain(record.metric.title)}"
    yield ""
    yield from _extracted_scores(record, record.extraction) if record.extraction else _fine_tuned_scores(record)
    if record.by_class:
        yield from _class_results(record.by_class, record.classes)
    yield ""
    yield "## Use"
    yield ""
    yield "Class names, in the order of the labels, are in `subnet.json` under `classes`."
    yield ""
    yield from _usage(record)
    yield ""
    yield "## Where it comes from"
    yield ""
    yield from _origin(record)
    yield ""
    yield "The whole recipe, the architecture block by block and all costs are in `subnet.json`."
    yield ""
    yield "## Limits and licence"
    yield ""
    yield (
        "The scores hold for images like those of the data set; nothing is known about others. No licence has been"
        " chosen for these weights: set `license` in the front matter before you publish them, and mind the terms of"
        " the data set."
    )


def _facts(record: SubnetRecord) -> Iterator[str]:
    cost, given, side = record.cost, record.input, record.input.resolution
    stored = "values in 0..1" if given.pictures else "values as they are stored"
    yield "| | |"
    yield "|---|---|"
    yield f"| input | {given.channels} channels, {side} x {side} pixels, {stored}, normalised as below |"
    yield f"| channels | {', '.join(map(_code, given.bands))} |"
    yield f"| parameters | {cost.params:,} |"
    yield f"| multiply-adds per image | {cost.macs:,} |"
    yield f"| peak activation memory per image | {cost.memory:,} bytes |"
    yield f"| sub-network | {_code(record.name)} |"
    yield f"| outputs of exits | {', '.join(map(str, record.scores['test']))} |"
    if record.ensemble:
        terms = zip(record.ensemble, record.exit_indices, strict=True)
        yield f"| ensemble | {' + '.join(f'{weight:.4g} x exit {exit}' for weight, exit in terms)} |"


def _origin(record: SubnetRecord) -> Iterator[str]:
    origin = record.provenance
    if isinstance(origin, StockProvenance):
        yield f"- timm's {_code(origin.timm)}, {_code(origin.weights) if origin.weights else 'fresh'} weights"
    else:
        yield f"- run {_code(origin.run)}, phase {_code(origin.phase)}"
        yield f"- checkpoint SHA-256 `{origin.checkpoint_sha256}`"
        yield f"- data fingerprint {_code(origin.data_fingerprint)}"
    if record.extraction and record.measured_fingerprint != record.run.data_fingerprint:
        yield f"- its images have changed since: measured on those of fingerprint {_code(record.measured_fingerprint)}"
    if found := record.choice:
        limits = ", ".join(f"{name} {value:,}" for name, value in found.limits.named.items()) or "none"
        yield f"- {_chosen(found)}; limits: {limits}"
    if pruning := record.pruning:
        yield f"- exits chosen on validation: {pruning.rule}; weights: {_code(pruning.ensemble)}"
    for step in record.finetuning:
        yield (
            f"- fine-tuned from weights SHA-256 `{step.source_sha256}` on {_code(step.data)}, fingerprint"
            f" {_code(step.data_fingerprint)}, {step.epochs} epochs"
        )
    versions = origin.versions if isinstance(origin, Provenance) else record.finetuning[0].versions
    yield f"- torch {_code(versions.get('torch'))}, ofav2 {_code(versions.get('ofav2'))}"


def _chosen(choice: ChoiceRecord) -> str:
    count, seed = choice.candidates, choice.seed
    if choice.method == "random":
        return f"the best on validation of {count} random networks (seed {seed})"
    if choice.method == "search":
        return f"the best on validation of {count} networks that a short search measured (seed {seed})"
    return (
        f"{choice.rule} of the front of a search that measured {count} networks (seed {seed}) on one half of validation"
        " and its front on the other"
    )


def _outputs(record: SubnetRecord) -> str:
    if not record.dense:
        return f"whose images have {len(record.classes)} classes"
    return f"with {record.architecture.num_classes} outputs for each pixel"


def _kind(arch: AnyArchitecture) -> str:
    if isinstance(arch, Backbone):
        return f"timm's {_code(arch.name)}{' with early exits' if arch.taps else ''}"
    return f"one sub-network of a Once-For-All v2 supernet (`{arch.variant}`, width {arch.width_mult})"


def _extracted_scores(record: SubnetRecord, extraction: ExtractionRecord) -> Iterator[str]:
    if extraction.validation_is_test:
        yield "Test images are the validation images (`data.test_fraction=0`), so test scores flatter."
        yield ""
    columns = [("validation", record.scores["val"]), ("test", record.scores["test"])]
    if extraction.calibration_images:
        yield "Measured by the command that wrote these files; batch norm was recalibrated on training images."
        columns.append(("test before recalibration", extraction.scores_before["test"]))
    else:
        yield "Measured by the command that wrote these files."
    yield ""
    yield f"| exit | {' | '.join(title for title, _ in columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for exit in record.scores["test"]:
        yield f"| {exit} | {' | '.join(_plain(record.metric.show(scores[exit])) for _, scores in columns)} |"
    if record.ensemble and (pruning := record.pruning):
        found = [record.metric.show(one.top1) for one in (pruning.chosen.val, pruning.test["chosen"])]
        # Nobody measures what an ensemble reaches before recalibration.
        yield f"| ensemble | {' | '.join([*found, '–'][: len(columns)])} |"


def _fine_tuned_scores(record: SubnetRecord) -> Iterator[str]:
    yield (
        "Measured once by the command that wrote these files. Validation images were trained on in the end, so a score"
        " on them would say nothing."
    )
    yield ""
    yield "| exit | test |"
    yield "|---|---|"
    for exit, score in record.scores["test"].items():
        yield f"| {exit} | {_plain(record.metric.show(score))} |"
    if record.ensemble and record.by_class:
        yield f"| ensemble | {_plain(record.metric.show(record.by_class.accuracy))} |"


def _class_results(results: ClassResults, names: Sequence[str]) -> Iterator[str]:
    """Classes, the worst first, and the classes that images are most often taken for."""
    scores = worst_first(results.scores(names))
    yield ""
    yield "## By class"
    yield ""
    yield (
        f"Of {results.total:,} test images, {100 * results.accuracy:.2f} % are classified rightly; the mean of the"
        f" classes' accuracies is {100 * results.mean_class_accuracy:.2f} %."
    )
    yield ""
    yield "| class | images | accuracy | most often taken for |"
    yield "|---|---|---|---|"
    for score in scores[:_CLASSES_SHOWN]:
        accuracy = "–" if score.accuracy is None else f"{100 * score.accuracy:.2f} %"
        other = f"{_code(score.confused_with)} ({score.confused})" if score.confused_with is not None else "–"
        yield f"| {_code(score.name)} | {score.images:,} | {accuracy} | {other} |"
    if len(scores) > _CLASSES_SHOWN:
        yield ""
        yield f"These are the worst; the other {len(scores) - _CLASSES_SHOWN} are in `subnet.json` under `by_class`."
    if len(names) > _MATRIX_SHOWN:
        return
    yield ""
    yield "Images of a row's class that are taken for a column's:"
    yield ""
    yield f"| | {' | '.join(map(_code, names))} |"
    yield f"|---|{'---|' * len(names)}"
    for name, row in zip(names, results.matrix(), strict=True):
        yield f"| {_code(name)} | {' | '.join(map(str, row))} |"


def _usage(record: SubnetRecord) -> Iterator[str]:
    given = record.input
    yield "```python"
    yield "import torch"
    yield ""
    yield f"mean = torch.tensor({list(given.mean)}).view(1, -1, 1, 1)"
    yield f"std = torch.tensor({list(given.std)}).view(1, -1, 1, 1)"
    random = f"images = torch.rand(2, {given.channels}, {given.resolution}, {given.resolution})"
    if given.pictures:
        yield f"{random}  # yours, in 0..1"
        yield "images = (images - mean) / std"
    else:
        data = "images.isfinite()" if given.nodata is None else f"(images.isfinite() & (images != {given.nodata!r}))"
        yield f"{random}  # yours, as stored"
        yield f"has_data = {data}.all(1, keepdim=True)"
        yield f"images = torch.where(has_data, (images / {given.white!r} - mean) / std, 0.0)"
    yield ""
    if "onnx" in record.formats:
        yield "import onnxruntime  # needs nothing of ofav2"
        yield ""
        yield 'session = onnxruntime.InferenceSession("model.onnx")'
        outputs = ", ".join(record.exports.outputs)
        yield f'outputs = session.run(None, {{"images": images.numpy()}})  # {outputs}'
        yield ""
    if "pt2" in record.formats:
        yield 'program = torch.export.load("model.pt2").module()  # torch alone'
        yield "outputs = program(images)"
        yield ""
    yield "import ofav2  # the plain torch module, to train on or to quantise"
    yield ""
    yield 'module = ofav2.load_subnet(".")'
    yield "outputs = module(images)"
    yield "```"


def _name(record: SubnetRecord) -> str:
    origin = record.provenance
    return f"{origin.run}: {record.name}" if isinstance(origin, Provenance) else f"{origin.timm}, fine-tuned"


def _printable(text: object) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def _quoted(text: object) -> str:
    """Return a YAML scalar: JSON's quoted text is one, as long as all letters are printable."""
    return json.dumps(_printable(text), ensure_ascii=False)


def _code(text: object) -> str:
    """Return a span of code in a Markdown table."""
    return f"`{_printable(text).replace('`', ' ').replace('|', ' ')}`"


def _plain(text: object) -> str:
    """Text of a Markdown heading, with nothing in it that means something there."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|&" else letter for letter in _printable(text))
