"""Exposure messages -> the encoder's columns, unopened bytes decoded once: the batch counterpart of `state_reader.py`.

A message is decoded into a struct made for the specification: what no feature reads is skipped unseen, numbers come checked. Lists of
ids stay bytes, which Arrow splits for all messages at once. Structs look their fields up in order, starting behind the last one found:
they are made in the order in which the messages have them (three times faster at a hundred features than in the opposite order).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from struct import Struct as Packed
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw, Struct, defstruct

from schemas.codec import UNREADABLE, decode_served_state
from schemas.exposure import Propensity, SpecHash
from schemas.features import FeatureSpec, VectorFeature, WrongStateError
from schemas.raw_columns import ColumnMaker, Floats, OpenColumns, TextLists, UnboundedError
from schemas.state_columns import StateColumns
from schemas.state_reader import Codes, StateReader

_DECODED_AT_ONCE = 32
"""Messages whose structs are alive together: some hundred kilobytes, which stay in the processor's cache until they are columns."""
_BRACKET, _QUOTE = b'["'
_MAX_ORDERS = 8
"""Orders of fields whose structs are kept: as many producers, more or less."""
_decode_list = msgspec.json.Decoder(list[str | float]).decode

_NO_VECTOR: list[float] = []


READ_ERRORS = (*UNREADABLE, WrongStateError, TypeError, UnboundedError)
"""What reading raises where a message cannot be read."""


class _Keys(Struct):
    state: dict[str, Raw]


Tree = dict[str, Any]
"""By name the type and default of what is read, or a tree of what is read within an object."""
_decode_keys = msgspec.json.Decoder(_Keys).decode


class Served(NamedTuple):
    """Messages as columns: the states, and one action and specification hash a message."""

    states: StateColumns
    actions: list[list[float]]
    spec_hashes: list[str]


