"""The feature file and the lines of what is wrong in it."""

import math
from pathlib import Path

import pytest

from headrace.feature_file import read_feature_file
from headrace.policy_settings import PolicySettings
from headrace.settings import ConfigError, load
from headrace.toml_line import toml_line
from schemas.features import FeatureSpec

FILE = """\
# what the ranker logs
[[dense]]
name = "hour"
default = 12.0

[[ids]]
name = "city"
buckets = 64

[[sequences]]
name = "recent_items"
pooling = "attention"
length = 5
"""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_CONFIG", raising=False)


def test_a_feature_file_is_the_same_as_the_table_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("features.toml").write_text(FILE)
    Path("headrace.toml").write_text('[policy]\nfeatures = "features.toml"\n')
    from_file = load(PolicySettings)
    table = FILE.replace("[[", "[[policy.features.")
    Path("headrace.toml").write_text(f'[policy]\npolicy = "fusion"\n{table}')
    assert load(PolicySettings).features == from_file.features
    assert from_file.features.sequences[0].pooling == "attention"
    Path("headrace.toml").unlink()
    monkeypatch.setenv("HEADRACE_POLICY_FEATURES", "features.toml")
    assert load(PolicySettings).spec_hash == from_file.spec_hash
    monkeypatch.setenv("HEADRACE_POLICY_FEATURES", '{"ids": [{"name": "a"}]}')
    assert load(PolicySettings).features == FeatureSpec.model_validate({"ids": [{"name": "a"}]})


def test_a_feature_file_may_have_a_number_without_a_default() -> None:
    Path("features.toml").write_text(FILE.replace("12.0", "nan"))
    assert math.isnan(read_feature_file(Path("features.toml")).dense[0].default)


WRONG = [
    (('"city"', "7"), r"features\.toml line 7: ids\.0\.name = 7: Input should be a valid string"),
    (("buckets = 64", "buckets = 1"), r"features\.toml line 8: ids\.0\.buckets = 1: Input should be greater than or equal to 2"),
    (("buckets = 64", 'table = "magic"'), r"features\.toml line 8: ids\.0\.table = 'magic': Input should be 'hash' or 'dynamic'"),
    (("length = 5", "lenght = 5"), r"features\.toml line 13: sequences\.0\.lenght = 5: Extra inputs are not permitted"),
    (('"attention"', '"mean"'), r"features\.toml line 12: sequences\.0\.pooling = 'mean': Input should be 'cnn' or 'attention'"),
    (('name = "hour"\n', ""), r"features\.toml line 2: dense\.0\.name: Field required"),
    (("[[ids]]", "[[id]]"), r"features\.toml line 6: id = .*known are dense, ids, multi_ids"),
    (("12.0", "inf"), r"features\.toml line 4: dense\.0\.default = inf: expected a finite number, or nan"),
    (("12.0", 'nan\nnormalisation = "none"'), r"features\.toml line 5: dense\.0\.normalisation = 'none': a number that .* needs a default"),
    (('"city"', '"hour"'), r"features\.toml: features named twice: hour"),
    (("[[ids]]", "[ids]]"), r"features\.toml: not TOML: .*line 6"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_feature_file_is_one_line_with_the_line_that_is_wrong(change: tuple[str, str], message: str) -> None:
    Path("features.toml").write_text(FILE.replace(*change))
    with pytest.raises(ConfigError, match=message) as raised:
        read_feature_file(Path("features.toml"))
    assert "\n" not in str(raised.value)
    Path("headrace.toml").write_text('[policy]\nfeatures = "features.toml"\n')
    with pytest.raises(ConfigError, match=message) as raised:
        load(PolicySettings)
    assert "\n" not in str(raised.value)


def test_a_feature_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"feature file absent\.toml: No such file"):
        read_feature_file(Path("absent.toml"))


def test_a_wrong_feature_in_the_settings_file_is_named_with_its_line() -> None:
    features = 'dense = [\n  { name = "a" },\n  { name = "b", default = "x" },\n]\n'
    Path("headrace.toml").write_text(f'[policy]\npolicy = "p"\n\n[policy.features]\n{features}')
    with pytest.raises(
        ConfigError, match=r"policy\.features\.dense\.1\.default = 'x': Input should be a valid number.*\(headrace\.toml line 7\)"
    ):
        load(PolicySettings)


def test_no_line_is_named_for_a_value_that_is_not_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("headrace.toml").write_text('[policy]\npolicy = "p"\n')
    monkeypatch.setenv("HEADRACE_POLICY_POLICY", "../up")
    with pytest.raises(ConfigError, match=r"policy\.policy = '\.\./up'") as raised:
        load(PolicySettings)
    assert "line" not in str(raised.value)


TEXT = """\
# a comment
[policy]
policy = "x"

[policy.features]
dense = [
    { name = "a" }, { name = "b" },
    { name = "c", default = 1.0 },
]

[[policy.features.sequences]]
name = "s"
[[policy.features.sequences]]

name = "t"
length = 4
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("policy", "policy"), 3),
        (("policy", "features"), 5),
        (("policy", "features", "dense", 1, "name"), 7),
        (("policy", "features", "dense", 2, "default"), 8),
        (("policy", "features", "dense", 2, "absent"), 8),
        (("policy", "features", "sequences", 0, "name"), 12),
        (("policy", "features", "sequences", 1), 13),
        (("policy", "features", "sequences", 1, "length"), 16),
        (("absent",), None),
    ],
)
def test_the_line_of_a_value(path: tuple[str | int, ...], line: int | None) -> None:
    assert toml_line(TEXT, path) == line
