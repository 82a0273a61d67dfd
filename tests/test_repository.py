"""The repository's own rules: layers of the package, public names, style, types, and what importing it loads."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_xai

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightning_xai"
LEVELS = {
    "types": 0,
    "noise": 1,
    "scores": 1,
    "visualization": 1,
    "trace": 2,
    "metrics": 2,
    "attribution": 3,
    "explain": 4,
    "integrity": 5,
    "regularization": 5,
    "callbacks": 6,
    "report": 6,
    "__init__": 7,
}
MODULES = sorted(PACKAGE.rglob("*.py"))
LOGGERS = {"wandb", "tensorboard", "mlflow"}


def part_of(module: str) -> str:
    """The folder or file of the package that a dotted name belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> list[str]:
    """Dotted names imported by a file, those for type checkers only left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = [node for node in ast.walk(tree) if id(node) not in only_typing]
    froms = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return froms + [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_to_lower_levels_or_siblings(path):
    """What a part may use is settled by its level."""
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports_of(path):
        if name.split(".")[0] == "lightning_xai":
            other = part_of(name)
            assert other == part or LEVELS[other] < LEVELS[part], f"{part} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_place_for_hooks_modes_and_loggers(path):
    """Hooks and modes belong to trace/, names of loggers to callbacks/loggers.py."""
    text = path.read_text(encoding="utf-8")
    if "trace" not in path.relative_to(PACKAGE).parts:
        for call in ("register_forward", "register_full", "register_prehook", "enable_grad", "no_grad()", ".eval()"):
            assert f"{call}" not in text.replace("torch.no_grad()``", ""), call
    if path.name != "loggers.py":
        assert not LOGGERS & {name.split(".")[0] for name in imports_of(path)}


def test_public_names_are_documented_and_there():
    """No name without a docstring; that the list is sorted is ruff's to see."""
    for name in lightning_xai.__all__:
        assert getattr(lightning_xai, name).__doc__, name


def test_public_callables_have_examples():
    """An Example that runs as a doctest, in the docstring of each public name; abstract bases aside."""
    for name in set(lightning_xai.__all__) - {"Attribution"}:
        assert ">>> " in getattr(lightning_xai, name).__doc__, name


def test_importing_loads_no_logger_and_little_else():
    """Nothing but what pytorch-lightning (both packages, where installed) and torchmetrics load themselves."""
    program = """
import sys
{imports}
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    theirs = "import pytorch_lightning, torchmetrics, torchvision, matplotlib.figure, matplotlib.backends.backend_agg"
    if importlib.util.find_spec("lightning"):
        theirs += ", lightning.pytorch"

    def loaded(imports):
        run = [sys.executable, "-W", "ignore", "-c", program.format(imports=imports)]
        return set(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split())

    ours = loaded("import lightning_xai")
    assert ours - loaded(theirs) == {"lightning_xai"}
    assert not ours & LOGGERS


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_style_and_types(command):
    """Settings are in pyproject.toml."""
    run = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
