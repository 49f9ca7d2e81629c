"""Losses for labels that are not final yet: log loss on `pointwise-samples`, corrected for positives that are still to come.

With p = P(y = 1 | x) the truth, F the share of its positives that have come when a row leaves early (`positives_come_by`), and
late positives sent again, the stream holds 1 + p (1 - F) rows an exposure, of which positive are

    b = p / (1 + p (1 - F))                                      what plain log loss learns: too low

    L       = mean w (-y log f - (1 - y) log(1 - f)),  f = sigmoid(z)                                               log loss
    w(y=1)  = p / b             = 1 + p (1 - F)                          with p := f, held: fake-negative weighted (FNW) [1]
    w(y=0)  = (1 - p) / (1 - b) = (1 - p) (1 + p (1 - F)) / (1 - p F)
    p       = b / (1 - b (1 - F))                        of what plain log loss learned: fake-negative calibration (FNC) [1]
    w(y=1)  = 1 / F,  w(y=0) = (1 - p) / (1 - p F)          early rows alone, p := f, held; late positives weigh 0: FSIW [2]
    z - log k in place of z, where negatives were kept with probability k: z itself are the log-odds of all the traffic

[1] Ktena et al. 2019 (arXiv 1907.06558) have F = 0: 1 + p, (1 - p) (1 + p) and p = b / (1 - b). [2] Yasui et al. 2020 (arXiv 2002.02068).
FNW with F > 0 has the weights of ES-DFM (Yang et al. 2021, arXiv 2012.03245): p_dp = p (1 - F), p_rn = (1 - p) / (1 - p F).

Where we differ from them:
1. F is one for all rows of an age (the joiner counts it): no second network learns it from x, as in [2] and ES-DFM. Where the delay
   depends on x, F > 0 leaves a bias; with F = 0 (`fast_wait_ms = 0`, no positive at once) nothing depends on the delay.
2. FSIW takes p from the model itself, as FNW does; [2] fits two more models for its weights. f = p is where the gradient vanishes.
   The columns `weight_fsiw` and `weight_fake_negative` have the joiner's p, one for all rows: they leave rows of high p too low.
3. As in [1] and ES-DFM the weights correct the label given x, not how often x comes: an x of high p weighs 1 + p (1 - F).

Shapes: B rows of `pointwise-samples`.
"""

import torch
import torch.nn.functional as functions
from torch import Tensor

LEAST_COME_BY = 0.01
"""FSIW takes no smaller F, as in joiner/delay.py: no row weighs more than a hundred."""


def log_loss(logit_B: Tensor, positive_B: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """L; plain log loss where there are no weights. The mean is over all rows, also those of weight 0."""
    return functions.binary_cross_entropy_with_logits(logit_B, positive_B, weight_B)


def fake_negative_weights(p_B: Tensor, positive_B: Tensor, come_by_B: Tensor) -> Tensor:
    """FNW's w, held: no gradient goes through p."""
    p_B = p_B.detach()
    to_come_B = p_B * (1.0 - come_by_B)
    negative_B = (1.0 - p_B) * (1.0 + to_come_B) / (1.0 - p_B * come_by_B).clamp(min=1e-6)
    return torch.where(positive_B > 0, 1.0 + to_come_B, negative_B)


def fake_negative_weighted_loss(logit_B: Tensor, positive_B: Tensor, come_by_B: Tensor, log_keep_B: Tensor | float = 0.0) -> Tensor:
    """L with FNW's weights from the model's own prediction.

    `logit_B` are log-odds of the traffic, `log_keep_B` is `log_odds_correction`: weights belong to the one, the loss to what was kept.
    """
    weight_B = fake_negative_weights(logit_B.sigmoid(), positive_B, come_by_B)
    return log_loss(sampled_logits(logit_B, log_keep_B), positive_B, weight_B)


def fsiw_weights(p_B: Tensor, positive_B: Tensor, come_by_B: Tensor, is_late_B: Tensor) -> Tensor:
    """FSIW's w, held. `is_late_B`: the row is a correction, its early row has been there.

    A late row with F = 1 cannot be: the joiner did not know F yet, and the stream is learned as it is.
    """
    p_B = p_B.detach()
    negative_B = (1.0 - p_B) / (1.0 - p_B * come_by_B).clamp(min=1e-6)
    return torch.where(positive_B > 0, 1.0 / come_by_B.clamp(min=LEAST_COME_BY), negative_B).masked_fill(is_late_B & (come_by_B < 1.0), 0.0)


def fsiw_loss(logit_B: Tensor, positive_B: Tensor, come_by_B: Tensor, is_late_B: Tensor, log_keep_B: Tensor | float = 0.0) -> Tensor:
    """L with FSIW's weights from the model's own prediction, which is of the traffic, as for FNW."""
    weight_B = fsiw_weights(logit_B.sigmoid(), positive_B, come_by_B, is_late_B)
    return log_loss(sampled_logits(logit_B, log_keep_B), positive_B, weight_B)


def fake_negative_calibrated(b_B: Tensor, come_by_B: Tensor | float) -> Tensor:
    """FNC: p from the share b of positives in a stream with late positives. 1 where b is larger than any p gives."""
    return (b_B / (1.0 - b_B * (1.0 - come_by_B)).clamp(min=1e-6)).clamp(max=1.0)


def sampled_logits(logit_B: Tensor, log_keep_B: Tensor | float) -> Tensor:
    """Log-odds among the rows that were kept, from those of the traffic: for the loss. Predictions are `logit_B` itself."""
    return logit_B - log_keep_B
