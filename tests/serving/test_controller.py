import shutil
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from serving_models import GOOD_METRICS, WriteVersion, graph

from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError
from schemas.policy import Lineage, PolicyVersion
from serving.announcer import AnnounceError
from serving.controller import Controller, ControllerMetrics, serve_metrics
from serving.controller_settings import ControllerSettings
from serving.versions import ModelStore, write_atomically


class MemoryAnnouncer:
    """Keeps what it announced; `why` makes the broker fail."""

    def __init__(self) -> None:
        self.announced: list[PolicyVersion] = []
        self.why = ""

    def announce(self, version: PolicyVersion) -> None:
        if self.why:
            raise AnnounceError(self.why)
        self.announced.append(version)

    @property
    def names(self) -> list[str]:
        return [version.model_version[-1:] for version in self.announced]


class Control:
    """A controller whose clock is its number of steps."""

    def __init__(self, policy: PolicySettings, announcer: MemoryAnnouncer, **settings: Any) -> None:
        self.store = ModelStore(policy.model_dir, policy.policy, policy.spec_hash)
        self.store.open()
        self.announcer = announcer
        self.metrics = ControllerMetrics()
        self.controller = Controller(ControllerSettings(**{"probe_rows": 8, **settings}), policy, self.store, announcer, self.metrics)
        self.seconds = 0

    def step(self, seconds: int = 1) -> None:
        self.seconds += seconds
        self.controller.step(1000 * self.seconds, self.seconds)


@pytest.fixture
def announcer() -> MemoryAnnouncer:
    return MemoryAnnouncer()


@pytest.fixture
def control(policy: PolicySettings, announcer: MemoryAnnouncer) -> Control:
    return Control(policy, announcer)


def test_a_good_candidate_is_promoted_and_announced_once(control: Control, write_version: WriteVersion) -> None:
    control.step()
    assert control.announcer.announced == []
    write_version(1)
    control.step()
    control.step()
    assert control.announcer.names == ["1"]
    assert control.announcer.announced[0] == control.store.current()
    assert control.metrics.registry.get_sample_value("headrace_controller_current_version") == 1


def test_of_several_new_candidates_the_newest_good_one_is_promoted(control: Control, write_version: WriteVersion) -> None:
    for number in (1, 2, 3):
        write_version(number)
    write_version(4, metrics={**GOOD_METRICS, "policy_advantage_mean": -1.0})
    control.step()
    assert control.announcer.names == ["3"]
    assert [control.store.judgement(f"fusion-{number:06d}").reasons[0] for number in (1, 2, 4)] == [
        "not newer than fusion-000003",
        "not newer than fusion-000003",
        "not better than random: advantage -1 - 1.64 * 0.01, random -0.1",
    ]
    assert control.announcer.announced[0].arrivals_ms == {"300": 3}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"golden_action": [1.0, 1.0]}, "half ranges off what the trainer computed"),
        ({"spec_hash": "other"}, "made for specification other"),
        ({"model": graph([1.0, 1.0], state_weight=1.0)}, "action click_exponent leaves its bounds"),
        ({"model": graph([1.0, 1.0], pole=12.0)}, "the actor gave inf"),
        ({"model": graph([1.0, 1.0], table_rows=4)}, "fails on a generated state: fusion-000002:"),
        ({"model_version": "fusion-000009"}, "candidate.json says that it is fusion-000009"),
        ({"metrics": {"policy_advantage_mean": float("nan")}}, "candidate.json: Expected `float`, got `null`"),
        ({"lineage": Lineage(offsets={}, seed=1, code_version="", transitions_learned=3)}, "learned from 3 transitions, 200 are required"),
    ],
)
def test_a_bad_candidate_is_refused_once_and_the_current_version_stays(
    control: Control, write_version: WriteVersion, fields: dict[str, Any], reason: str
) -> None:
    write_version(1)
    control.step()
    write_version(2, **fields)
    control.step()
    control.step()
    judgement = control.store.judgement("fusion-000002")
    assert judgement.verdict == "refused"
    assert any(reason in given for given in judgement.reasons)
    assert control.announcer.names == ["1"]
    assert control.metrics.registry.get_sample_value("headrace_controller_judged_total", {"verdict": "refused"}) == 1


def test_what_a_person_changes_in_the_store_is_announced(control: Control, write_version: WriteVersion) -> None:
    write_version(1)
    control.step()
    write_version(2)
    control.step()
    control.store.rollback(["reward fell"], now_ms=50_000)
    control.step()
    control.step()
    assert control.announcer.names == ["1", "2", "1"]
    assert control.announcer.announced[-1].reason == "rolled_back"
    control.store.pin("", ["hands off"], now_ms=60_000)
    write_version(3)
    control.step()
    control.step()
    assert control.announcer.names == ["1", "2", "1", ""]
    control.store.unpin(now_ms=70_000)
    control.step()
    assert control.announcer.names == ["1", "2", "1", "", "3"]


