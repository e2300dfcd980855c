"""Invariants of the encoding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.space import SearchSpace
from orchestrator.studyfile import CategoricalParameter, FloatParameter, IntParameter, Parameter


@st.composite
def floats(draw: st.DrawFn) -> FloatParameter:
    is_log = draw(st.booleans())
    low = draw(st.floats(1e-6, 1e3) if is_log else st.floats(-1e3, 1e3))
    high = low * draw(st.floats(1.01, 1e6)) if is_log else low + draw(st.floats(1e-2, 1e4))
    return FloatParameter(type="float", low=low, high=high, log=is_log)


@st.composite
def ints(draw: st.DrawFn) -> IntParameter:
    is_log = draw(st.booleans())
    low = draw(st.integers(1 if is_log else -1000, 1000))
    step = 1 if is_log else draw(st.integers(1, 7))
    return IntParameter(type="int", low=low, high=low + draw(st.integers(step, 5000)), step=step, log=is_log)


choices = st.lists(st.integers(-5, 5) | st.text(max_size=3), min_size=1, max_size=5, unique=True).map(
    lambda values: CategoricalParameter(type="categorical", choices=tuple(values))
)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    parameters: dict[str, Parameter] = {"first": draw(floats() | ints())}
    for index in range(draw(st.integers(0, 4))):
        parameters[f"p{index}"] = draw(floats() | ints() | choices)
    return SearchSpace.from_parameters(parameters)


def points(space: SearchSpace, seed: int, n: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # Half of them uniform, half on the corners, where clipping and rounding go wrong first.
    return np.concatenate([rng.random((n, space.dim)), rng.integers(0, 2, (n, space.dim))])


@given(spaces(), st.integers(0, 2**32 - 1))
def test_decoding_an_encoding_gives_the_same_parameters(space: SearchSpace, seed: int) -> None:
    for point in points(space, seed):
        params = space.decode(point)
        assert space.decode(space.encode(params)) == params


@given(spaces(), st.integers(0, 2**32 - 1))
def test_an_encoding_lies_in_the_unit_cube_and_snapping_leaves_it_there(space: SearchSpace, seed: int) -> None:
    for point in points(space, seed):
        encoded = space.encode(space.decode(point))
        assert encoded.shape == (space.dim,)
        assert np.all((encoded >= 0) & (encoded <= 1))
        np.testing.assert_allclose(space.snap(encoded[None, :])[0], encoded, atol=1e-9)


@given(spaces(), st.integers(0, 2**32 - 1))
def test_snapping_is_encoding_the_decoded_point(space: SearchSpace, seed: int) -> None:
    rows = points(space, seed)
    expected = np.array([space.encode(space.decode(row)) for row in rows])
    # Real numbers are kept to ten digits of the larger end of their range; a range a thousandth of that loses three.
    np.testing.assert_allclose(space.snap(rows), expected, atol=1e-4)


@given(spaces(), st.integers(0, 2**32 - 1))
def test_every_quantile_is_a_candidate(space: SearchSpace, seed: int) -> None:
    quantiles = np.random.default_rng(seed).random((8, len(space.names)))
    rows = space.at_quantiles(quantiles)
    np.testing.assert_allclose(space.snap(rows), rows, atol=1e-9)


@given(spaces(), st.integers(0, 2**32 - 1))
def test_decoded_values_are_allowed_by_the_distributions(space: SearchSpace, seed: int) -> None:
    distributions = space.distributions()
    for point in points(space, seed):
        for name, value in space.decode(point).items():
            assert distributions[name]._contains(distributions[name].to_internal_repr(value))


@given(spaces(), st.integers(0, 2**32 - 1))
def test_many_points_decode_as_each_of_them_does(space: SearchSpace, seed: int) -> None:
    rows = points(space, seed)
    columns = space.decode_all(rows)
    assert set(columns) == set(space.decode(rows[0]))
    for index, row in enumerate(rows):
        for name, value in space.decode(row).items():
            found = columns[name][index]
            if isinstance(value, float):
                np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-9)
            else:
                assert found == value
