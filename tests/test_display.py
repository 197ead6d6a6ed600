"""Tables read from right to left; claims are printed with their verdicts."""

import pandas as pd
import pytest

from gate_lessons.display import claims, rtl_table


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
