import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.checkpoint import Checkpoint, CheckpointError, read_newest, write_checkpoint


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint({"number": number}, {"weight": torch.full((3,), float(number))}, {"rows": np.arange(number)})


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 7, checkpoint(7))
    number, read = read_newest(tmp_path) or (0, checkpoint(0))
    assert number == 7
    assert read.progress == {"number": 7}
    assert torch.equal(read.learner["weight"], torch.full((3,), 7.0))
    assert read.columns["rows"].tolist() == list(range(7))


def test_the_newest_two_are_kept_and_nothing_temporary(tmp_path: Path) -> None:
    for number in (8, 9, 10, 11):
        write_checkpoint(tmp_path, number, checkpoint(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt-00000010", "ckpt-00000011"]


def test_no_folder_and_an_empty_folder_hold_no_checkpoint(tmp_path: Path) -> None:
    assert read_newest(tmp_path / "absent") is None
    assert read_newest(tmp_path) is None


@pytest.mark.parametrize(
    "damage", ["truncated", "bit flipped", "file missing", "manifest missing", "manifest torn", "manifest of another file"]
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    write_checkpoint(tmp_path, 1, checkpoint(1))
    newest = write_checkpoint(tmp_path, 2, checkpoint(2))
    learner, manifest = newest / "learner.pt", newest / "manifest.json"
    match damage:
        case "truncated":
            learner.write_bytes(learner.read_bytes()[:-1])
        case "bit flipped":
            content = bytearray(learner.read_bytes())
            content[len(content) // 2] ^= 1
            learner.write_bytes(content)
        case "file missing":
            (newest / "columns.npz").unlink()
        case "manifest missing":
            manifest.unlink()
        case "manifest torn":
            manifest.write_bytes(manifest.read_bytes()[:20])
        case _:
            manifest.write_text("{}")
    read = read_newest(tmp_path)
    assert read is not None
    assert read[0] == 1


def test_a_folder_that_was_never_renamed_is_no_checkpoint(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, 1, checkpoint(1))
    written.rename(tmp_path / ".ckpt-00000001.tmp-99")
    assert read_newest(tmp_path) is None


def test_a_left_over_temporary_folder_does_not_stop_the_next_write(tmp_path: Path) -> None:
    (tmp_path / f".ckpt-00000001.tmp-{os.getpid()}").mkdir()
    (tmp_path / f".ckpt-00000001.tmp-{os.getpid()}" / "learner.pt").write_bytes(b"old")
    write_checkpoint(tmp_path, 1, checkpoint(1))
    assert read_newest(tmp_path) is not None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_is_one_line_and_the_older_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    write_checkpoint(tmp_path, 1, checkpoint(1))

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("trainer.checkpoint.os.fsync", refuse)
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(tmp_path, 2, checkpoint(2))
    assert os.strerror(code) in str(caught.value)
    assert "ckpt-00000002" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-00000001"]


def test_a_file_where_the_folder_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(CheckpointError, match="state"):
        write_checkpoint(tmp_path / "state", 1, checkpoint(1))
    with pytest.raises(CheckpointError, match="state"):
        read_newest(tmp_path / "state")
