"""The API reference is made of the docstrings without a warning, and names in backticks are names of something."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import lightning_xai

PACKAGE = Path(lightning_xai.__file__).parent
ROOMS = "attribution baselines callbacks integrity metrics noise regularization report scores trace types visualization"
FACES = ["lightning_xai", *(f"lightning_xai.{name}" for name in ROOMS.split())]
"""What `pdoc -d google -o build/docs lightning_xai lightning_xai.{attribution,...}` is given."""
NAMED = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)")


def test_the_reference_is_built_without_a_warning(tmp_path):
    """A page for each room, with all public names; warnings are errors here."""
    pdoc = pytest.importorskip("pdoc", reason="the extra `docs` is not installed")
    pdoc.render.configure(docformat="google", search=False)
    pdoc.pdoc(*FACES, output_directory=tmp_path)
    page = (tmp_path / "lightning_xai.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in lightning_xai.__all__)
    pages = {".".join(path.relative_to(tmp_path).with_suffix("").parts) for path in tmp_path.rglob("*.html")}
    assert pages >= set(FACES)


def unknown_names(source: str, module: object, public: set[str]) -> list[str]:
    """Names in backticks of a file's docstrings that nothing there, nothing around it and nothing public has."""
    unknown = []

    def look(node: ast.AST, thing: object, around: set[str]) -> None:
        text = (ast.get_docstring(node) or "").partition("Example:")[0]
        documented = set(re.findall(r"^ +(\w+): ", text, re.MULTILINE))
        arguments = {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
        around = around | set(dir(thing)) | documented | (set() if isinstance(node, ast.Module) else arguments)
        unknown.extend(name for name in NAMED.findall(text) if not known(name, around))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                look(child, getattr(thing, child.name, None), around)

    look(ast.parse(source), module, public)
    return unknown


def known(name: str, around: set[str]) -> bool:
    """Whether a name is around, or the full name of something that can be imported."""
    first, _, rest = name.partition(".")
    if first in around:
        return True
    try:
        thing = importlib.import_module(name.rpartition(".")[0] or name)
    except ImportError:
        return False
    return not rest or hasattr(thing, name.rpartition(".")[2])


def test_names_in_backticks_are_there():
    """Else the reference shows a name that a reader cannot find."""
    public = {name for face in FACES for name in dir(importlib.import_module(face)) if not name.startswith("_")}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        assert not unknown_names(path.read_text(encoding="utf-8"), importlib.import_module(name), public), name


def test_unknown_names_are_seen():
    """The test above cannot pass for want of seeing."""
    source = (
        '"""Like `GradCAM`, `torch.nn.Module` and `torch.nn.Modul`, not `GrradCAM`."""\ndef f(x):\n    """Of `x`."""'
    )
    assert unknown_names(source, object(), {"GradCAM"}) == ["torch.nn.Modul", "GrradCAM"]
