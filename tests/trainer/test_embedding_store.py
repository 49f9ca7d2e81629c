from pathlib import Path

import numpy as np
import pytest

from headrace.settings import ConfigError
from trainer import embedding_store
from trainer.embedding_store import EmbeddingStore

KEYS = np.array([2, 2**63 + 5, 300, 255], np.uint64)
RECORDS = np.arange(12, dtype=np.uint32).reshape(4, 3) * 0x01010101


def scanned(store: EmbeddingStore) -> dict[int, tuple[int, int]]:
    parts = list(store.scan())
    return {key: (seen, times) for part in parts for key, seen, times in zip(*(column.tolist() for column in part), strict=True)}


def test_records_are_read_as_they_were_written_in_any_order_and_deleted_ones_are_gone(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "store")
    store.write(KEYS, RECORDS)
    store.write(KEYS[:1], RECORDS[3:])
    assert store.read(KEYS[[2, 0, 1]]).tolist() == RECORDS[[2, 3, 1]].tolist()
    store.delete(KEYS[2:])
    store.delete(KEYS[2:])
    assert sorted(scanned(store)) == [2, 2**63 + 5]


def test_a_scan_tells_ids_that_wait_from_those_with_rows_over_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_store, "SCAN_ROWS", 2)
    store = EmbeddingStore(tmp_path / "store")
    store.write(KEYS[:3], RECORDS[:3])
    store.write(KEYS[3:], np.array([[70, 9]], np.uint32))
    assert scanned(store) == {2: (0, 0), 2**63 + 5: (3 * 0x01010101, 0), 300: (6 * 0x01010101, 0), 255: (70, 9)}
    assert len(list(store.scan())) == 2


def test_a_copy_holds_what_was_written_without_a_log_and_is_not_changed_by_its_readers(tmp_path: Path) -> None:
    first = EmbeddingStore(tmp_path / "store")
    first.write(KEYS, RECORDS)
    first.snapshot(tmp_path / "copy")
    first.write(KEYS[:1], RECORDS[1:2])
    first.close()
    for _ in range(2):
        again = EmbeddingStore(tmp_path / "store", tmp_path / "copy")
        assert again.read(KEYS).tolist() == RECORDS.tolist()
        again.delete(KEYS)
        again.snapshot(tmp_path / "other")
        again.close()
        assert scanned(EmbeddingStore(tmp_path / "third", tmp_path / "other")) == {}
        for path in (tmp_path / "other").iterdir():
            path.unlink()
        (tmp_path / "other").rmdir()


def test_a_folder_that_cannot_be_used_and_a_copy_that_is_damaged_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot use embeddings in .*file") as caught:
        EmbeddingStore(tmp_path / "file" / "store")
    assert "\n" not in str(caught.value)
    store = EmbeddingStore(tmp_path / "store")
    store.write(KEYS, RECORDS)
    store.snapshot(tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"cannot write .*copy"):
        store.snapshot(tmp_path / "copy")
    (table,) = (tmp_path / "copy").glob("*.sst")
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=r"cannot use embeddings in .*again"):
        EmbeddingStore(tmp_path / "again", tmp_path / "copy")
