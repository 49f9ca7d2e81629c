import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer.zscore import BLOCK_ROWS, Zscore

VALUES = st.one_of(st.floats(-1e6, 1e6, width=32), st.just(float("nan")))
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=VALUES)
CUTS = st.lists(st.integers(0, 60), max_size=8).map(sorted)


def normaliser(size: int = 2, half_life_rows: float | None = None, warm_up_rows: int = 1, min_variance: float = 1e-12) -> Zscore:
    return Zscore(size, half_life_rows=half_life_rows, warm_up_rows=warm_up_rows, clip=5.0, min_variance=min_variance)


def fed(parts: list[np.ndarray], half_life_rows: float | None = None) -> Zscore:
    zscore = normaliser(parts[0].shape[1], half_life_rows)
    for part in parts:
        zscore.update(part)
    return zscore


def closed_form(parts: list[np.ndarray], half_life_rows: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in two passes over all values, each with the weight that the docstring of zscore.py gives it."""
    means, stds = [], []
    for feature in range(parts[0].shape[1]):
        batches = [part[~np.isnan(part[:, feature]), feature].astype(np.float64) for part in parts]
        later = np.cumsum([0, *(len(batch) for batch in batches[::-1])])[-2::-1]
        weights = [
            np.full(len(batch), 1.0 if half_life_rows is None else 2.0 ** (-after / half_life_rows))
            for batch, after in zip(batches, later, strict=True)
        ]
        values, weight = np.concatenate(batches), np.concatenate(weights)
        mean = (weight * values).sum() / weight.sum() if len(values) else 0.0
        variance = (weight * np.square(values - mean)).sum() / weight.sum() if len(values) else 1.0
        means.append(mean)
        stds.append(np.sqrt(max(variance, 1e-12)))
    return np.array(means), np.array(stds)


def assert_equal(zscore: Zscore, mean: np.ndarray, std: np.ndarray) -> None:
    constants = zscore.constants()
    scale = np.maximum(np.abs(mean), std)
    np.testing.assert_allclose(constants.mean_N, mean, rtol=0, atol=1e-9 * scale.max())
    np.testing.assert_allclose(np.square(constants.std_N), np.square(std), rtol=1e-9, atol=1e-15 * np.square(scale).max())


@given(ROWS, CUTS)
@example(np.random.default_rng(1).normal([5.0, 1e6], [2.0, 0.5], (3 * BLOCK_ROWS + 1, 2)).astype(np.float32), [7, 700])
def test_any_cut_into_batches_gives_the_two_pass_result_of_all_rows(rows: np.ndarray, cuts: list[int]) -> None:
    assert_equal(fed(np.split(rows, cuts)), *closed_form([rows], None))


@given(ROWS, CUTS, st.floats(0.5, 1e4))
def test_with_forgetting_a_value_counts_half_after_half_life_later_ones(rows: np.ndarray, cuts: list[int], half_life: float) -> None:
    parts = np.split(rows, cuts)
    assert_equal(fed(parts, half_life), *closed_form(parts, half_life))


def test_the_order_of_the_rows_within_a_batch_has_no_effect() -> None:
    rng = np.random.default_rng(3)
    before, batch = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(7, 3, size=(900, 3)).astype(np.float32)
    first, second = fed([before, batch], 100.0).constants(), fed([before, rng.permutation(batch)], 100.0).constants()
    np.testing.assert_allclose(first.mean_N, second.mean_N, rtol=1e-13)
    np.testing.assert_allclose(first.std_N, second.std_N, rtol=1e-13)


def test_old_rows_are_forgotten_when_a_feature_drifts() -> None:
    zscore = normaliser(1, half_life_rows=10.0)
    zscore.update(np.zeros((100, 1), np.float32))
    zscore.update(np.full((200, 1), 7.0, np.float32))
    assert zscore.constants().mean_N == pytest.approx(7.0, abs=1e-4)


def test_a_missing_value_changes_nothing_and_becomes_the_mean() -> None:
    zscore = normaliser(2, half_life_rows=5.0)
    zscore.update(np.array([[1.0, 10.0], [3.0, 30.0]], np.float32))
    before = zscore.state_dict()
    zscore.update(np.array([[np.nan, 20.0]] * 50, np.float32))
    after = zscore.state_dict()
    assert [column[0] for column in after.values()] == [column[0] for column in before.values()]  # type: ignore[index]
    assert after["seen"] == [2, 52]
    assert zscore.constants()(np.array([[np.nan, np.nan], [3.0, 20.0]], np.float32))[:, 0].tolist() == [0.0, 1.0]


def test_a_feature_that_is_missing_everywhere_stays_as_it_is() -> None:
    zscore = normaliser(2)
    zscore.update(np.array([[np.nan, 1.0], [np.nan, 3.0]], np.float32))
    constants = zscore.constants()
    assert (constants.mean_N.tolist(), constants.std_N.tolist()) == ([0.0, 2.0], [1.0, 1.0])


def test_each_feature_passes_as_it_is_but_clipped_until_its_own_warm_up_is_over() -> None:
    zscore = normaliser(2, warm_up_rows=3)
    zscore.update(np.array([[10.0, 1.0], [20.0, np.nan]], np.float32))
    assert zscore.constants()(np.array([[3.0, 4.0], [-100.0, 100.0]], np.float32)).tolist() == [[3.0, 4.0], [-5.0, 5.0]]
    zscore.update(np.array([[30.0, np.nan]], np.float32))
    assert zscore.constants()(np.array([[20.0, 4.0], [1000.0, -9.0]], np.float32)).tolist() == [[0.0, 4.0], [5.0, -5.0]]


def test_a_constant_feature_becomes_zero_and_no_division_by_zero() -> None:
    zscore = normaliser(1, min_variance=1e-4)
    zscore.update(np.full((5, 1), 3.0, np.float32))
    assert zscore.constants().std_N.tolist() == [0.01]
    assert zscore.constants()(np.array([[3.0]], np.float32)).tolist() == [[0.0]]


def test_large_values_with_a_small_spread_keep_their_digits() -> None:
    zscore = normaliser(1)
    zscore.update(np.array([[2.0**23], [2.0**23 + 2.0]], np.float32))
    assert zscore.constants()(np.array([[2.0**23 + 2.0]], np.float32)).tolist() == [[1.0]]


@pytest.mark.parametrize("wrong", [np.inf, -np.inf])
@pytest.mark.parametrize("row", [1, BLOCK_ROWS + 1])
def test_rows_with_infinite_values_are_refused_and_change_nothing(wrong: float, row: int) -> None:
    zscore = normaliser(2)
    zscore.update(np.ones((3, 2), np.float32))
    before = zscore.state_dict()
    rows = np.ones((BLOCK_ROWS + 5, 2), np.float32)
    rows[row, 1] = wrong
    with pytest.raises(ValueError, match="finite"):
        zscore.update(rows)
    assert zscore.state_dict() == before


def test_the_state_survives_json_bit_for_bit() -> None:
    rng = np.random.default_rng(2)
    first, second = normaliser(2, half_life_rows=50.0), normaliser(2, half_life_rows=50.0)
    first.update(rng.normal(size=(33, 2)).astype(np.float32))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    later = rng.normal(size=(10, 2)).astype(np.float32)
    first.update(later)
    second.update(later)
    assert first.state_dict() == second.state_dict()


def test_an_empty_batch_changes_nothing() -> None:
    zscore = normaliser()
    before = zscore.state_dict()
    zscore.update(np.zeros((0, 2), np.float32))
    assert zscore.state_dict() == before
