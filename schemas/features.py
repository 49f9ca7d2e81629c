"""The feature specification: one list of features generates the preprocessing, the network, the graph's inputs and the docs table."""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_serializer, field_validator, model_validator

from schemas.state_columns import DENSE, IDS, PLAIN, list_input, rows_input

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_MAX_ROWS = 1 << 24
"""Of a table that is not hashed: a code with more values than this has too many windows or digits."""


class WrongStateError(ValueError):
    """A state whose feature has the wrong type or is not a finite number; the message names the feature."""


def window_ms(window: str) -> int:
    """The length of a window such as 6h."""
    return int(window[:-1]) * _UNITS_MS[window[-1]]


class _Feature(BaseModel):
    """What every feature has: `name` is what it is called in the model, `source` its key in the state (by default the same).

    A key with dots is a path: `device.os` is the value of `os` in the object `device`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1)
    source: str = ""

    @property
    def key(self) -> str:
        """The key of the state that it reads."""
        return self.source or self.name


class _Embedded(BaseModel):
    """Ids with embeddings of `dim` columns. Table `hash`: they are hashed into `buckets` rows.

    `dynamic`: no two ids share a row, the rows lie outside of the network, and `buckets` means nothing: docs/embeddings.md.
    """

    table: Literal["hash", "dynamic"] = "hash"
    buckets: int = Field(1024, ge=2, lt=1 << 31)
    dim: int = Field(8, ge=1)

    @property
    def is_dynamic(self) -> bool:
        """Whether its embeddings lie outside of the network."""
        return self.table == "dynamic"


class DenseFeature(_Feature):
    """A number; `default` where a state does not have it. A default of nan: it is missing, no value stands for it.

    `log_zscore` takes sign(x) log(1 + |x|) first; `none` passes x as it is.
    """

    default: Annotated[float, WithJsonSchema({"anyOf": [{"type": "number"}, {"const": "nan"}]})] = 0.0
    normalisation: Literal["zscore", "log_zscore", "none"] = "zscore"

    @field_validator("default")
    @classmethod
    def _is_finite_or_missing(cls, default: float) -> float:
        if math.isinf(default):
            raise ValueError("expected a finite number, or nan for a value that may be missing")
        return default

    @field_validator("normalisation")
    @classmethod
    def _can_be_missing_only_where_normalised(cls, normalisation: str, others: ValidationInfo) -> str:
        if normalisation == "none" and math.isnan(others.data.get("default", 0.0)):
            raise ValueError("a number that passes as it is needs a default: only the Z-score has a value for a missing one")
        return normalisation

    @field_serializer("default", when_used="json")
    def _without_nan(self, default: float) -> float | str:
        """JSON has no NaN, and a specification must be the same one once it was written and read."""
        return "nan" if math.isnan(default) else default


class IdFeature(_Feature, _Embedded):
    """A category; `default` where a state does not have it (empty: no id, row 0)."""

    default: str = ""
    length: ClassVar[int] = 1
    """With a dynamic table it is a list of one."""


class MultiIdFeature(_Feature, _Embedded):
    """A set of ids, the newest `length` of a list: their embeddings are pooled into one."""

    default: tuple[str, ...] = ()
    length: int = Field(20, ge=1)
    pooling: Literal["mean", "sum", "max"] = "mean"


class SequenceFeature(_Feature, _Embedded):
    """The newest `length` ids of a list, in order; shorter lists are padded in front.

    `cnn`: the matrix of their embeddings goes through a 1-D CNN, then maximum and mean. `attention`: their embeddings' mean, weighted by
    a learned query.
    """

    default: tuple[str, ...] = ()
    length: int = Field(20, ge=1)
    pooling: Literal["cnn", "attention"] = "cnn"
    buckets: int = Field(4096, ge=2, lt=1 << 31)
    dim: int = Field(16, ge=1)


class BinarySequenceFeature(_Feature):
    """A habit as one code: a string of digits, one for each window, smallest first. Every code has its own row: nothing is hashed.

    With `digits` 2: whether it happened within the window; with N: how often, N - 1 standing for more, too.
    """

    windows: tuple[str, ...] = Field(("1h", "6h", "1d", "3d", "1w"), min_length=1)
    digits: int = Field(2, ge=2, le=10)
    dim: int = Field(8, ge=1)

    @property
    def windows_ms(self) -> tuple[int, ...]:
        """The windows' lengths."""
        return tuple(map(window_ms, self.windows))

    @property
    def rows(self) -> int:
        """Rows of its table: no code, and every code."""
        return int(1 + self.digits ** len(self.windows))

    @model_validator(mode="after")
    def _windows_are_durations_that_grow(self) -> Self:
        wrong = [window for window in self.windows if not re.fullmatch(r"[1-9]\d{0,5}[smhdw]", window)]
        if wrong:
            raise ValueError(f"window {wrong[0]!r}: expected a number and one of s, m, h, d, w, such as 6h")
        if any(later <= earlier for earlier, later in zip(self.windows_ms, self.windows_ms[1:], strict=False)):
            raise ValueError(f"windows must grow, got {', '.join(self.windows)}")
        if self.rows > _MAX_ROWS:
            raise ValueError(f"{self.digits} digits in {len(self.windows)} windows are more than {_MAX_ROWS} codes")
        return self


