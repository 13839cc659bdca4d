"""The rules of the house as tests: who imports whom, who owns which library, what modules must not hold or do.

A rule is a function from a file's path and syntax tree to findings. Each is run over all sources, and over a small bad
source beside a good one to show that it bites and does not bark at the wrong tree.
"""

import ast
import configparser
import re
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import MappingProxyType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ofav2", "supernets", "distill", "recipes")
LEAVES = ("supernets", "distill", "recipes")

# Packages and single modules of `ofav2`, lowest first: a file imports from lines above its own, and inside a
# package no two files import each other, directly or by way of others. The package's own front is last: it may
# gather from all packages.
LAYERS = (
    "errors",
    "rng",
    "messages",
    "tables",
    "progress",
    "files",
    "json_lines",
    "output_folder",
    "typed_json",
    "config",
    "runtime",
    "data",
    "networks",
    "tasks",
    "runs",
    "evaluation",
    "training",
    "nas",
    "deploy",
    "exits",
    "finetuning",
    "inference",
    "timm_plugin",
    "report",
    "cli",
    "__init__",
    "__main__",
)

# A folder ends in a slash and owns for all its files.
OWNERS = MappingProxyType(
    {
        "omegaconf": ("ofav2/config/recipe.py",),
        "yaml": ("ofav2/config/recipe.py",),
        "wandb": ("ofav2/runs/tracking.py",),
        "torch.utils.tensorboard": ("ofav2/runs/tracking.py",),
        "torchvision": ("ofav2/data/",),
        "sklearn": ("ofav2/data/", "ofav2/nas/engine/"),
        "scipy": ("ofav2/nas/engine/",),
        "pymoo": ("ofav2/nas/engine/evolution.py",),
        "moocore": ("ofav2/nas/engine/fronts.py",),
        "PIL": ("ofav2/data/",),
        "timm": ("distill/external.py", "ofav2/networks/timm_models.py", "ofav2/timm_plugin/"),
        "onnxruntime": ("ofav2/deploy/export.py",),
        "rich": ("ofav2/cli/console.py",),
        "torch.distributed": ("ofav2/runtime/processes.py",),
        "plotly": ("ofav2/report/page.py",),
        "jinja2": ("ofav2/report/page.py",),
        "rasterio": ("ofav2/data/importing/rasters.py",),
        "pyarrow": ("ofav2/data/importing/parquet.py",),
        "safetensors": ("ofav2/runs/checkpoint.py", "distill/external.py"),
    }
)
# Dropout takes no generator, and neither do torchvision's transforms: two modules derive torch's own state from a
# step's seed, the second one only while a transform draws.
SEEDERS = ("ofav2/runtime/device.py", "ofav2/data/augment.py")
PRINTERS = "ofav2/cli/"
# Those that open what is no user's: locks, files of the system, of this package, or just written by the same function;
# or bytes in memory.
OPENERS = (
    "ofav2/files.py",
    "ofav2/config/recipe.py",
    "ofav2/data/importing/rasters.py",
    "ofav2/deploy/export.py",
    "ofav2/nas/machine.py",
    "ofav2/output_folder.py",
    "ofav2/report/page.py",
    "ofav2/runtime/threads.py",
)
TORCH_FREE = ("supernets/space.py",)
DISTRIBUTIONS = MappingProxyType({"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow"})

CONTAINER_CALLS = frozenset({"list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque"})
CODE_LOADERS = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"})
CODE_RUNNERS = frozenset({"eval", "exec", "compile", "__import__", "torch.hub.load"})
YAML_LOADERS = frozenset({"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"})
NUMPY_RANDOM = frozenset({"default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64", "Philox"})
TORCH_RANDOM = frozenset({"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"})
TORCH_SEEDS = frozenset(
    {
        "torch.manual_seed",
        "torch.seed",
        "torch.cuda.manual_seed",
        "torch.cuda.manual_seed_all",
        "torch.default_generator.manual_seed",
    }
)

