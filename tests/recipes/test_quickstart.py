"""The notebook for beginners: it runs, and what is shown of it is small and came from a run without a remark."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent.parent / "recipes" / "quickstart.ipynb"


def test_the_outputs_that_are_shown_are_small_and_clean():
    """Pictures and numbers of one run, in order."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not {output.get("name") for output in outputs} & {"stderr"}
    assert len(text) < 300_000
    assert "/tmp" not in text.replace("tempfile", "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_runs_from_the_first_cell_to_the_last():
    """In the folder of the recipes, as its first cell says."""
    nbclient = pytest.importorskip("nbclient", reason="the extra `notebook` is not installed")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    texts = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "val/xai/gradcam/AverageDrop" in texts
