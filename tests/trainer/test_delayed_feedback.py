"""Losses for labels that are not final: by hand, without bias, and on a stream."""

from collections.abc import Callable
from functools import partial
from math import log

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from trainer.delayed_feedback import (
    fake_negative_calibrated,
    fake_negative_weighted_loss,
    fake_negative_weights,
    fsiw_loss,
    fsiw_weights,
    log_loss,
    sampled_logits,
)

LOG_ODDS_3_4 = log(3.0)  # sigmoid: 0.75


def gradient(loss_of: Callable[[Tensor], Tensor], logit: Tensor) -> Tensor:
    logit = logit.clone().requires_grad_()
    return torch.autograd.grad(loss_of(logit), logit)[0]


def test_log_loss_by_hand() -> None:
    logits, positive = tensor([0.0, LOG_ODDS_3_4]), tensor([1.0, 0.0])
    assert log_loss(logits, positive).item() == pytest.approx((log(2) + log(4)) / 2)
    weighted = log_loss(logits, positive, tensor([4.0, 0.5]))
    assert weighted.item() == pytest.approx((4.0 * log(2) + 0.5 * log(4)) / 2)
    late = log_loss(logits, positive, tensor([0.0, 1.0]))
    assert late.item() == pytest.approx(log(4) / 2), "a row of weight 0 still counts in the mean"


def test_fake_negative_weights_by_hand() -> None:
    p, positive = tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.5]), tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    come_by = tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0])
    expected = [1.5, 0.75, 1.25, 0.625 / 0.75, 1.0, 1.0]  # the paper's 1 + p, (1 - p)(1 + p); half to come; nothing to come
    assert fake_negative_weights(p, positive, come_by).tolist() == pytest.approx(expected)


def test_fake_negative_weighted_loss_by_hand_and_no_gradient_through_the_weights() -> None:
    logits, positive, come_by = tensor([0.0, LOG_ODDS_3_4]), tensor([1.0, 0.0]), tensor([0.0, 0.5])
    negative_weight = 0.25 * (1 + 0.75 * 0.5) / (1 - 0.75 * 0.5)
    loss = fake_negative_weighted_loss(logits, positive, come_by)
    assert loss.item() == pytest.approx((1.5 * log(2) + negative_weight * log(4)) / 2)
    found = gradient(lambda z: fake_negative_weighted_loss(z, positive, come_by), logits)
    assert found.tolist() == pytest.approx([1.5 * (0.5 - 1) / 2, negative_weight * 0.75 / 2])


def test_fsiw_weights_and_loss_by_hand() -> None:
    p, come_by = tensor([0.5, 0.5, 0.5, 0.5]), tensor([0.25, 0.25, 0.25, 0.0])
    positive, late = tensor([1.0, 0.0, 1.0, 1.0]), tensor([False, False, True, False])
    assert fsiw_weights(p, positive, come_by, late).tolist() == pytest.approx([4.0, 0.5 / 0.875, 0.0, 100.0])
    unknown = torch.ones(3)
    assert fsiw_weights(p[:3], positive[:3], unknown, late[:3]).tolist() == [1.0, 1.0, 1.0], "the stream as it is"
    loss = fsiw_loss(torch.zeros(4), positive, come_by, late)
    assert loss.item() == pytest.approx((4.0 + 0.5 / 0.875 + 100.0) * log(2) / 4)


def test_sampled_logits_by_hand() -> None:
    # One of four negatives kept: even odds in the traffic are 4 to 1 in the rows.
    assert sampled_logits(tensor([0.0]), log(0.25)).sigmoid().item() == pytest.approx(0.8)
    loss = fake_negative_weighted_loss(tensor([0.0]), tensor([0.0]), tensor([0.0]), log(0.25))
    assert loss.item() == pytest.approx(0.75 * log(5)), "the weight is that of the traffic's 0.5, the loss that of the rows' 0.8"


