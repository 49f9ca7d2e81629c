from pathlib import Path

import msgspec
import pytest
from serving_models import WriteVersion

from headrace.policy_settings import PolicySettings
from serving import commands
from serving.actor import ActorError
from serving.versions import ModelStore, StoreError, write_atomically


@pytest.fixture
def store(policy: PolicySettings) -> ModelStore:
    store = ModelStore(policy.model_dir, policy.policy, policy.spec_hash)
    store.open()
    return store


def name(number: int) -> str:
    return f"fusion-{number:06d}" if number else ""


def current(store: ModelStore) -> str:
    version = store.current()
    assert version is not None
    return version.model_version


def test_a_promotion_announces_everything_that_the_candidate_says(
    policy: PolicySettings, store: ModelStore, write_version: WriteVersion
) -> None:
    folder = write_version(1)
    version = store.promote(name(1), ["good"], now_ms=50)
    assert version == store.current()
    assert (version.uri, version.reason, version.announced_ms, version.spec_hash) == (folder.as_uri(), "promoted", 50, policy.spec_hash)
    assert (version.lineage.offsets, version.arrivals_ms) == ({"0": 10}, {"100": 1})
    assert store.judgement(name(1)).verdict == "promoted"


def test_candidates_are_listed_by_number_and_without_what_is_still_being_written(store: ModelStore, write_version: WriteVersion) -> None:
    for number in (10, 2, 1_000_001):
        write_version(number)
    (store.folder / "candidates" / "fusion-000011").mkdir()
    temporary = store.folder / "candidates" / ".fusion-000012.tmp"
    temporary.mkdir()
    (temporary / "candidate.json").write_bytes(b"{}")
    assert store.candidates() == ["fusion-000002", "fusion-000010", "fusion-1000001"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("1 2 r", "1"),
        ("1 2 3 r", "2"),
        ("1 2 3 r r", "1"),
        ("1 2 3 r r r", "0"),
        ("1 2 r 3 r", "1"),
        ("1 r", "0"),
        ("1 r 2 r", "0"),
        ("1 2 p1 r", "2"),
        ("1 2 p1 u r", "2"),
        ("1 p0 2 r", "1"),
        ("1 2 r 2", "2"),
        ("1 2 r 2 r", "1"),
    ],
)
def test_a_rollback_goes_to_what_was_good_before(store: ModelStore, write_version: WriteVersion, steps: str, expected: str) -> None:
    """Digits promote, p pins, u unpins, r rolls back; 0 is the baseline."""
    for number in (1, 2, 3):
        write_version(number)
    for now_ms, step in enumerate(steps.split()):
        if step == "r":
            store.rollback(["bad"], now_ms)
        elif step == "u":
            store.unpin(now_ms)
        elif step.startswith("p"):
            store.pin(name(int(step[1:])), [], now_ms)
        else:
            store.promote(name(int(step)), [], now_ms)
    assert current(store) == name(int(expected))


def test_a_rolled_back_version_is_marked_and_a_person_can_clear_it(store: ModelStore, write_version: WriteVersion) -> None:
    for number in (1, 2):
        write_version(number)
        store.promote(name(number), [], now_ms=number)
    version = store.rollback(["reward fell"], now_ms=3)
    assert (version.reason, version.arrivals_ms) == ("rolled_back", {})
    assert store.standing().rolled_back == {name(2)}
    assert store.standing().newest_served == name(2)
    assert (store.judgement(name(2)).verdict, store.judgement(name(2)).reasons) == ("refused", ["rolled back: reward fell"])
    store.promote(name(2), ["a person"], now_ms=4)
    assert store.standing().rolled_back == frozenset()
    assert store.judgement(name(2)).verdict == "promoted"


def test_announcements_never_go_back_in_time(store: ModelStore, write_version: WriteVersion) -> None:
    for number, now_ms in ((1, 1000), (2, 400), (3, 400)):
        write_version(number)
        store.promote(name(number), [], now_ms)
    assert [change.announced_ms for change in store.history()] == [1000, 1001, 1002]


def test_feedback_of_refused_versions_is_counted_with_the_next_promoted_one(store: ModelStore, write_version: WriteVersion) -> None:
    for number in (1, 2, 3, 4):
        write_version(number, arrivals_ms={"500": 1, str(1000 * number): 10})
    store.promote(name(1), [], now_ms=1)
    store.refuse(name(2), ["bad"], now_ms=2)
    store.refuse(name(3), ["bad"], now_ms=3)
    assert store.promote(name(4), [], now_ms=4).arrivals_ms == {"500": 3, "2000": 10, "3000": 10, "4000": 10}


