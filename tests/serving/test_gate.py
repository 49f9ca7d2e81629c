import numpy as np
import pytest
from serving_models import ACTION

from schemas.policy import Candidate, Lineage
from serving.gate import Probe, Requirements, Standing, judge, version_number

REQUIRED = Requirements(ACTION, spec_hash="abc", min_transitions=100, confidence_z=2.0)
GOOD_PROBE = Probe(np.array([1.1, 0.9]), np.array([[0.0, 2.0], [1.0, 1.0]]))
METRICS = {"policy_advantage_mean": 0.10, "policy_advantage_se": 0.02, "random_advantage_mean": 0.05, "v_mean": 3.0}


def candidate(transitions: int = 100, model_version: str = "fusion-000012", spec_hash: str = "abc", **metrics: float) -> Candidate:
    return Candidate(
        policy="fusion",
        model_version=model_version,
        created_ms=1,
        spec_hash=spec_hash,
        metrics={**METRICS, **metrics},
        lineage=Lineage(offsets={}, seed=7, code_version="test", transitions_learned=transitions),
        golden_action=[1.1, 0.9],
    )


def test_a_good_candidate_is_promoted_with_the_numbers_that_speak_for_it() -> None:
    verdict = judge(candidate(), GOOD_PROBE, REQUIRED, Standing("fusion-000011", {"fusion-000010"}))
    assert verdict.promote
    assert verdict.reasons == ["better than random: advantage 0.1 - 2 * 0.02, random 0.05", "learned from 100 transitions"]


@pytest.mark.parametrize(
    ("given", "probe", "standing", "reasons"),
    [
        (candidate(policy_advantage_se=0.03), GOOD_PROBE, Standing(), ["not better than random: advantage 0.1 - 2 * 0.03, random 0.05"]),
        (candidate(policy_advantage_se=0.025), GOOD_PROBE, Standing(), ["not better than random: advantage 0.1 - 2 * 0.025, random 0.05"]),
        (
            candidate(policy_advantage_mean=-0.5),
            GOOD_PROBE,
            Standing(),
            ["not better than random: advantage -0.5 - 2 * 0.02, random 0.05"],
        ),
        (candidate(v_mean=float("nan")), GOOD_PROBE, Standing(), ["metric v_mean is nan"]),
        (
            candidate(policy_advantage_mean=float("nan")),
            GOOD_PROBE,
            Standing(),
            ["metric policy_advantage_mean is nan", "not better than random: advantage nan - 2 * 0.02, random 0.05"],
        ),
        (candidate(v_mean=float("inf")), GOOD_PROBE, Standing(), ["metric v_mean is inf"]),
        (candidate(transitions=99), GOOD_PROBE, Standing(), ["learned from 99 transitions, 100 are required"]),
        (candidate(spec_hash="old"), GOOD_PROBE, Standing(), ["made for specification old, this policy has abc"]),
        (candidate(), GOOD_PROBE, Standing("fusion-000012"), ["not newer than fusion-000012"]),
        (candidate(), GOOD_PROBE, Standing("fusion-000013"), ["not newer than fusion-000013"]),
        (
            candidate(),
            GOOD_PROBE,
            Standing("fusion-000012", {"fusion-000012"}),
            ["was rolled back; a person can still promote it", "not newer than fusion-000012"],
        ),
        (
            candidate(),
            Probe(np.array([1.1, 0.91]), GOOD_PROBE.actions),
            Standing(),
            ["the ONNX actor is 0.01 half ranges off the trainer's golden action"],
        ),
        (
            candidate(),
            Probe(np.array([1.1]), GOOD_PROBE.actions),
            Standing(),
            ["the ONNX actor is inf half ranges off the trainer's golden action"],
        ),
        (
            candidate(),
            Probe(np.array([1.1, 0.9]), np.array([[1.0, np.nan], [1.0, 1.0]])),
            Standing(),
            ["1 of 2 probed actions are not finite"],
        ),
        (
            candidate(),
            Probe(np.array([1.1, 0.9]), np.array([[1.0, 2.5], [-0.1, 1.0]])),
            Standing(),
            [
                "action click_exponent leaves its bounds: -0.1 is not in [0.0, 2.0]",
                "action pay_exponent leaves its bounds: 2.5 is not in [0.0, 2.0]",
            ],
        ),
    ],
)
def test_a_candidate_is_refused_with_every_reason_that_speaks_against_it(
    given: Candidate, probe: Probe, standing: Standing, reasons: list[str]
) -> None:
    verdict = judge(given, probe, REQUIRED, standing)
    assert (verdict.promote, verdict.reasons) == (False, reasons)


@pytest.mark.parametrize("name", ["policy_advantage_mean", "policy_advantage_se", "random_advantage_mean"])
def test_a_candidate_without_a_metric_of_the_bound_is_refused(name: str) -> None:
    given = candidate()
    del given.metrics[name]
    assert judge(given, GOOD_PROBE, REQUIRED, Standing()).reasons == [f"metrics missing: {name}"]


def test_float32_at_a_bound_is_inside_it() -> None:
    probe = Probe(np.array([1.1, 0.9]), np.array([[np.float64(np.float32(2.0000002)), 0.0]]))
    assert judge(candidate(), probe, REQUIRED, Standing()).promote


@pytest.mark.parametrize(("name", "number"), [("", -1), ("fusion-000012", 12), ("my-policy-1000000", 1_000_000)])
def test_versions_are_ordered_by_their_number(name: str, number: int) -> None:
    assert version_number(name) == number
    with pytest.raises(ValueError, match="expected NAME-NUMBER"):
        version_number("fusion-x")