class CrossFeature(BaseModel):
    """The combination of some id and binary-sequence features of this specification, hashed as one id; none where one is missing."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1)
    of: tuple[str, ...] = Field(min_length=2)
    buckets: int = Field(4096, ge=2, lt=1 << 31)
    dim: int = Field(8, ge=1)


class VectorFeature(_Feature):
    """A list of `size` numbers, such as a text's embedding; zeros where a state does not have it. `l2` scales it to length 1."""

    size: int = Field(ge=1, le=65_536)
    normalisation: Literal["none", "l2"] = "none"


Feature = DenseFeature | IdFeature | MultiIdFeature | SequenceFeature | BinarySequenceFeature | CrossFeature | VectorFeature
ListFeature = MultiIdFeature | SequenceFeature
ListedFeature = ListFeature | IdFeature

_READ_AS: dict[type[Feature], str] = {
    DenseFeature: "a number",
    IdFeature: "a string",
    MultiIdFeature: "a list of strings",
    SequenceFeature: "a list of strings",
    BinarySequenceFeature: "a string",
    VectorFeature: "a list of numbers",
}


class Table(NamedTuple):
    """One embedding table of the columns `ids`."""

    name: str
    rows: int
    dim: int


class GraphInput(NamedTuple):
    """One input of the served graph: [B, width]."""

    name: str
    type: Literal["float32", "int64"]
    width: int


