import math
import random

import pytest

from schemas.action import ActionDimension, ActionSpec
from serving.fusion import WrongScoresError, fuse, rank, score_matrix

MEITUAN = ActionSpec(beta=0.5)  # p_click * p_pay ** (0.5 * a)
TWO = ActionSpec(dimensions=(ActionDimension(name="c", objective="click"), ActionDimension(name="p", objective="pay")))
SUM = ActionSpec(fusion="weighted_sum", dimensions=TWO.dimensions)


@pytest.mark.parametrize(
    ("spec", "action", "scores", "expected"),
    [
        (MEITUAN, [1.0], {"click": 0.25, "pay": 0.04}, 0.25 * 0.2),
        (MEITUAN, [2.0], {"click": 0.25, "pay": 0.04}, 0.25 * 0.04),
        (MEITUAN, [0.0], {"click": 0.25, "pay": 0.04}, 0.25),
        (MEITUAN, [1.0], {"pay": 0.04}, 0.2),
        (TWO, [1.0, 1.0], {"click": 0.5, "pay": 0.25}, 0.125),
        (TWO, [2.0, 0.5], {"click": 0.5, "pay": 0.25}, 0.125),
        (TWO, [1.0, 1.0], {"click": 0.0, "pay": 0.25}, 0.25e-9),
        (TWO, [1.0, 1.0], {"click": 0.5, "pay": 0.25, "like": 0.5}, 0.0625),
        (SUM, [1.0, 1.0], {"click": 0.5, "pay": 0.25}, 0.75),
        (SUM, [0.5, 2.0], {"click": 0.5, "pay": 0.25}, 0.75),
        (SUM, [1.0, 0.0], {"click": -3.0, "pay": 9.0, "ignored": 5.0}, -3.0),
    ],
)
def test_a_fused_score_is_what_the_formula_says(spec: ActionSpec, action: list[float], scores: dict[str, float], expected: float) -> None:
    _, shown = fuse(score_matrix(["i"], [scores], spec), action, spec)
    assert shown[0] == pytest.approx(expected, rel=1e-12)


def test_a_power_product_beyond_float64_is_still_ranked_by_its_logarithm() -> None:
    spec = ActionSpec(beta=1000.0)
    page = rank(["low", "high"], [{"pay": 1e-9}, {"pay": 1e-8}], [2.0], spec, 2)
    assert [index for index, _ in page] == [1, 0]
    assert all(math.isfinite(score) for _, score in page)


@pytest.mark.parametrize("spec", [MEITUAN, TWO, SUM])
def test_the_baseline_action_reproduces_the_rankers_own_order_exactly(spec: ActionSpec) -> None:
    rng = random.Random(3)
    scores = [{"click": rng.random(), "pay": rng.random()} for _ in range(500)]
    own = {
        id(MEITUAN): lambda p: p["click"] * p["pay"] ** 0.5,
        id(TWO): lambda p: p["click"] * p["pay"],
        id(SUM): lambda p: p["click"] + p["pay"],
    }[id(spec)]
    expected = sorted(range(500), key=lambda index: -own(scores[index]))
    assert [index for index, _ in rank([f"i-{n}" for n in range(500)], scores, spec.baseline, spec, 500)] == expected


@pytest.mark.parametrize("spec", [TWO, SUM])
def test_equal_scores_keep_the_order_of_the_request_wherever_they_stand(spec: ActionSpec) -> None:
    pattern = [{"click": 0.3, "pay": 0.7}, {"click": 0.31, "pay": 0.7}]
    scores = [pattern[index % 2] for index in range(101)]
    page = rank([str(index) for index in range(101)], scores, [0.37, 1.91], spec, 101)
    assert [index for index, _ in page] == [*range(1, 101, 2), *range(0, 101, 2)]


def test_a_page_is_cut_to_its_size_and_a_short_list_is_given_whole() -> None:
    scores = [{"click": 0.1 * n, "pay": 1.0} for n in range(1, 4)]
    assert [index for index, _ in rank(["a", "b", "c"], scores, [1, 1], TWO, 2)] == [2, 1]
    assert [index for index, _ in rank(["a", "b", "c"], scores, [1, 1], TWO, 9)] == [2, 1, 0]


@pytest.mark.parametrize(
    ("spec", "scores", "message"),
    [
        (TWO, [{"click": 0.1, "pay": 0.1}, {"click": 0.1}], "candidate i-1: no score for objective pay"),
        (TWO, [{"click": 0.1}, {"click": 0.1, "pay": 0.1}], "candidate i-0: no score for objective pay"),
        (TWO, [{"click": 0.1, "pay": 0.1, "like": 0.1}, {"click": 0.1, "pay": 0.1}], "candidate i-1: no score for objective like"),
        (TWO, [{"click": 0.1, "pay": 0.1}, {"click": 0.1, "pay": 0.1, "like": 0.1}], "candidate i-0: no score for objective like"),
        (SUM, [{"click": 0.1, "like": 0.1}], "candidate i-0: no score for objective pay"),
        (TWO, [{"click": 0.1, "pay": -0.2}], "candidate i-0: objective pay must be zero or more in a power product, got -0.2"),
        (SUM, [{"click": 1.7e308, "pay": 1.7e308}], "candidate i-0: its fused score is not a finite number"),
    ],
)
def test_scores_that_cannot_be_fused_are_refused_naming_item_and_objective(
    spec: ActionSpec, scores: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(WrongScoresError) as refused:
        rank([f"i-{n}" for n in range(len(scores))], scores, spec.baseline, spec, 10)
    assert str(refused.value) == message


def test_two_dimensions_of_one_objective_add_up() -> None:
    spec = ActionSpec(dimensions=(ActionDimension(name="a", objective="pay"), ActionDimension(name="b", objective="pay")))
    _, shown = fuse(score_matrix(["i"], [{"pay": 0.5}], spec), [1.0, 2.0], spec)
    assert shown[0] == pytest.approx(0.125)