def test_calibration_undoes_what_late_positives_do_to_the_share_of_positives() -> None:
    p = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    for come_by in (0.0, 0.3, 1.0):
        stream = p / (1 + p * (1 - come_by))
        assert fake_negative_calibrated(stream, come_by).tolist() == pytest.approx(p.tolist())
    assert fake_negative_calibrated(tensor([0.5, 0.9, 1.0]), 0.0).tolist() == [1.0, 1.0, 1.0], "never above 1"


Row = tuple[int, bool, float]
"""x, label, share of the exposures that give such a row."""


def stream_rows(shares: list[float], p: list[float], come_by: float, keep: float = 1.0) -> list[Row]:
    """Every kind of row of a fast stream over a discrete x: early rows with the label of the time, and the late positives."""
    found: list[Row] = []
    for x, (share, p_x) in enumerate(zip(shares, p, strict=True)):
        found += [
            (x, True, share * p_x * come_by),
            (x, False, share * (1 - p_x * come_by) * keep),
            (x, True, share * p_x * (1 - come_by)),
        ]
    return found


SHARES, P = [0.5, 0.3, 0.2], [0.05, 0.4, 0.9]


@pytest.mark.parametrize("come_by", [0.0, 0.35, 1.0])
def test_the_weighted_gradient_expected_of_the_stream_is_that_of_the_true_labels(come_by: float) -> None:
    f = tensor([0.2, 0.5, 0.6], dtype=torch.float64)  # a model that is wrong everywhere
    p = tensor(P, dtype=torch.float64)
    true_gradient = tensor(SHARES, dtype=torch.float64) * (f - p)  # of E[-y log f - (1 - y) log(1 - f)] by each logit

    weighted = torch.zeros(3, dtype=torch.float64)
    for x, is_positive, share in stream_rows(SHARES, P, come_by):
        positive, logit = tensor([float(is_positive)], dtype=torch.float64), f[x].logit()[None]
        weight = fake_negative_weights(p[x : x + 1], positive, tensor([come_by], dtype=torch.float64))
        weighted[x] += share * gradient(partial(log_loss, positive_B=positive, weight_B=weight), logit)[0]
    rows_an_exposure = 1 + p * (1 - come_by)  # deviation 3: so often x comes in the stream
    assert weighted.tolist() == pytest.approx((rows_an_exposure * true_gradient).tolist(), abs=1e-12)


@pytest.mark.parametrize(("loss_name", "come_by"), [("fnw", 0.0), ("fnw", 0.35), ("fsiw", 0.35)])
@pytest.mark.parametrize("keep", [1.0, 0.2])
def test_with_the_model_s_own_prediction_in_the_weights_the_truth_is_where_the_gradient_vanishes_and_nothing_else_is(
    loss_name: str, come_by: float, keep: float
) -> None:
    def expected(f: Tensor) -> Tensor:
        total = torch.zeros(3, dtype=torch.float64)
        for place, (x, is_positive, share) in enumerate(stream_rows(SHARES, P, come_by, keep)):
            positive, age = tensor([float(is_positive)], dtype=torch.float64), tensor([come_by], dtype=torch.float64)
            is_late = tensor([place % 3 == 2])
            logit = f[x : x + 1].logit().requires_grad_()
            if loss_name == "fnw":
                loss = fake_negative_weighted_loss(logit, positive, age, log(keep))
            else:
                loss = fsiw_loss(logit, positive, age, is_late, log(keep))
            total[x] += share * torch.autograd.grad(loss, logit)[0][0]
        return total

    p = tensor(P, dtype=torch.float64)
    assert expected(p).tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    assert (expected(p * 0.9) < -1e-5).all(), "below the truth it pulls up"
    assert (expected(p + (1 - p) * 0.1) > 1e-5).all(), "above it pulls down"


