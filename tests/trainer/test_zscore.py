import json

import numpy as np
import pytest

from trainer.zscore import Zscore


def normaliser(size: int = 2, half_life_rows: float | None = None, warm_up_rows: int = 2, min_variance: float = 1e-6) -> Zscore:
    return Zscore(size, half_life_rows=half_life_rows, warm_up_rows=warm_up_rows, clip=5.0, min_variance=min_variance)


def test_mean_and_variance_of_any_cut_into_batches_are_those_of_all_rows() -> None:
    rows = np.random.default_rng(1).normal([5.0, 1e6], [2.0, 0.5], (1000, 2)).astype(np.float32)
    whole = rows.astype(np.float64)
    for cuts in ([], [1], [1, 2, 3, 500], list(range(1, 1000, 7))):
        zscore = normaliser()
        for part in np.split(rows, cuts):
            zscore.update(part)
        constants = zscore.constants()
        np.testing.assert_allclose(constants.mean_N, whole.mean(0), rtol=1e-12)
        np.testing.assert_allclose(constants.std_N, whole.std(0), rtol=1e-9)


def test_a_row_counts_half_after_its_half_life_however_the_rows_are_cut() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]
    weights = 2.0 ** (-np.arange(7, -1, -1) / 3.0)
    mean = (weights * rows[:, 0]).sum() / weights.sum()
    variance = (weights * np.square(rows[:, 0] - mean)).sum() / weights.sum()
    for cuts in ([], [1], [3, 5], [1, 2, 3, 4, 5, 6, 7]):
        zscore = normaliser(1, half_life_rows=3.0)
        for part in np.split(rows, cuts):
            zscore.update(part)
        assert zscore.constants().mean_N == pytest.approx(mean, rel=1e-12)
        assert zscore.constants().std_N == pytest.approx(variance**0.5, rel=1e-12)


def test_old_rows_are_forgotten_when_a_feature_drifts() -> None:
    zscore = normaliser(1, half_life_rows=10.0)
    zscore.update(np.zeros((100, 1), np.float32))
    zscore.update(np.full((200, 1), 7.0, np.float32))
    assert zscore.constants().mean_N == pytest.approx(7.0, abs=1e-4)


def test_features_pass_as_they_are_but_clipped_until_the_warm_up_is_over() -> None:
    zscore = normaliser(1, warm_up_rows=3)
    zscore.update(np.array([[10.0], [20.0]], np.float32))
    assert not zscore.is_warm
    assert zscore.constants()(np.array([[3.0], [-100.0]], np.float32)).tolist() == [[3.0], [-5.0]]
    zscore.update(np.array([[30.0]], np.float32))
    assert zscore.is_warm
    assert zscore.constants()(np.array([[20.0], [1000.0]], np.float32)).tolist() == [[0.0], [5.0]]


def test_a_constant_feature_becomes_zero_and_no_division_by_zero() -> None:
    zscore = normaliser(1, min_variance=1e-4)
    zscore.update(np.full((5, 1), 3.0, np.float32))
    assert zscore.constants().std_N.tolist() == [0.01]
    assert zscore.constants()(np.array([[3.0]], np.float32)).tolist() == [[0.0]]


def test_large_values_with_a_small_spread_keep_their_digits() -> None:
    zscore = normaliser(1)
    zscore.update(np.array([[2.0**23], [2.0**23 + 2.0]], np.float32))
    assert zscore.constants()(np.array([[2.0**23 + 2.0]], np.float32)).tolist() == [[1.0]]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_and_change_nothing(wrong: float) -> None:
    zscore = normaliser(1)
    zscore.update(np.ones((3, 1), np.float32))
    before = zscore.state_dict()
    with pytest.raises(ValueError, match="finite"):
        zscore.update(np.array([[1.0], [wrong]], np.float32))
    assert zscore.state_dict() == before


def test_the_state_survives_json_bit_for_bit() -> None:
    rng = np.random.default_rng(2)
    first = normaliser(2, half_life_rows=50.0)
    first.update(rng.normal(size=(33, 2)).astype(np.float32))
    second = normaliser(2, half_life_rows=50.0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    later = rng.normal(size=(10, 2)).astype(np.float32)
    first.update(later)
    second.update(later)
    assert first.state_dict() == second.state_dict()


def test_an_empty_batch_changes_nothing() -> None:
    zscore = normaliser()
    zscore.update(np.zeros((0, 2), np.float32))
    assert (zscore.rows, zscore.weight) == (0, 0.0)