Rule = Callable[[str, ast.Module], Iterator[str]]


# What a source imports and calls


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, wherever it stands; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.split("/")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in ("import_module", "__import__"):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def calls(path: str, tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the dotted name that it calls, local names of imports written out."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = dotted(node.func).partition(".")
            full = known.get(first, first)
            yield node, f"{full}.{rest}" if rest else full


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression made of names and attributes; '?' stands for any other part."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


# Rules on imports


def leaves_stand_alone(path: str, tree: ast.Module) -> Iterator[str]:
    own = path.split("/")[0]
    for line, name in imports(path, tree):
        if own in LEAVES and name.split(".")[0] in PACKAGES and name.split(".")[0] != own:
            yield f"{path}:{line}: {own} is a leaf and imports {name}"


def packages_import_downwards(path: str, tree: ast.Module) -> Iterator[str]:
    if not path.startswith("ofav2/"):
        return
    own = path.split("/")[1].removesuffix(".py")
    if own not in LAYERS:
        yield f"{path}:1: {own} is not in the order of packages; add it to LAYERS"
        return
    for line, name in imports(path, tree):
        if name.split(".")[0] != "ofav2":
            continue
        second = [*name.split("."), ""][1]
        other = second if second in LAYERS else "__init__"
        if LAYERS.index(other) > LAYERS.index(own):
            yield f"{path}:{line}: {own} imports the higher {other} ({name})"


def libraries_have_one_owner(path: str, tree: ast.Module) -> Iterator[str]:
    for line, name in imports(path, tree):
        library = next((one for one in OWNERS if f"{name}.".startswith(f"{one}.")), "")
        owners = OWNERS.get(library)
        if owners and not any(path == owner or (owner.endswith("/") and path.startswith(owner)) for owner in owners):
            yield f"{path}:{line}: {name} belongs to {' and '.join(owners)}"


def search_space_is_torch_free(path: str, tree: ast.Module) -> Iterator[str]:
    for line, name in imports(path, tree):
        if path in TORCH_FREE and name.split(".")[0] == "torch":
            yield f"{path}:{line}: imports {name}"


# Rules on state, code from files, random numbers and docstrings


def nothing_mutable_is_shared(path: str, tree: ast.Module) -> Iterator[str]:
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for body in [tree.body, *(node.body for node in classes)]:
        for statement in statements(body):
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                bound = [dotted(target) for target in targets]
                if bound != ["__all__"] and statement.value and is_mutable(statement.value):
                    yield f"{path}:{statement.lineno}: {', '.join(bound)} is a mutable container of a module or class"
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield f"{path}:{node.lineno}: global {', '.join(node.names)} makes module state"


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run in a body's own scope, those under if, try, with and loops included."""
    for statement in body:
        yield statement
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from statements(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from statements(handler.body)


def is_mutable(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return dotted(value.func).rpartition(".")[2] in CONTAINER_CALLS
    if isinstance(value, ast.Tuple | ast.BinOp | ast.BoolOp | ast.IfExp | ast.NamedExpr | ast.Starred):
        return any(is_mutable(child) for child in ast.iter_child_nodes(value) if isinstance(child, ast.expr))
    return isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def files_run_no_code(path: str, tree: ast.Module) -> Iterator[str]:
    for line, name in imports(path, tree):
        if name.split(".")[0] in CODE_LOADERS:
            yield f"{path}:{line}: imports {name}"
    for call, name in calls(path, tree):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        unsafe = (
            name in CODE_RUNNERS
            or (name in ("torch.load", "torch.serialization.load") and keywords.get("weights_only") != "True")
            or (name.startswith("yaml.") and name.removeprefix("yaml.") in YAML_LOADERS)
            or (name == "numpy.load" and keywords.get("allow_pickle", "False") != "False")
        )
        if unsafe:
            yield f"{path}:{call.lineno}: {name} can run code"


def randomness_has_a_generator(path: str, tree: ast.Module) -> Iterator[str]:
    for line, name in imports(path, tree):
        if name.split(".")[0] == "random" and name != "random.Random":
            yield f"{path}:{line}: imports {name}, whose state is global"
    for call, name in calls(path, tree):
        module, _, function = name.rpartition(".")
        keywords = {keyword.arg for keyword in call.keywords}
        from_global_state = (
            (module == "numpy.random" and function not in NUMPY_RANDOM)
            or (name in TORCH_SEEDS and path not in SEEDERS)
            or (module == "torch" and function in TORCH_RANDOM and "generator" not in keywords)
            or (name == "random.Random" and not call.args)
        )
        if from_global_state:
            yield f"{path}:{call.lineno}: {name} draws from, or sets, global state"


def public_names_have_docstrings(path: str, tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield f"{path}:1: the module has no docstring"
    bodies = [tree.body]
    while bodies:
        for node in bodies.pop():
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            # Overloads and setters share the docstring of what they belong to.
            decorators = {dotted(decorator).rpartition(".")[2] for decorator in node.decorator_list}
            if not ast.get_docstring(node) and not decorators & {"overload", "setter"}:
                yield f"{path}:{node.lineno}: {node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                bodies.append(node.body)


def only_the_command_line_prints(path: str, tree: ast.Module) -> Iterator[str]:
    if path.startswith(PRINTERS):
        return
    for node in ast.walk(tree):
        name = dotted(node.func) if isinstance(node, ast.Call) else dotted(node)
        if name in ("print", "sys.stdout", "sys.stderr") and not isinstance(node, ast.Name):
            yield f"{path}:{getattr(node, 'lineno', 1)}: {name} prints; below ofav2/cli, log it"


def files_are_opened_in_one_place(path: str, tree: ast.Module) -> Iterator[str]:
    """`ofav2/files.py` opens regular files alone; a pipe that is opened elsewhere would wait for ever."""
    if not path.startswith("ofav2/") or path in OPENERS:
        return
    for call, name in calls(path, tree):
        called = call.func.attr if isinstance(call.func, ast.Attribute) else name
        # Pillow and others are handed what lies in memory.
        own = name.startswith(("files.", "ofav2.files.", "PIL.Image.", "torch.export."))
        own = own or [ast.unparse(argument) for argument in call.args[:1]] == ["os.devnull"]
        if not own and (called in ("open", "read_bytes", "read_text", "memmap", "fromfile") or name == "os.truncate"):
            yield f"{path}:{call.lineno}: {name} opens a file; `ofav2/files.py` does"


RULES: tuple[Rule, ...] = (
    leaves_stand_alone,
    packages_import_downwards,
    libraries_have_one_owner,
    search_space_is_torch_free,
    nothing_mutable_is_shared,
    files_run_no_code,
    randomness_has_a_generator,
    public_names_have_docstrings,
    only_the_command_line_prints,
    files_are_opened_in_one_place,
)


@cache
def sources() -> tuple[tuple[str, ast.Module], ...]:
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    return tuple((file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))) for file in files)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_sources_obey(rule: Rule) -> None:
    findings = [finding for path, tree in sources() for finding in rule(path, tree)]
    assert not findings, "\n".join(["", *findings])


def test_every_package_has_sources() -> None:
    assert {path.split("/")[0] for path, _ in sources()} == set(PACKAGES)


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def import_graph(files: Iterable[tuple[str, ast.Module]]) -> dict[str, set[str]]:
    """Every module, and the modules of ours that it imports; imports for type checkers alone do not count."""
    trees = {module_name(path): (path, tree) for path, tree in files}
    graph: dict[str, set[str]] = {}
    for name, (path, tree) in trees.items():
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        seen = ast.Module([node for node in ast.walk(tree) if id(node) not in for_types and _imports(node)], [])
        graph[name] = {found for _, full in imports(path, seen) if (found := _home(full, trees))} - {name}
    return graph


def _imports(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _home(full: str, known: Collection[str]) -> str | None:
    """The module that a dotted name is, or is defined in."""
    while full and full not in known:
        full = full.rpartition(".")[0]
    return full or None


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; empty where there is none."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_two_files_import_each_other() -> None:
    assert not cycle(import_graph(sources()))


def test_a_ring_of_imports_is_found() -> None:
    files = {"a/b.py": "from a import c", "a/c.py": "import a.d", "a/d.py": "from a.b import x", "a/e.py": "import a.b"}
    parsed = [(path, ast.parse(source)) for path, source in files.items()]
    assert set(cycle(import_graph(parsed))) == {"a.b", "a.c", "a.d"}
    assert not cycle(import_graph([*parsed[:2], parsed[3]]))


BAD = (
    (leaves_stand_alone, "supernets/space.py", "import ofav2.config.schema"),
    (leaves_stand_alone, "supernets/space.py", "from distill import losses"),
    (leaves_stand_alone, "distill/losses.py", "def f():\n    from supernets.space import Subnet"),
    (leaves_stand_alone, "distill/losses.py", "import importlib\nimportlib.import_module('ofav2.errors')"),
    (packages_import_downwards, "ofav2/config/schema.py", "from ofav2.data import open_data"),
    (packages_import_downwards, "ofav2/config/recipe.py", "from ofav2 import data"),
    (packages_import_downwards, "ofav2/data/__init__.py", "from ofav2.training.phases import plan"),
    (packages_import_downwards, "ofav2/training/step.py", "from ..deploy import extract"),
    (packages_import_downwards, "ofav2/nas/limits.py", "import ofav2.deploy.extract"),
    (packages_import_downwards, "ofav2/training/run.py", "from .. import cli"),
    (packages_import_downwards, "ofav2/training/run.py", "from ofav2 import train"),
    (packages_import_downwards, "ofav2/cellar.py", ""),
    (libraries_have_one_owner, "ofav2/config/schema.py", "from omegaconf import MISSING"),
    (libraries_have_one_owner, "ofav2/training/step.py", "def f():\n    import wandb"),
    (libraries_have_one_owner, "ofav2/training/data.py", "import torchvision.transforms.v2 as v2"),
    (libraries_have_one_owner, "distill/losses.py", "import timm"),
    (libraries_have_one_owner, "ofav2/cli/main.py", "from rich.table import Table"),
    (libraries_have_one_owner, "ofav2/training/step.py", "import torch.distributed as dist"),
    (libraries_have_one_owner, "ofav2/training/run.py", "from torch import distributed"),
    (search_space_is_torch_free, "supernets/space.py", "from torch import nn"),
    (nothing_mutable_is_shared, "a.py", "REGISTRY = {}"),
    (nothing_mutable_is_shared, "a.py", "seen: set[int] = set()"),
    (nothing_mutable_is_shared, "a.py", "import collections\nC = collections.defaultdict(list)"),
    (nothing_mutable_is_shared, "a.py", "try:\n    pass\nexcept OSError:\n    NAMES = ['a']"),
    (nothing_mutable_is_shared, "a.py", "A = (1, [2])"),
    (nothing_mutable_is_shared, "a.py", "A = [i for i in range(3)]"),
    (nothing_mutable_is_shared, "a.py", "class A:\n    class B:\n        sizes = [1]"),
    (nothing_mutable_is_shared, "a.py", "def f():\n    global epoch\n    epoch = 1"),
    (files_run_no_code, "a.py", "import torch\ntorch.load('x')"),
    (files_run_no_code, "a.py", "import torch as t\nt.load('x', weights_only=False)"),
    (files_run_no_code, "a.py", "from torch import load as read\nread('x', weights_only=safe)"),
    (files_run_no_code, "a.py", "from pickle import loads"),
    (files_run_no_code, "a.py", "eval('1')"),
    (files_run_no_code, "a.py", "import yaml\nyaml.load(t, Loader=yaml.SafeLoader)"),
    (files_run_no_code, "a.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    (randomness_has_a_generator, "a.py", "import random"),
    (randomness_has_a_generator, "a.py", "from random import Random\nRandom()"),
    (randomness_has_a_generator, "a.py", "import numpy as np\nnp.random.rand(3)"),
    (randomness_has_a_generator, "a.py", "import torch\ntorch.manual_seed(0)"),
    (randomness_has_a_generator, "a.py", "import torch\ntorch.default_generator.manual_seed(0)"),
    (randomness_has_a_generator, "a.py", "import torch\ntorch.randperm(3)"),
    (public_names_have_docstrings, "a.py", "x = 1"),
    (public_names_have_docstrings, "a.py", "'''A.'''\ndef f(): pass"),
    (public_names_have_docstrings, "a.py", "'''A.'''\nclass A:\n    x = 1"),
    (public_names_have_docstrings, "a.py", "'''A.'''\nclass A:\n    '''A.'''\n    async def f(self): pass"),
    (files_are_opened_in_one_place, "ofav2/runs/state.py", "path.read_bytes()"),
    (files_are_opened_in_one_place, "ofav2/runs/state.py", "with open('a') as file: pass"),
    (files_are_opened_in_one_place, "ofav2/runs/state.py", "(folder / 'a').open('a')"),
    (files_are_opened_in_one_place, "ofav2/data/cache.py", "import numpy as np\nnp.memmap('a')"),
    (only_the_command_line_prints, "ofav2/training/run.py", "print('a')"),
    (only_the_command_line_prints, "supernets/space.py", "import sys\nsys.stderr.write('a')"),
)

GOOD = (
    (leaves_stand_alone, "supernets/registry.py", "from supernets.space import Space\nimport torch"),
    (leaves_stand_alone, "ofav2/training/run.py", "import supernets, distill"),
    (packages_import_downwards, "ofav2/training/step.py", "from ofav2.data import Batch\nfrom . import phases"),
    (packages_import_downwards, "ofav2/config/recipe.py", "from ofav2 import config\nfrom importlib import resources"),
    (
        packages_import_downwards,
        "ofav2/__init__.py",
        "from ofav2.training.run import train\nfrom ofav2.cli.main import main",
    ),
    (libraries_have_one_owner, "ofav2/data/reading.py", "import torchvision"),
    (libraries_have_one_owner, "ofav2/config/recipe.py", "import omegaconf"),
    (search_space_is_torch_free, "supernets/blocks.py", "import torch"),
    (files_are_opened_in_one_place, "ofav2/runs/state.py", "from ofav2 import files\nfiles.read_bytes(path)"),
    (files_are_opened_in_one_place, "ofav2/files.py", "open('a')"),
    (files_are_opened_in_one_place, "ofav2/runs/state.py", "import os\nopen(os.devnull)"),
    (
        nothing_mutable_is_shared,
        "a.py",
        "A = (1, 2)\nB = MappingProxyType({'a': 1})\nC = frozenset({1})\n__all__ = ['A']",
    ),
    (nothing_mutable_is_shared, "a.py", "def f():\n    found = []\n    return found"),
    (nothing_mutable_is_shared, "a.py", "class A:\n    b: dict[str, int] = field(default_factory=dict)"),
    (files_run_no_code, "a.py", "import torch\ntorch.load('x', weights_only=True)\nnet.eval()\nre.compile('x')"),
    (files_run_no_code, "a.py", "import yaml\nyaml.parse(t)\njson.load(f)\ntorch.compile(net)"),
    (
        randomness_has_a_generator,
        "a.py",
        "import torch\nimport numpy as np\nr = np.random.default_rng([1])\nr.random()",
    ),
    (randomness_has_a_generator, "a.py", "from random import Random\nRandom(3).random()"),
    (randomness_has_a_generator, SEEDERS[0], "import torch\ntorch.manual_seed(seed)"),
    (
        randomness_has_a_generator,
        "a.py",
        "import torch\ntorch.randperm(3, generator=torch.Generator())\ntorch.zeros(3)",
    ),
    (public_names_have_docstrings, "a.py", "'''A.'''\ndef _f(): pass\nclass _B:\n    def g(self): pass"),
    (public_names_have_docstrings, "a.py", "'''A.'''\ndef f():\n    '''F.'''\n    def inner(): pass"),
    (only_the_command_line_prints, "ofav2/cli/console.py", "import sys\nsys.stdout.write('a')"),
    (only_the_command_line_prints, "ofav2/training/run.py", "import logging\nlogging.getLogger('a').info('a')"),
)


@pytest.mark.parametrize(("rule", "path", "source"), BAD)
def test_rule_bites(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, ast.parse(source)))


@pytest.mark.parametrize(("rule", "path", "source"), GOOD)
def test_rule_lets_good_sources_be(rule: Rule, path: str, source: str) -> None:
    assert not list(rule(path, ast.parse(source)))


def test_every_rule_has_a_bad_and_a_good_example() -> None:
    assert {rule for rule, _, _ in BAD} == {rule for rule, _, _ in GOOD} == set(RULES)


# What is declared


def declared(extra: str | None = None) -> tuple[Requirement, ...]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    text = setup["options.extras_require"][extra] if extra else setup["options"]["install_requires"]
    return tuple(Requirement(line) for line in text.split("\n") if line.strip() and not line.startswith("#"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_imports_are_declared() -> None:
    """An installation brings all that the packages import, without leaning on what other packages happen to need."""
    needed = {name.split(".")[0] for path, tree in sources() for _, name in imports(path, tree)}
    third_party = needed - set(sys.stdlib_module_names) - set(PACKAGES)
    names = {canonical(requirement.name) for requirement in (*declared(), *declared("eo"))}
    assert {canonical(DISTRIBUTIONS.get(name, name)) for name in third_party} <= names


def test_libraries_of_an_extra_are_imported_where_they_are_used() -> None:
    """Whoever does not read satellite images need not have them: no module imports them when it is loaded."""
    extra = {requirement.name for requirement in declared("eo")}
    for path, tree in sources():
        top = ast.Module([node for node in statements(tree.body) if _imports(node)], [])
        assert not extra & {name.split(".")[0] for _, name in imports(path, top)}, path


def test_every_dependency_has_one_tested_version_in_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    tested = {canonical(name): version for name, version in pins.items()}
    every = (*declared(), *declared("eo"), *declared("dev"))
    needed = {canonical(requirement.name): requirement for requirement in every}
    assert set(tested) == set(needed)
    for name, requirement in needed.items():
        assert requirement.specifier.contains(tested[name]), f"{name}=={tested[name]} is outside {requirement}"


def test_an_installation_carries_every_file() -> None:
    """Setuptools finds folders by their __init__.py, and other files only where setup.cfg names them."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    found = setup["options.packages.find"]["include"].split()
    carried = setup["options.package_data"]
    for package in PACKAGES:
        assert {package, f"{package}.*"} & set(found)
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)} is no package and stays behind"
        others = {path.relative_to(ROOT / package) for path in (ROOT / package).rglob("*") if path.is_file()}
        data = {path for path in others if path.suffix not in (".py", ".pyc")}
        assert data, f"{package} has neither recipes nor the mark of types"
        assert all(any(path.match(pattern) for pattern in carried[package].split()) for path in data), data


# The wall around the tests


@pytest.mark.parametrize("host", ["example.com", "192.0.2.1", "2001:db8::1"])
def test_tests_cannot_reach_the_network(host: str) -> None:
    with pytest.raises(RuntimeError, match="tests use no network"):
        socket.create_connection((host, 80), timeout=0.1)
    with socket.socket() as plain, pytest.raises(RuntimeError, match="tests use no network"):
        plain.connect((host, 80))


def test_tests_can_talk_to_themselves() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