class MessageReader:
    """Reads exposure messages by one specification."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._maker = ColumnMaker(spec)
        self._states = StateReader(spec)
        self._codes = [Codes(feature) for feature in spec.binary_sequences]
        self._tree = _tree(_field_types(spec))
        self._fields = _attributes(self._tree)
        """The struct's attribute of each key: keys need not be Python names, and may lead into objects."""
        self._decoders: dict[tuple[str, ...], Callable[[bytes], Any]] = {}
        keys = self._fields
        self._numbers = _tuple_of([keys[feature.key] for feature in spec.dense])
        self._pack = Packed(f"{len(spec.dense)}d").pack
        self._keyed_ids = [place for place, feature in enumerate(spec.ids) if feature.is_dynamic]
        self._ids = _tuple_of([keys[feature.key] for feature in spec.ids])
        self._lists = [attrgetter(keys[feature.key]) for feature in spec.lists]
        self._code_strings = [attrgetter(keys[feature.key]) for feature in spec.binary_sequences]
        self._vectors = [attrgetter(keys[feature.key]) for feature in spec.vectors]

    def read(self, messages: Sequence[bytes]) -> Served:
        """All of them. Raises one of READ_ERRORS where one cannot be read: `why_not` says which, and why."""
        opened, actions, spec_hashes = self.open(messages)
        return Served(self._maker.columns(opened.raw()), actions, spec_hashes)

    def open(self, messages: Sequence[bytes]) -> tuple[OpenColumns, list[list[float]], list[str]]:
        """The states as columns, their ids not hashed yet; and an action and a specification hash a message."""
        decode = self._decoder(messages)
        numbers: list[bytes] = []
        texts: list[str] = []
        lists: list[list[bytes]] = [[] for _ in self._lists]
        codes: list[list[int]] = [[] for _ in self._codes]
        vectors: list[list[list[float]]] = [[] for _ in self._vectors]
        actions: list[list[float]] = []
        spec_hashes: list[str] = []
        for start in range(0, len(messages), _DECODED_AT_ONCE):
            served = [decode(message) for message in messages[start : start + _DECODED_AT_ONCE]]
            states = [message.state for message in served]
            actions += [message.action for message in served]
            spec_hashes += [message.spec_hash for message in served]
            numbers += [self._pack(*values) for values in map(self._numbers, states)]
            texts.extend(chain.from_iterable(map(self._ids, states)))
            for raws, raw_of in zip(lists, self._lists, strict=True):
                raws.extend(map(bytes, map(raw_of, states)))
            for found, known, code_of in zip(codes, self._codes, self._code_strings, strict=True):
                found.extend(known[code_of(state)] for state in states)
            for found_vectors, vector_of in zip(vectors, self._vectors, strict=True):
                found_vectors.extend(map(vector_of, states))
        opened = OpenColumns(
            np.frombuffer(b"".join(numbers), np.float64).reshape(len(messages), len(self.spec.dense)),
            pa.array(texts, pa.string()),
            len(self.spec.ids),
            self._keyed_ids,
            [np.array(found, np.int64) for found in codes],
            [
                text_lists(raws, feature.length)._replace(are_keys=feature.is_dynamic)
                for feature, raws in zip(self.spec.lists, lists, strict=True)
            ],
            [_matrix(feature, found) for feature, found in zip(self.spec.vectors, vectors, strict=True)],
        )
        return opened, actions, spec_hashes

    def why_not(self, message: bytes) -> Exception | None:
        """Why this message cannot be read; None where it can. WrongStateError names the feature."""
        try:
            self.read([message])
        except READ_ERRORS as error:
            try:
                self._states.columns([decode_served_state(message).state])
            except (*UNREADABLE, WrongStateError) as named:
                return named
            return error
        return None

    def _decoder(self, messages: Sequence[bytes]) -> Callable[[bytes], Any]:
        """The decoder for the order in which the first message has its features."""
        try:
            order = tuple(name for name in _decode_keys(messages[0]).state if name in self._tree) if messages else ()
        except UNREADABLE:
            order = ()
        if order not in self._decoders:
            if len(self._decoders) >= _MAX_ORDERS:
                self._decoders.clear()
            rest = [name for name in self._tree if name not in order]
            self._decoders[order] = self._make_decoder([*order, *rest])
        return self._decoders[order]

    def _make_decoder(self, names: Sequence[str]) -> Callable[[bytes], Any]:
        served: list[Any] = [
            ("state", _struct(self._tree, names)),
            ("action", list[float]),
            ("propensity", Propensity, 1.0),
            ("spec_hash", SpecHash, ""),
        ]
        return msgspec.json.Decoder(defstruct("ReadMessage", served, gc=False)).decode


def _field_types(spec: FeatureSpec) -> dict[str, tuple[Any, Any]]:
    """Type and default of each key of a state that a feature reads."""
    numbers: dict[str, tuple[Any, Any]] = {feature.key: (float, feature.default) for feature in spec.dense}
    texts = {feature.key: (str, feature.default) for feature in spec.ids} | {feature.key: (str, "") for feature in spec.binary_sequences}
    lists = {feature.key: (Raw, Raw(msgspec.json.encode(feature.default))) for feature in spec.lists}
    vectors = {feature.key: (list[float], msgspec.field(default_factory=lambda: _NO_VECTOR)) for feature in spec.vectors}
    return numbers | texts | lists | vectors


def _tree(fields: Mapping[str, tuple[Any, Any]]) -> Tree:
    """The same by name, with a tree for each object that a key leads into."""
    tree: Tree = {}
    for key, field in fields.items():
        *objects, last = key.split(".")
        within = tree
        for name in objects:
            within = within.setdefault(name, {})
        within[last] = field
    return tree


def _attributes(tree: Tree) -> dict[str, str]:
    """By key, as an attrgetter takes it."""
    made: dict[str, str] = {}
    for place, (name, field) in enumerate(tree.items()):
        if isinstance(field, dict):
            made |= {f"{name}.{key}": f"f{place}.{attribute}" for key, attribute in _attributes(field).items()}
        else:
            made[name] = f"f{place}"
    return made


