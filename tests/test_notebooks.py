import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LOCAL = re.compile(
    r"(?<![\w/.])/(tmp|root|home|usr|Users|var|opt|work)/\w|ipykernel_\d|site-packages/"
)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def strings(value):
    """All text in a JSON value, base64 pictures left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield "".join(v for v in value if isinstance(v, str))
        for item in value:
            if not isinstance(item, str):
                yield from strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not key.startswith("image/"):
                yield from strings(item)


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_was_run_from_the_first_cell_to_the_last(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_keeps_its_outputs_and_its_pictures(notebook):
    kinds = {kind for output in outputs(notebook) for kind in output.get("data", ())}
    assert "image/png" in kinds


def test_shows_no_error_and_no_warning(notebook):
    for output in outputs(notebook):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"


def test_names_no_place_of_the_machine_that_ran_it(notebook):
    found = [match.group() for text in strings(notebook) for match in LOCAL.finditer(text)]
    assert not found


def test_runs_on_whatever_python_there_is(notebook):
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_small_enough_to_be_read_on_the_web(path):
    assert path.stat().st_size < 1_000_000
