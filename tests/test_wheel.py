"""The wheel holds all that the package needs: it imports and works where nothing else of the repository is."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
from importlib.metadata import version
from pathlib import Path
import lightning_xai, lightning_xai.report

assert lightning_xai.__file__.startswith(sys.prefix), lightning_xai.__file__
assert version("lightning_xai") == lightning_xai.__version__
assert Path(lightning_xai.__file__).with_name("py.typed").exists()
lightning_xai.report.Results("A run", "Nothing was done.").save(Path())
lightning_xai.report.write_report(Path())
"""


@pytest.mark.slow
def test_a_wheel_imports_and_writes_a_report(tmp_path):
    """In an environment of its own, which has the dependencies of this one but not its `lightning_xai`."""
    pytest.importorskip("setuptools", minversion="77")
    source, wheels, home = tmp_path / "source", tmp_path / "wheels", tmp_path / "environment"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "lightning_xai", source / "lightning_xai", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(home, symlinks=True)
    place = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    with zipfile.ZipFile(next(wheels.glob("lightning_xai-*.whl"))) as wheel:
        wheel.extractall(place)  # which is all that installing a wheel of Python files is
    (place / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run = [home / "bin" / "python", "-W", "ignore", "-c", PROGRAM]
    subprocess.run(run, check=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    assert (tmp_path / "report.html").stat().st_size > 1000
