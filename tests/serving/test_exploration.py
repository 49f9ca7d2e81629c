from itertools import pairwise

import numpy as np
import pytest

from schemas.action import ActionDimension, ActionSpec
from serving.exploration import Exploration
from serving.split import is_baseline, position

ONE = ActionSpec(dimensions=(ActionDimension(name="a", objective="pay", low=-1.0, high=3.0),))
THREE = ActionSpec(
    dimensions=(
        ActionDimension(name="a", objective="pay", low=-1.0, high=3.0),
        ActionDimension(name="b", objective="click", low=0.0, high=2.0),
        ActionDimension(name="c", objective="like", low=0.5, high=1.5),
    )
)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("mean", [-1.0, -0.99, 1.0, 2.7, 3.0])
def test_the_density_integrates_to_one_over_the_bounds(sigma: float, mean: float) -> None:
    exploration = Exploration(ONE, sigma)
    grid = np.linspace(-1.0, 3.0, 20_001)
    density = np.array([exploration.density([value], [mean]) for value in grid])
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)
    assert exploration.density([3.0001], [mean]) == exploration.density([-1.0001], [mean]) == 0.0


@pytest.mark.parametrize("mean", [-1.0, 0.2, 3.0])
def test_a_histogram_of_samples_has_the_shape_of_the_density(mean: float) -> None:
    exploration = Exploration(ONE, 0.4)
    generator = np.random.default_rng(5)
    samples = [exploration.sample([mean], generator)[0][0] for _ in range(20_000)]
    counts, edges = np.histogram(samples, bins=20, range=(-1.0, 3.0))
    inner = np.array([[exploration.density([value], [mean]) for value in np.linspace(low, high, 41)] for low, high in pairwise(edges)])
    expected = 20_000 * np.trapezoid(inner, dx=0.2 / 40, axis=1)
    deviation = (counts - expected) ** 2 / np.maximum(expected, 1.0)
    assert deviation.sum() < 45.3  # chi-square, 20 degrees of freedom, p = 0.001


def test_the_propensity_given_is_the_density_of_the_action_given() -> None:
    exploration, generator = Exploration(THREE, 0.3), np.random.default_rng(1)
    mean = [2.9, 1.0, 0.5]
    for _ in range(200):
        action, propensity = exploration.sample(mean, generator)
        assert propensity == pytest.approx(exploration.density(action, mean), rel=1e-12)
        assert propensity == pytest.approx(
            np.prod(
                [
                    Exploration(ActionSpec(dimensions=(d,)), 0.3).density([a], [m])
                    for d, a, m in zip(THREE.dimensions, action, mean, strict=True)
                ]
            )
        )
        assert all(low <= value <= high for value, low, high in zip(action, THREE.low, THREE.high, strict=True))


def test_without_noise_the_action_is_the_mean_and_certain() -> None:
    assert Exploration(THREE, 0.0).sample([0.0, 1.0, 1.5], np.random.default_rng(0)) == ([0.0, 1.0, 1.5], 1.0)


def test_one_generator_state_gives_one_action() -> None:
    exploration = Exploration(THREE, 0.3)
    first, second = (exploration.sample([0.0, 1.0, 1.0], np.random.default_rng(9)) for _ in range(2))
    assert first == second
    assert first != exploration.sample([0.0, 1.0, 1.0], np.random.default_rng(10))


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_a_sigma_that_is_no_width_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="explore_sigma must be zero or more"):
        Exploration(ONE, sigma)


def test_a_density_that_no_number_holds_is_refused_at_the_start() -> None:
    many = ActionSpec(dimensions=tuple(ActionDimension(name=f"a{n}", objective=f"o{n}") for n in range(200)))
    with pytest.raises(ValueError, match="the density of 200 dimensions"):
        Exploration(many, 0.01)


def test_the_split_is_stable_and_its_share_is_what_was_asked_for() -> None:
    assert position("u-42", "headrace") == 0.7296653132809896  # a change here would move users between the arms
    share = sum(is_baseline(f"u-{n}", 0.2, "headrace") for n in range(20_000)) / 20_000
    assert share == pytest.approx(0.2, abs=0.01)
    assert not any(is_baseline(f"u-{n}", 0.0, "headrace") for n in range(1000))
    assert all(is_baseline(f"u-{n}", 1.0, "headrace") for n in range(1000))


def test_a_larger_share_keeps_the_users_of_a_smaller_one_and_another_salt_does_not() -> None:
    users = [f"u-{n}" for n in range(2000)]
    small = {user for user in users if is_baseline(user, 0.1, "headrace")}
    assert small < {user for user in users if is_baseline(user, 0.3, "headrace")}
    assert small != {user for user in users if is_baseline(user, 0.1, "other")}
