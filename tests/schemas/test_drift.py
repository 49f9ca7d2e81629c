import math

import numpy as np
import pytest

from schemas.drift import BINS, dense_reference, stability_index


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_the_index_is_the_sum_over_deciles_computed_by_hand() -> None:
    reference = dense_reference(column(*range(100)))
    assert reference.edges == [[10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]]
    assert reference.shares[0] == pytest.approx([10.5 / 105.5] * 10 + [0.5 / 105.5])
    moved = stability_index(reference, column(*[5.0] * 20, *[95.0] * 30))  # 20 in the first bin, 30 in the last
    p = [20.5 / 55.5, *[0.5 / 55.5] * 8, 30.5 / 55.5, 0.5 / 55.5]
    assert moved.tolist() == pytest.approx([sum((a - b) * math.log(a / b) for a, b in zip(p, reference.shares[0], strict=True))])


def test_new_rows_of_the_same_population_are_stable_and_a_shift_by_half_a_deviation_is_not() -> None:
    rng = np.random.default_rng(0)
    reference = dense_reference(rng.normal(50, 10, (4096, 3)).astype(np.float32))
    rows = rng.normal(50, 10, (2000, 3)).astype(np.float32) + np.array([0.0, 0.0, 6.0], np.float32)
    psi = stability_index(reference, rows)
    assert psi[:2].max() < 0.03
    assert psi[2] > 0.25


def test_values_that_go_missing_are_drift() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(1000, 2)).astype(np.float32)
    reference = dense_reference(rows)
    later = rng.normal(size=(1000, 2)).astype(np.float32)
    later[::3, 1] = np.nan
    psi = stability_index(reference, later)
    assert psi[0] < 0.05
    assert psi[1] > 0.25


def test_constant_and_absent_features_give_finite_figures() -> None:
    rows = np.tile(np.array([[3.0, np.nan]], np.float32), (500, 1))
    reference = dense_reference(rows)
    assert np.abs(stability_index(reference, rows)).max() < 0.01
    assert np.isfinite(stability_index(reference, np.tile(np.array([[4.0, 1.0]], np.float32), (500, 1)))).all()


def test_no_feature_and_one_row_are_no_special_case() -> None:
    nothing = dense_reference(np.zeros((5, 0), np.float32))
    assert (nothing.edges, nothing.shares, stability_index(nothing, np.zeros((4, 0), np.float32)).tolist()) == ([], [], [])
    assert len(dense_reference(column(1.0)).shares[0]) == BINS