class FeatureSpec(BaseModel):
    """The features of a state, in the order in which the encoder reads them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense: tuple[DenseFeature, ...] = ()
    ids: tuple[IdFeature, ...] = ()
    multi_ids: tuple[MultiIdFeature, ...] = ()
    sequences: tuple[SequenceFeature, ...] = ()
    binary_sequences: tuple[BinarySequenceFeature, ...] = ()
    crosses: tuple[CrossFeature, ...] = ()
    vectors: tuple[VectorFeature, ...] = ()
    hash: Literal["crc32"] = "crc32"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [feature.name for feature in self.features()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"features named twice: {', '.join(twice)}")
        if not names:
            raise ValueError("a feature specification needs at least one feature")
        crossable = [feature.name for feature in (*self.ids, *self.binary_sequences)]
        for cross in self.crosses:
            unknown = [name for name in cross.of if name not in crossable]
            if unknown:
                raise ValueError(f"feature {cross.name} crosses {unknown[0]!r}, which is none of {', '.join(crossable) or '(no ids)'}")
        self._check_paths()
        read_by: dict[str, Feature] = {}
        for feature in self.read():
            first = read_by.setdefault(feature.key, feature)
            if _READ_AS[type(first)] != _READ_AS[type(feature)]:
                kinds = f"{first.name} as {_READ_AS[type(first)]}, {feature.name} as {_READ_AS[type(feature)]}"
                raise ValueError(f"{feature.key!r} of a state is read by {kinds}: one of them would refuse every state")
            if repr(getattr(first, "default", "")) != repr(getattr(feature, "default", "")):  # nan is not equal to itself
                raise ValueError(f"{feature.key!r} of a state has two defaults, of {first.name} and of {feature.name}: give them the same")
        return self

    def _check_paths(self) -> None:
        objects: dict[str, str] = {}
        for feature in self.read():
            parts = feature.key.split(".")
            if not all(parts):
                raise ValueError(f"feature {feature.name}: {feature.key!r} is no path: expected names with one dot between them")
            objects |= {".".join(parts[:depth]): feature.name for depth in range(1, len(parts))}
        for feature in self.read():
            if feature.key in objects:
                kinds = f"{objects[feature.key]} as an object, {feature.name} as {_READ_AS[type(feature)]}"
                raise ValueError(f"{feature.key!r} of a state is read by {kinds}: one of them would refuse every state")

    def features(self) -> Iterator[Feature]:
        """Every feature."""
        yield from self.read()
        yield from self.crosses

    def read(self) -> Iterator[Any]:
        """Those that read a state: all but the crosses."""
        for features in (self.dense, self.ids, self.multi_ids, self.sequences, self.binary_sequences, self.vectors):
            yield from features

    @property
    def normalised(self) -> tuple[DenseFeature, ...]:
        """The columns `dense`: what the model normalises."""
        return tuple(feature for feature in self.dense if feature.normalisation != "none")

    @property
    def passed(self) -> tuple[DenseFeature, ...]:
        """The first columns of `plain`; the vectors follow."""
        return tuple(feature for feature in self.dense if feature.normalisation == "none")

    @property
    def tables(self) -> tuple[Table, ...]:
        """One for each column of `ids`."""
        hashed = [Table(feature.name, feature.buckets, feature.dim) for feature in self.ids if not feature.is_dynamic]
        coded = [Table(feature.name, feature.rows, feature.dim) for feature in self.binary_sequences]
        return (*hashed, *coded, *(Table(feature.name, feature.buckets, feature.dim) for feature in self.crosses))

    @property
    def lists(self) -> tuple[ListFeature, ...]:
        """Those that a state has as lists."""
        return (*self.multi_ids, *self.sequences)

    @property
    def listed(self) -> tuple[ListedFeature, ...]:
        """The columns `sequences`: lists, and ids with dynamic tables as lists of one."""
        return (*self.lists, *(feature for feature in self.ids if feature.is_dynamic))

    @property
    def dynamic(self) -> tuple[ListedFeature, ...]:
        """Those whose embeddings lie outside of the network."""
        return tuple(feature for feature in self.listed if feature.is_dynamic)

    @property
    def plain_size(self) -> int:
        """Numbers in `plain`."""
        return len(self.passed) + sum(feature.size for feature in self.vectors)

    def inputs(self) -> tuple[GraphInput, ...]:
        """What the served graph takes; inputs of width 0 are left out."""
        columns = (
            GraphInput(DENSE, "float32", len(self.normalised)),
            GraphInput(PLAIN, "float32", self.plain_size),
            GraphInput(IDS, "int64", len(self.tables)),
        )
        lists = (GraphInput(list_input(feature.name), "int64", feature.length) for feature in self.listed)
        matrices = (GraphInput(rows_input(feature.name), "float32", feature.length * feature.dim) for feature in self.dynamic)
        return (*(column for column in columns if column.width), *lists, *matrices)


def differences(theirs: dict[str, Any], ours: FeatureSpec) -> str:
    """In what a specification (as JSON) that something was made with differs from ours: features by name."""
    sections = {name: value for name, value in ours.model_dump(mode="json").items() if name != "hash"}
    found = []
    for section, features in sections.items():
        was = {feature["name"]: feature for feature in theirs.get(section, [])}
        now = {feature["name"]: feature for feature in features}
        found += [f"{section} {name} is new" for name in now if name not in was]
        found += [f"{section} {name} is gone" for name in was if name not in now]
        for name in (name for name in now if name in was):
            changed = [key for key in now[name] if was[name].get(key) != now[name][key]]
            found += [f"{section} {name} had {key} {was[name].get(key)!r} (now {now[name][key]!r})" for key in changed]
        if not found and [*was] != [*now]:
            found.append(f"{section} stood in another order")
    return "; ".join(found) or "no feature"
