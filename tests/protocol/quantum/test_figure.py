"""Charts: well-formed, everything inside the frame, and zeros of a logarithmic axis left out."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.quantum.figure import HEIGHT, WIDTH, Series, chart, rate_chart
from protocol.quantum.link import LinkParameters
from protocol.quantum.plan import rate_against_distance

VALUES = st.lists(st.floats(0, 1e9), min_size=1, max_size=20)


@given(VALUES, st.booleans(), st.booleans(), st.booleans())
def test_any_series_gives_a_chart_inside_its_frame(values, points, log_x, log_y):
    series = [Series("a < b & c", range(len(values)), values, points, [v / 10 for v in values])]
    document = chart("title", "x", "y", series, log_x, log_y)
    root = ElementTree.fromstring(document)
    assert root.tag.endswith("svg")
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', document):
        assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT


def test_zero_breaks_a_logarithmic_line():
    document = chart("t", "x", "y", [Series("", [1, 2, 3, 4, 5], [10, 100, 0, 10, 100])], log_y=True)
    assert document.count("<polyline") == 2


@pytest.mark.parametrize("lengths", [[0.0, 25.0, 50.0], [10.0]])
def test_rate_chart_of_plans(lengths):
    plans = rate_against_distance(LinkParameters(), lengths, 10**9)
    assert "secret bits per second" in rate_chart([("1e9", lengths, plans)])
