import threading
from collections.abc import Iterator

import msgspec
import pytest
from serving_models import FEATURES, WriteVersion

from headrace.policy_settings import PolicySettings
from schemas.state_reader import StateReader
from serving.metrics import ServingMetrics
from serving.swap import ServedVersion
from serving.versions import ModelStore

WAIT_S = 20.0


@pytest.fixture
def store(policy: PolicySettings) -> ModelStore:
    return ModelStore(policy.model_dir, policy.policy, policy.spec_hash)


@pytest.fixture
def metrics() -> ServingMetrics:
    return ServingMetrics()


@pytest.fixture
def versions(policy: PolicySettings, metrics: ServingMetrics) -> Iterator[ServedVersion]:
    versions = ServedVersion(policy, 2, metrics)
    yield versions
    versions.stop()


def failures(metrics: ServingMetrics, reason: str) -> float | None:
    return metrics.registry.get_sample_value("headrace_serving_swap_failures_total", {"reason": reason})


def test_serving_starts_with_the_current_version_of_the_store(
    store: ModelStore, versions: ServedVersion, write_version: WriteVersion, metrics: ServingMetrics
) -> None:
    write_version(3)
    store.promote("fusion-000003", [], now_ms=5)
    versions.start()
    assert versions.settled(WAIT_S)
    assert versions.served.model_version == "fusion-000003"
    shown = {"policy": "fusion", "model_version": "fusion-000003"}
    assert metrics.registry.get_sample_value("headrace_serving_version_info", shown) == 1
    assert metrics.registry.get_sample_value("headrace_serving_version_info", {"policy": "fusion", "model_version": ""}) is None
    assert metrics.registry.get_sample_value("headrace_serving_swap_timestamp_seconds", {"model_version": "fusion-000003"}) > 0


def test_without_a_version_the_baseline_is_served(versions: ServedVersion) -> None:
    versions.start()
    assert versions.settled(WAIT_S)
    assert versions.served.model_version == ""
    assert versions.trouble() == ""


def test_announcements_swap_forward_and_back_and_an_older_one_is_ignored(
    store: ModelStore, versions: ServedVersion, write_version: WriteVersion
) -> None:
    for number in (1, 2):
        write_version(number)
    versions.start()
    first, second = (store.promote(f"fusion-{number:06d}", [], now_ms=number) for number in (1, 2))
    back = store.rollback(["bad"], now_ms=9)
    seen = []
    for version in (first, second, first, second, back, second):
        versions.offer(version)
        assert versions.settled(WAIT_S)
        seen.append(versions.served.model_version[-1])
    assert seen == ["1", "2", "2", "2", "1", "1"]


def test_an_empty_version_means_the_baseline(store: ModelStore, versions: ServedVersion, write_version: WriteVersion) -> None:
    write_version(1)
    store.promote("fusion-000001", [], now_ms=1)
    versions.start()
    versions.offer(store.rollback(["bad"], now_ms=2))
    assert versions.settled(WAIT_S)
    assert versions.served.actor is None


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_and_is_counted(
    store: ModelStore, versions: ServedVersion, write_version: WriteVersion, metrics: ServingMetrics
) -> None:
    write_version(1)
    versions.start()
    versions.offer(store.promote("fusion-000001", [], now_ms=1))
    assert versions.settled(WAIT_S)
    write_version(2, spec_hash="other")
    bad = store.promote("fusion-000002", [], now_ms=2)
    for _ in range(3):  # the controller announces again and again, and each time it is tried again
        versions.offer(bad)
        assert versions.settled(WAIT_S)
    gone = msgspec.structs.replace(bad, model_version="fusion-000077", uri="s3://elsewhere/x", announced_ms=3)
    versions.offer(gone)
    assert versions.settled(WAIT_S)
    assert versions.served.model_version == "fusion-000001"
    assert (failures(metrics, "wrong_spec"), failures(metrics, "missing")) == (3, 1)
    write_version(3)
    versions.offer(store.promote("fusion-000003", [], now_ms=4))
    assert versions.settled(WAIT_S)
    assert versions.served.model_version == "fusion-000003"


def test_a_uri_of_another_machine_falls_back_to_the_own_store(
    store: ModelStore, versions: ServedVersion, write_version: WriteVersion
) -> None:
    write_version(1)
    versions.start()
    versions.offer(msgspec.structs.replace(store.promote("fusion-000001", [], now_ms=1), uri="file:///elsewhere/fusion-000001"))
    assert versions.settled(WAIT_S)
    assert versions.served.model_version == "fusion-000001"


def test_a_malformed_current_file_is_counted_and_serving_starts_with_the_baseline(
    policy: PolicySettings, versions: ServedVersion, metrics: ServingMetrics
) -> None:
    folder = policy.model_dir / "fusion"
    folder.mkdir(parents=True)
    (folder / "current.json").write_bytes(b"{")
    versions.start()
    assert versions.settled(WAIT_S)
    assert versions.served.model_version == ""
    assert failures(metrics, "malformed") == 1


def test_versions_swapped_under_fire_never_give_a_failed_or_mixed_answer(
    store: ModelStore, versions: ServedVersion, write_version: WriteVersion
) -> None:
    """Each version answers its own number: an answer must be that of the version that was read with it."""
    for number in range(1, 16):
        write_version(number, [0.1 * number, 0.05 * number])
    expected = {f"fusion-{number:06d}": 0.1 * number for number in range(1, 16)}
    columns = StateReader(FEATURES).columns([{}])
    stop, wrong, seen, answered = threading.Event(), [], set(), threading.Condition()

    def hammer() -> None:
        while not stop.is_set():
            actor = versions.served.actor
            if actor is not None:
                answer = actor.act(columns)[0, 0]
                if abs(answer - expected[actor.model_version]) > 1e-6:
                    wrong.append((actor.model_version, answer))
                with answered:
                    seen.add(actor.model_version)
                    answered.notify_all()

    versions.start()
    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for model_version in expected:
            versions.offer(store.promote(model_version, [], now_ms=1))
            assert versions.settled(WAIT_S)
            with answered:
                assert answered.wait_for(lambda name=model_version: name in seen, WAIT_S)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert seen == set(expected)
    assert versions.served.model_version == "fusion-000015"
