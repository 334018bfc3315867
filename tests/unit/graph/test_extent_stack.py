"""Extents evaluated together against each on its own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dse.graph.extent import Extent, ExtentStack

POWERS = st.tuples(*(st.integers(0, 2),) * 3)
EXTENTS = st.dictionaries(POWERS, st.floats(-10, 10), max_size=4).map(Extent.of)


@given(extents=st.lists(EXTENTS, max_size=5), batch=st.integers(1, 9), query=st.integers(1, 9))
def test_a_stack_equals_its_extents(extents, batch, query):
    sizes = (np.array([1.0, batch]), float(query), 7.0)
    found = ExtentStack.of(extents)(*sizes)
    assert found.shape == (2, len(extents))
    for column, extent in enumerate(extents):
        np.testing.assert_allclose(found[:, column], extent(*sizes), rtol=1e-12, atol=1e-9)
