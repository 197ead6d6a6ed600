"""Tables read from right to left; claims are printed with their verdicts; sliders leave a picture behind."""

import re
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from gate_lessons.display import claims, rtl_table, sliders
from gate_lessons.report import to_html

WIDGET = "application/vnd.jupyter.widget-view+json"


def test_a_table_reads_from_right_to_left_and_keeps_its_cells():
    html = rtl_table(pd.DataFrame({"الجملة": ["البيت كبير", "الدار واسعة"], "s": [0.12345, 1.0]}), rows=1).data
    assert html.startswith('<div dir="rtl"')
    assert "البيت كبير" in html
    assert "الدار" not in html
    assert "0.123<" in html


def test_markup_inside_a_sentence_stays_text():
    assert "<b>" not in rtl_table(pd.DataFrame({"s": ["<b>نص</b>"]})).data


def test_claims_are_printed_and_asserted_only_where_strict(capsys):
    verdicts = {"1 < 2": True, "2 < 1": False}
    claims(verdicts, strict=False)
    assert capsys.readouterr().out == "holds: 1 < 2\ndoes not hold: 2 < 1\n"
    with pytest.raises(AssertionError, match="2 < 1"):
        claims(verdicts, strict=True)


def picture(calls):
    """A `draw` that notes what it is called with."""

    def draw(**values):
        calls.append(values)
        figure, ax = plt.subplots()
        ax.plot([0, values["x"]])
        return figure

    return draw


def test_a_slider_that_moves_redraws_the_picture_with_every_value():
    calls = []
    panel = sliders(picture(calls), x=(0, 2, 0.5, 1), margin=(0, 1, 0.1, 0.3))
    assert calls == [{"x": 1, "margin": 0.3}]
    x, margin, shown, _ = panel.box.children
    assert (x.description, x.min, x.max, x.step, x.value) == ("x", 0, 2, 0.5, 1)
    before = bytes(shown.value)
    assert before == panel.picture
    x.value = 2
    margin.value = 0.7
    assert calls[1:] == [{"x": 2, "margin": 0.3}, {"x": 2, "margin": 0.7}]
    assert bytes(shown.value).startswith(b"\x89PNG")
    assert bytes(shown.value) != before
    assert plt.get_fignums() == []


def test_a_picture_drawn_with_pyplot_needs_no_return():
    assert sliders(lambda x: plt.plot([0, x]), x=(0, 2, 1, 1)).picture.startswith(b"\x89PNG")
    assert plt.get_fignums() == []


def test_a_slider_cannot_start_outside_its_range_and_must_draw():
    with pytest.raises(ValueError, match=r"slider margin goes from 0 to 0\.6, so it cannot start at 0\.9"):
        sliders(picture([]), margin=(0, 0.6, 0.1, 0.9))
    with pytest.raises(ValueError, match="made no picture"):
        sliders(lambda x: None, x=(0, 1, 1, 0))


class ForAReader(NotebookClient):
    """A client that can ask its reader for input, as JupyterLab can; nbclient itself cannot."""

    async def async_start_new_kernel_client(self, **kwargs):
        client = await super().async_start_new_kernel_client(**kwargs)
        client.allow_stdin = True
        return client


CELL = """import matplotlib.pyplot as plt
from gate_lessons.display import sliders
sliders(lambda x: plt.plot([0, x]), x=(0, 2, 1, 1))"""


@pytest.mark.parametrize("client", [NotebookClient, ForAReader])
def test_where_nobody_moves_a_slider_its_picture_is_shown_and_nothing_fetched(client, tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    # JupyterLab saves no state of widgets unless asked to; nbclient does, of every widget that it sees opened.
    client(book, kernel_name="python3", store_widget_state=client is NotebookClient).execute()
    (output,) = book.cells[0].outputs
    assert (WIDGET in output.data) == (client is ForAReader)
    assert output.data["text/plain"] == "picture at x = 1; JupyterLab shows sliders"
    assert "widgets" not in book.metadata
    nbformat.write(book, tmp_path / "sliders.ipynb")
    to_html(tmp_path / "sliders.ipynb", tmp_path / "sliders.html")
    page = (tmp_path / "sliders.html").read_text("utf-8")
    assert "data:image/png;base64," + output.data["image/png"].replace("\n", "") in page.replace("\n", "")
    assert [script for script in re.findall("<script.*?</script>", page, re.DOTALL) if "//unpkg" in script] == []
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', page)


def test_widgets_are_imported_only_where_they_are_shown():
    code = "import sys, gate_lessons.display; assert not {'ipywidgets', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
