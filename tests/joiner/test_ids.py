"""Ids in buffers are what they were as strings."""

import random

import pyarrow as pa

from joiner.ids import EventIds, Ids

TEXTS = ["a", "", "ab", "häufig", "a", "b" * 300, "日本"]


def test_an_id_is_found_where_it_is_and_only_between_the_given_places() -> None:
    for column in (pa.array(TEXTS), pa.array(["before", *TEXTS]).slice(1)):
        ids = Ids(column)
        assert len(ids) == len(TEXTS)
        for text in {*TEXTS, "absent", "a" * 3}:
            assert [ids.is_at(place, text) for place in range(len(TEXTS))] == [other == text for other in TEXTS]
        for start in range(len(TEXTS)):
            for end in range(start, len(TEXTS) + 1):
                for text in {*TEXTS, "absent", "a" * 3}:
                    expected = TEXTS.index(text, start, end) if text in TEXTS[start:end] else -1
                    assert ids.index(text, start, end) == expected
    assert len(Ids(pa.array([], pa.string()))) == 0
    assert Ids(pa.array(["", ""])).index("", 1, 2) == 1


def test_an_event_is_new_once_on_each_page() -> None:
    rng, events, seen = random.Random(2), EventIds(), set[tuple[int, str]]()
    for _ in range(5000):
        event = rng.randrange(40), f"é{rng.randrange(60)}"
        assert events.add(*event) == (event not in seen)
        seen.add(event)
    assert len(seen) > 2000