def test_a_version_that_the_broker_did_not_take_is_announced_later(control: Control, write_version: WriteVersion) -> None:
    write_version(1)
    control.announcer.why = "the broker is away"
    with pytest.raises(AnnounceError):
        control.step()
    control.announcer.why = ""
    control.step()
    assert control.announcer.names == ["1"]


def test_the_current_version_is_announced_again_at_start_and_now_and_then(
    policy: PolicySettings, control: Control, write_version: WriteVersion
) -> None:
    write_version(1)
    control.step()
    control.step(59)
    assert control.announcer.names == ["1"]
    control.step(1)
    assert control.announcer.names == ["1", "1"]
    Control(policy, control.announcer).step()
    assert control.announcer.names == ["1", "1", "1"]
    assert len(set(map(repr, control.announcer.announced))) == 1  # the very same announcement: serving ignores it


def test_old_candidates_are_deleted(policy: PolicySettings, announcer: MemoryAnnouncer, write_version: WriteVersion) -> None:
    control = Control(policy, announcer, keep_candidates=2)
    for number in range(1, 7):
        write_version(number)
        control.step()
    assert control.store.candidates() == ["fusion-000005", "fusion-000006"]
    assert control.metrics.registry.get_sample_value("headrace_controller_pruned_total") == 4


class KilledError(BaseException):
    """Stands for kill -9."""


def test_killed_at_any_effect_the_next_controller_ends_where_an_unharmed_one_does(
    policy: PolicySettings, write_version: WriteVersion, tmp_path: Path
) -> None:
    """Effects are the writes to the store and the announcement. Version 1 is current, 2 is good, 3 is bad."""
    write_version(1)
    Control(policy, MemoryAnnouncer()).step()
    write_version(2)
    write_version(3, metrics={**GOOD_METRICS, "policy_advantage_mean": -1.0})
    shutil.copytree(policy.model_dir, tmp_path / "start")

    def life(announcer: MemoryAnnouncer, effects: int) -> None:
        left = effects

        def effect() -> None:
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1

        def write(path: Path, content: bytes) -> None:
            effect()
            write_atomically(path, content)

        class DyingAnnouncer(MemoryAnnouncer):
            def announce(self, version: PolicyVersion) -> None:
                effect()
                announcer.announce(version)
                effect()

        store = ModelStore(policy.model_dir, "fusion", policy.spec_hash, write=write)
        Controller(ControllerSettings(probe_rows=8), policy, store, DyingAnnouncer(), ControllerMetrics()).step(2000, 2.0)

    def outcome() -> tuple[Any, ...]:
        store = ModelStore(policy.model_dir, "fusion", policy.spec_hash)
        return store.current(), store.history(), [(judgement.model_version, judgement.verdict) for judgement in store.judgements()]

    life(MemoryAnnouncer(), 99)
    expected = outcome()
    assert expected[0].model_version == "fusion-000002"
    deaths = 0
    for effects in range(99):
        shutil.rmtree(policy.model_dir)
        shutil.copytree(tmp_path / "start", policy.model_dir)
        announcer = MemoryAnnouncer()
        try:
            life(announcer, effects)
        except KilledError:
            deaths += 1
        else:
            break
        life(announcer, 99)
        assert outcome() == expected, f"killed at effect {effects}"
        assert announcer.announced[-1] == expected[0], f"killed at effect {effects}"
    assert deaths >= 5


def test_a_failing_step_is_counted_and_the_loop_goes_on(control: Control, write_version: WriteVersion) -> None:
    write_version(1)
    control.announcer.why = "the broker is away"
    failed = []

    class Waiting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            failed.append(control.metrics.registry.get_sample_value("headrace_controller_failures_total", {"what": "announce"}))
            control.announcer.why = ""
            if len(failed) == 3:
                self.set()
            return self.is_set()

    stop = Waiting()
    control.controller.run(stop)
    assert failed == [1, 1, 1]
    assert control.announcer.names == ["1"]


def test_the_metrics_page_is_served_and_a_taken_port_is_one_line(control: Control) -> None:
    port = serve_metrics(ControllerSettings(metrics_port=0), control.metrics)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        assert b"headrace_controller_pinned 0.0" in page.read()
    with pytest.raises(ConfigError, match=f"port {port} is taken: set controller.metrics_port or stop PID"):
        serve_metrics(ControllerSettings(metrics_port=port), control.metrics)