def test_what_cannot_be_done_is_one_line(policy: PolicySettings, store: ModelStore, write_version: WriteVersion) -> None:
    with pytest.raises(StoreError, match="serves the baseline already"):
        store.rollback([], now_ms=1)
    with pytest.raises(StoreError, match="no version is pinned"):
        store.unpin(now_ms=1)
    write_version(1)
    with pytest.raises(StoreError, match=r"version fusion-000009: .*No such file.*can be had: fusion-000001"):
        store.promote(name(9), [], now_ms=1)
    (store.folder / "history.json").write_bytes(b"[")
    with pytest.raises(StoreError, match=r"history\.json: Input data was truncated; restore it"):
        store.promote(name(1), [], now_ms=1)
    (policy.model_dir / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot use .*set policy\.model_dir"):
        ModelStore(policy.model_dir / "file", "fusion", "").open()


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "current.json"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*No space left on device; free space"):
        write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["current.json"]
    assert path.read_bytes() == b"old"


def test_old_candidates_are_deleted_but_never_what_a_rollback_needs(store: ModelStore, write_version: WriteVersion) -> None:
    for number in range(1, 10):
        write_version(number)
    for number in (1, 2, 4):
        store.promote(name(number), [], now_ms=number)
    assert store.prune(2, now_ms=9) == [name(number) for number in (1, 3, 5, 6, 7)]
    assert store.candidates() == [name(number) for number in (2, 4, 8, 9)]
    assert store.judgement(name(5)).reasons == ["deleted unjudged: newer candidates came"]
    assert store.rollback(["bad"], now_ms=10).model_version == name(2)
    assert store.rollback(["bad"], now_ms=11).model_version == ""


class KilledError(Exception):
    """Stands for kill -9: nothing after the write that it interrupts happens."""


class Dying:
    """Writes files until the `after`-th one, and dies before that."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, path: Path, content: bytes) -> None:
        if self.left == 0:
            raise KilledError(path.name)
        self.left -= 1
        write_atomically(path, content)


def snapshot(store: ModelStore) -> dict[str, object]:
    files = [*store.folder.glob("*.json"), *(store.folder / "verdicts").glob("*.json")]
    return {path.name: msgspec.json.decode(path.read_bytes()) for path in files}


CHANGES = {
    "promote": lambda store: store.promote(name(3), ["good"], now_ms=30),
    "rollback": lambda store: store.rollback(["bad"], now_ms=30),
    "pin": lambda store: store.pin(name(1), ["held"], now_ms=30),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_killed_at_any_write_a_change_has_happened_whole_or_not_at_all(
    policy: PolicySettings, store: ModelStore, write_version: WriteVersion, tmp_path: Path, change: str
) -> None:
    import shutil

    for number in (1, 2, 3):
        write_version(number)
    for number in (1, 2):
        store.promote(name(number), [], now_ms=number)
    before = snapshot(store)
    shutil.copytree(policy.model_dir, tmp_path / "start")
    CHANGES[change](store)
    whole = snapshot(store)
    assert whole != before
    outcomes = []
    for after in range(10):
        shutil.rmtree(policy.model_dir)
        shutil.copytree(tmp_path / "start", policy.model_dir)
        try:
            CHANGES[change](ModelStore(policy.model_dir, "fusion", policy.spec_hash, write=Dying(after)))
        except KilledError:
            store.recover()
            outcomes.append(snapshot(store) == whole)
            assert outcomes[-1] or snapshot(store) == before
            store.recover()
            assert snapshot(store) == (whole if outcomes[-1] else before)
        else:
            break
    assert outcomes[0] is False
    assert len(outcomes) >= 2
    assert all(outcomes[1:])


def test_the_commands_list_promote_pin_and_roll_back(policy: PolicySettings, write_version: WriteVersion) -> None:
    store = commands.open_store(policy)
    for number in (1, 2, 3, 4):
        write_version(number)
    write_version(5, spec_hash="other")
    write_version(6)
    (store.folder / "candidates" / name(6) / "candidate.json").write_bytes(b"?")
    commands.promote(store, policy, name(1), now_ms=1)
    commands.promote(store, policy, name(2), now_ms=2)
    commands.rollback(store, "reward fell", now_ms=3)
    store.refuse(name(3), ["not better than random"], now_ms=4)
    rows = commands.list_versions(store)
    assert [(row.model_version[-1], row.status) for row in rows] == [
        ("6", "unreadable"),
        ("5", "candidate"),
        ("4", "candidate"),
        ("3", "refused"),
        ("2", "rolled back"),
        ("1", "current"),
    ]
    assert (rows[3].advantage, rows[3].advantage_se, rows[3].random_advantage, rows[3].reasons) == (
        0.2,
        0.01,
        -0.1,
        "not better than random",
    )
    with pytest.raises(ActorError, match="made for specification other"):
        commands.promote(store, policy, name(5), now_ms=5)
    commands.pin(store, policy, name(4), now_ms=6)
    assert commands.list_versions(store)[2].status == "pinned"
    commands.unpin(store, now_ms=7)
    assert commands.list_versions(store)[2].status == "current"
