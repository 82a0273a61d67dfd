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
    "kinds": -1,  # what all others may ask, types too
    "types": 0,
    "files": 0,
    "log_keys": 0,
    "ranks": 0,
    "standard": 0,
    "baselines": 1,
    "images": 1,
    "networks": 1,
    "noise": 1,
    "scores": 1,
    "visualization": 1,
    "panels": 2,
    "trace": 2,
    "metrics": 3,
    "attribution": 3,
    "explain": 4,
    "show": 5,
    "integrity": 5,
    "regularization": 5,
    "callbacks": 6,
    "report": 6,
    "__init__": 7,
    "folders": 8,
    "__main__": 9,
}
MODULES = sorted(PACKAGE.rglob("*.py"))
LOGGERS = {"wandb", "tensorboard", "mlflow"}


HOOKS_AND_MODES = {
    "enable_grad", "eval", "inference_mode", "no_grad", "register_backward_hook", "register_forward_hook",
    "register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook", "register_hook",
    "register_multi_grad_hook", "register_prehook", "requires_grad_", "sdpa_kernel", "set_grad_enabled", "train",
}  # fmt: skip
"""Calls that change a module's or autograd's mode, or leave something on a module, a tensor or a node."""


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> list[str]:
    """Dotted names of what a file imports, relative imports spelt out, and the names that come from a package."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = module_of(path).split(".") + (["__init__"] if path.name == "__init__.py" else [])
            home = ".".join([*start[: len(start) - node.level], *([node.module] if node.module else [])])
            names.append(home if node.level else str(node.module))
    return names


def folders_entered(importing: str, imported: str) -> list[str]:
    """The folders of the package that a module is inside of and the importing one is not."""
    parts = imported.split(".")
    around = [".".join(parts[:end]) for end in range(2, len(parts))]
    return [one for one in around if not f"{importing}.".startswith(f"{one}.")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_to_lower_levels_or_siblings(path):
    """What a part may use is settled by its level, for type checkers, too."""
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports_of(path):
        if name.split(".")[0] == "lightning_xai":
            other = name.split(".")[1] if "." in name else "__init__"
            assert other == part or LEVELS[other] < LEVELS[part], f"{part} imports {name}"


RECIPES = sorted((ROOT / "recipes").rglob("*.py"))


@pytest.mark.parametrize("path", [*MODULES, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_folders_are_entered_by_their_face(path):
    """Nobody outside a folder knows its files: its `__init__` holds all that others use."""
    for name in imports_of(path):
        if name.startswith("lightning_xai."):
            assert not folders_entered(module_of(path), name), name


def test_relative_imports_and_faces_are_seen():
    """The two tests above cannot pass for want of seeing."""
    path = PACKAGE / "report" / "example.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self, encoding=None: "from ..callbacks.base import x\nfrom . import y")
        assert imports_of(path) == ["lightning_xai.callbacks.base", "lightning_xai.report"]
    assert folders_entered("lightning_xai.report.example", "lightning_xai.callbacks.base") == [
        "lightning_xai.callbacks"
    ]
    assert folders_entered("lightning_xai.attribution.cam", "lightning_xai.attribution.lrp.rules") == [
        "lightning_xai.attribution.lrp"
    ]
    assert not folders_entered("lightning_xai.attribution.lrp.rules", "lightning_xai.attribution.base")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_place_for_hooks_modes_and_loggers(path):
    """Hooks and modes belong to trace/, names of loggers to callbacks/loggers.py."""
    if "trace" not in path.relative_to(PACKAGE).parts:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", None) for one in called}
        assert not names & HOOKS_AND_MODES
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