def _struct(tree: Tree, names: Sequence[str]) -> type[Struct]:
    """A struct whose fields stand in the order of `names`."""
    attributes = {name: f"f{place}" for place, name in enumerate(tree)}
    fields: list[Any] = []
    for name in names:
        field = tree[name]
        if isinstance(field, dict):
            within = _struct(field, [*field])
            field = within, msgspec.field(default_factory=within)
        fields.append((attributes[name], *field))
    return defstruct("ReadState", fields, rename={attribute: name for name, attribute in attributes.items()}, gc=False)


def _tuple_of(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """The values of some attributes; an attrgetter of one name gives no tuple."""
    if len(names) == 1:
        value_of = attrgetter(names[0])
        return lambda state: (value_of(state),)
    return attrgetter(*names) if names else lambda _: ()


def _matrix(feature: VectorFeature, vectors: Sequence[list[float]]) -> Floats:
    wrong = next((vector for vector in vectors if vector is not _NO_VECTOR and len(vector) != feature.size), None)
    if wrong is not None:
        raise WrongStateError(f"feature {feature.name}: expected {feature.size} numbers, got {len(wrong)}")
    zeros = [0.0] * feature.size
    cells = chain.from_iterable(zeros if vector is _NO_VECTOR else vector for vector in vectors)
    return np.fromiter(cells, np.float64, len(vectors) * feature.size).reshape(len(vectors), feature.size)


def text_lists(lists: Sequence[bytes], length: int) -> TextLists:
    """JSON lists of strings as one column; at least their newest `length`.

    Raises one of UNREADABLE where one is no list of strings and numbers, TypeError where one of the newest is a number.
    """
    plain = _split(lists)
    if plain is None:
        opened = [_decode_list(ids)[-length:] for ids in lists]
        lengths = np.fromiter(map(len, opened), np.int64, len(opened))
        flat = list(chain.from_iterable(opened))
        if not all(isinstance(value, str) for value in flat):
            raise TypeError("an id is a string")
        return TextLists(pa.array(flat, pa.string()), lengths)
    return plain


def _split(lists: Sequence[bytes]) -> TextLists | None:
    """Lists as most producers write them, `["a","b"]` without escapes and spaces, taken apart at `","`; None where one is otherwise.

    They are JSON already. So if there are twice as many quotes as pieces, none lies within a piece, and the pieces are the strings.
    """
    held = [ids for ids in lists if ids != b"[]"]
    if not held:
        return TextLists(pa.array([], pa.string()), np.zeros(len(lists), np.int64))
    sizes = np.fromiter(map(len, held), np.int64, len(held))
    joined = b"".join(held)
    read = np.frombuffer(joined, np.uint8)
    ends = np.cumsum(sizes)
    begins = ends - sizes
    if sizes.min() < len(b'[""]') or b"\\" in joined:
        return None
    if not ((read[begins] == _BRACKET) & (read[begins + 1] == _QUOTE) & (read[ends - 2] == _QUOTE)).all():
        return None
    try:
        inner = pa.array([b'","'.join([ids[2:-2] for ids in held])], pa.binary()).cast(pa.string())  # refuses what is not UTF-8
    except pa.ArrowInvalid:
        return None
    pieces = pc.split_pattern(inner, '","').flatten()
    if np.count_nonzero(read == _QUOTE) != 2 * len(pieces):
        return None
    # where a list begins among the pieces: pieces lie three bytes apart, and so do the insides of the lists
    offsets = np.frombuffer(pieces.buffers()[1], np.int32)[pieces.offset : pieces.offset + len(pieces)]
    firsts = np.searchsorted(offsets - offsets[0] + 3 * np.arange(len(pieces)), begins - np.arange(len(held)))
    lengths = np.zeros(len(lists), np.int64)
    lengths[np.fromiter((ids != b"[]" for ids in lists), np.bool_, len(lists))] = np.diff(firsts, append=len(pieces))
    return TextLists(pieces, lengths)
