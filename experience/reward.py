"""The reward of a page, as in Meituan's "Guess you like" (the MDP table of the article), with dwell and caps beside it.

    r = sum_k cap_k(w_k * x_k)  -  penalty_no_conversion * [no conversion, and the session went on]
                                -  penalty_left          * [no conversion, and the user left]
    x_k = sum_items feedback_k / unit_k                     scale "linear"
    x_k = sum_items log(1 + max(0, feedback_k) / unit_k)    scale "log"

Without the penalties the article's agent learned to make people page longer instead of showing what they want.
Shape legend: R rows (samples) of a batch, P pages, K kinds of feedback.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from experience.settings import KindReward, RewardRule, RewardSettings

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]


def shaped(labels_R: Floats, reward: KindReward | None, starts_P: Ints) -> Floats:
    """What one kind of feedback earned each page, [P]; a kind without a weight earns nothing. `starts_P` are the pages' first rows."""
    if reward is None or reward.weight == 0:  # whatever its sum is: 0 * inf would be NaN
        return np.zeros(len(starts_P), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused with its page
        amounts_R = labels_R.astype(np.float64) / reward.unit
        if reward.scale == "log":
            amounts_R = np.log1p(np.maximum(amounts_R, 0.0))
        earned_P = reward.weight * np.add.reduceat(amounts_R, starts_P)
        if reward.cap is not None:
            earned_P = np.clip(earned_P, -reward.cap, reward.cap)
        return earned_P.astype(np.float32)


def earned_parts(labels_KR: Sequence[Floats], kinds: Sequence[str], rule: RewardRule, starts_P: Ints) -> Floats:
    """What each kind of feedback earned each page, [P, K]."""
    parts_PK = np.empty((len(starts_P), len(kinds)), np.float32)
    for column, (kind, labels_R) in enumerate(zip(kinds, labels_KR, strict=True)):
        parts_PK[:, column] = shaped(labels_R, rule.kinds.get(kind), starts_P)
    return parts_PK


def conversions(labels_KR: Sequence[Floats], kinds: Sequence[str], rule: RewardRule, starts_P: Ints) -> Bools:
    """Which pages had any feedback of a converting kind, [P]."""
    converted_P = np.zeros(len(starts_P), np.bool_)
    for kind, labels_R in zip(kinds, labels_KR, strict=True):
        if kind in rule.conversion_kinds:
            converted_P |= np.add.reduceat(labels_R, starts_P, dtype=np.float64) > 0
    return converted_P


def penalties(converted_P: Bools, went_on_P: Bools, policies_P: Objects, rewards: RewardSettings) -> tuple[Floats, Floats]:
    """The two penalties of each page, zero or negative: on pages after which the session went on, and after which the user left."""
    no_conversion_P, left_P = np.zeros(len(converted_P), np.float32), np.zeros(len(converted_P), np.float32)
    for rule, of_rule_P in by_rule(policies_P, rewards):
        no_conversion_P[of_rule_P & ~converted_P & went_on_P] = 0.0 - rule.penalty_no_conversion
        left_P[of_rule_P & ~converted_P & ~went_on_P] = 0.0 - rule.penalty_left
    return no_conversion_P, left_P


def by_rule(policies_P: Objects, rewards: RewardSettings) -> list[tuple[RewardRule, Bools]]:
    """The rules in use, each with the pages that it is for."""
    if not rewards.policies:
        return [(rewards, np.ones(len(policies_P), np.bool_))]
    own = [(rewards.rule(policy), policies_P == policy) for policy in rewards.policies]
    rest_P = ~np.logical_or.reduce([of_policy_P for _, of_policy_P in own])
    return [(rewards, rest_P), *own]


def total(parts_PK: Floats, no_conversion_P: Floats, left_P: Floats) -> Floats:
    """The reward: the parts added from left to right in float32, so that whoever adds the columns gets the same bits."""
    reward_P = np.zeros(len(parts_PK), np.float32)
    for part_P in (*parts_PK.T, no_conversion_P, left_P):
        reward_P += part_P
    return reward_P
