"""A partition's state on disk."""

import os
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from headrace.durable_rows import FIRST_LAYOUT
from headrace.settings import ConfigError
from headrace.step import Count
from headrace.store import PartitionStore

IN = Count("in", "exposures")


def test_rows_offsets_and_counts_come_back_after_reopening(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0")
    store.write([(b"b2", b"two"), (b"b1", b"one")], {"exposures": 5}, Counter({IN: 5}))
    store.write([(b"b2", None), (b"c", b"three")], {"feedback": 2}, Counter({IN: 1}))
    store.close()

    again = PartitionStore(tmp_path / "0")

    assert list(again.rows()) == [(b"b1", b"one"), (b"c", b"three")]
    assert again.offsets == {"exposures": 5, "feedback": 2}
    assert again.counts == Counter({IN: 6})
    again.close()


def test_a_wiped_store_is_empty_and_can_be_written(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0")
    store.write([(b"b", b"x")], {"exposures": 5}, Counter({IN: 5}))

    store.wipe()

    assert (list(store.rows()), store.offsets, store.counts) == ([], {}, Counter())
    store.write([(b"c", b"y")], {"exposures": 1}, Counter())
    assert list(store.rows()) == [(b"c", b"y")]
    store.close()


def test_a_second_worker_on_the_same_folder_is_told_what_to_do(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0")

    with pytest.raises(ConfigError, match=r"in use by another worker: give each worker its own stream\.state_dir"):
        PartitionStore(tmp_path / "0")
    store.close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cannot use state in"):
        PartitionStore(tmp_path / "file" / "0")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(ConfigError, match="no permission to write state"):
        PartitionStore(tmp_path / "0")


def test_it_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0")
    store.write([(b"a", b"1")], {"t": 1}, Counter())
    beside = PartitionStore(tmp_path / "0", read_only=True)
    store.write([(b"b", b"2"), (b"a", None)], {"t": 2}, Counter())
    assert (dict(beside.rows()), beside.offsets) == ({b"a": b"1"}, {"t": 1}), "as it was when it was opened"
    with pytest.raises(ConfigError, match="read only"):
        beside.write([(b"c", b"3")], {"t": 3}, Counter())
    beside.close()
    beside = PartitionStore(tmp_path / "0", read_only=True)
    assert (dict(beside.rows()), beside.offsets) == ({b"b": b"2"}, {"t": 2})
    beside.close()
    store.close()


def test_rows_of_another_layout_are_forgotten_with_their_offsets_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = PartitionStore(tmp_path / "0")
    store.write([(b"a", b"1")], {"t": 1}, Counter({Count("in", "t"): 1}))
    store.close()

    store = PartitionStore(tmp_path / "0")
    store.require_layout(FIRST_LAYOUT)
    assert dict(store.rows()) == {b"a": b"1"}
    store.require_layout(2)
    assert (dict(store.rows()), store.offsets, store.counts) == ({}, {}, Counter())
    assert caplog.messages == [f"the state in {tmp_path / '0'} has layout 1, this version has 2: rebuilding it from Kafka"]
    store.write([(b"b", b"2")], {"t": 1}, Counter())
    store.close()

    store = PartitionStore(tmp_path / "0")
    store.require_layout(2)
    assert dict(store.rows()) == {b"b": b"2"}
    assert len(caplog.messages) == 1
    store.close()


def size_mb(folder: Path) -> float:
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # RocksDB has deleted it meanwhile
            total += file.stat().st_size
    return total / 1e6


def test_large_values_lie_in_files_of_their_own_which_go_when_the_values_do(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0")
    chance = random.Random(1)
    lasting = chance.randbytes(20_000)
    store.write([(b"a", lasting)], {}, Counter())
    values = {number: chance.randbytes(1 << 20) for number in range(60)}
    sizes_mb = []
    for number in range(240):  # 20 MiB are live at a time, deleted in the order in which they came
        gone = (b"b%04d" % (number - 20), None)
        store.write([(b"b%04d" % number, values[number % 60]), gone, (b"m", bytes(2000))], {"t": number}, Counter())
        if number % 20 == 19:
            sizes_mb.append(size_mb(tmp_path / "0"))

    assert len(list((tmp_path / "0").glob("*.blob"))) > 0
    assert max(sizes_mb) < 200, sizes_mb
    store.close()
    again = PartitionStore(tmp_path / "0", read_only=True)
    expected = {b"a": lasting, b"m": bytes(2000)} | {b"b%04d" % number: values[number % 60] for number in range(220, 240)}
    assert dict(again.rows()) == expected
    assert again.get([b"a", b"b0239"]) == [lasting, values[59]]
    again.close()