def toy_stream(exposures: int, wait: int, keep: float, seed: int) -> list[tuple[int, float, float, float, bool]]:
    """(x, y, F, FSIW's weight, is late) in the order in which rows leave. Delays are exponential with a mean of 400 exposures."""
    rng = np.random.default_rng(seed)
    x = rng.choice(3, exposures, p=SHARES)
    is_positive = rng.random(exposures) < np.array(P)[x]
    delay = rng.exponential(400.0, exposures)
    come_by = 1.0 - float(np.exp(-wait / 400.0))
    p = float(np.dot(SHARES, P))
    leaving: list[tuple[float, int, float, float, float, bool]] = []
    for time in range(exposures):
        has_come = bool(is_positive[time] and delay[time] <= wait)
        if has_come or rng.random() < keep:
            weight = 1.0 / come_by if has_come else (1.0 - p) / (1.0 - p * come_by)
            leaving.append((time + wait, int(x[time]), float(has_come), come_by, weight, False))
        if is_positive[time] and not has_come:
            leaving.append((time + float(delay[time]), int(x[time]), 1.0, come_by, 0.0, True))
    return [row[1:] for row in sorted(leaving)]


def learned(loss_name: str, wait: int = 0, keep: float = 1.0) -> list[float]:
    """What a table of three logits predicts after a toy stream: SGD in batches of 50, averaged over the last half."""
    logits = torch.zeros(3, requires_grad=True)
    rows = toy_stream(40_000, wait, keep, seed=1)
    averaged, steps = torch.zeros(3), 0
    for start in range(0, len(rows), 50):
        x, y, come_by, column, late = zip(*rows[start : start + 50], strict=True)
        logit, positive, age = logits[list(x)], tensor(y), tensor(come_by)
        if loss_name == "fnw":
            loss = fake_negative_weighted_loss(logit, positive, age, log(keep))
        elif loss_name == "fsiw":
            loss = fsiw_loss(logit, positive, age, tensor(late), log(keep))
        else:
            loss = log_loss(sampled_logits(logit, log(keep)), positive, tensor(column) if loss_name == "column" else None)
        (step,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 2.0 * step
            if start > len(rows) // 2:
                averaged += logits.sigmoid()
                steps += 1
    found = averaged / steps
    return (fake_negative_calibrated(found, 0.0) if loss_name == "fnc" else found).tolist()


def test_on_a_stream_plain_log_loss_is_too_low_and_the_corrections_are_not() -> None:
    truth = np.array(P)
    plain = np.array(learned("plain"))
    assert (plain < truth * [0.97, 0.8, 0.6]).all(), plain
    assert plain == pytest.approx(truth / (1 + truth), abs=0.02), "just as low as the share of positives in the stream"
    for loss_name in ("fnw", "fnc"):
        assert learned(loss_name) == pytest.approx(P, abs=0.03), loss_name
    for loss_name in ("fnw", "fsiw"):
        assert learned(loss_name, wait=300) == pytest.approx(P, abs=0.03), loss_name


def test_on_a_stream_without_most_negatives_the_log_odds_correction_gives_the_traffic_s_probabilities() -> None:
    truth, keep = np.array(P), 0.2
    for loss_name in ("fnw", "fsiw"):
        assert learned(loss_name, wait=300, keep=keep) == pytest.approx(P, abs=0.05), loss_name
    late_too = truth / (1 + truth)
    assert learned("plain", keep=keep) == pytest.approx(late_too, abs=0.03), "of the sampling nothing is left, of the delay all"


def test_weights_of_the_column_have_one_p_for_all_and_leave_rows_of_high_p_too_low() -> None:
    truth, come_by, p = np.array(P), 1.0 - np.exp(-300 / 400), float(np.dot(SHARES, P))
    odds = truth / ((1 - truth * come_by) * (1 - p) / (1 - p * come_by))
    found = learned("column", wait=300)
    assert found == pytest.approx(odds / (1 + odds), abs=0.03)
    assert found[2] < P[2] - 0.15
