import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.id_index import _GOLDEN, EMPTY, GONE, MAX_LOAD, IdIndex


def colliding(count: int, start: int = 0) -> np.ndarray:
    """Ids whose home is one and the same slot, whatever the size of the table: their product with the golden ratio is tiny."""
    inverse = pow(int(_GOLDEN), -1, 1 << 64)
    return np.array([(place + 1 + start) * inverse % (1 << 64) for place in range(count)], np.uint64)


KEYS = st.lists(st.integers(2, 40) | st.sampled_from(colliding(40).tolist()), unique=True, max_size=30)


@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=12))
def test_it_finds_what_a_dict_finds_whatever_came_and_went(steps: list[tuple[bool, list[int]]]) -> None:
    index, known = IdIndex(), {}
    for number, (goes, ids) in enumerate(steps):
        if goes:
            going = np.array([key for key in ids if key in known], np.uint64)
            index.remove(index.find(going))
            known = {key: place for key, place in known.items() if key not in set(ids)}
        else:
            coming = np.array([key for key in ids if key not in known], np.uint64)
            slots = index.insert(coming)
            index.places[slots] = number
            index.seen[slots] = 7 * number
            known |= dict.fromkeys(coming.tolist(), number)
    asked = np.array([*range(2, 50), *colliding(45).tolist()], np.uint64)
    slots = index.find(asked)
    assert [int(key) for key, slot in zip(asked, slots, strict=True) if slot >= 0] == [key for key in asked.tolist() if key in known]
    there = slots[slots >= 0]
    assert (index.places[there] == [known[key] for key in asked.tolist() if key in known]).all()
    assert (index.seen[there] == 7 * index.places[there]).all()
    assert len(index) == len(known) == len(index.slots())


def test_columns_move_with_their_ids_when_the_table_grows() -> None:
    index = IdIndex()
    keys = np.random.default_rng(0).permutation(np.arange(2, 50_002, dtype=np.uint64))
    for part in np.split(keys, 50):
        slots = index.insert(part)  # first: it may make the columns anew
        index.places[slots] = part.astype(np.int32)
    slots = index.find(keys)
    assert (index.places[slots] == keys.astype(np.int32)).all()
    assert len(keys) <= MAX_LOAD * len(index.keys)
    assert (index.find(np.arange(60_000, 61_000, dtype=np.uint64)) == -1).all()


def test_ids_that_come_and_go_take_no_more_room_with_time() -> None:
    index = IdIndex()
    index.insert(np.arange(2, 402, dtype=np.uint64))
    for start in range(1000, 100_000, 100):
        keys = np.arange(start, start + 100, dtype=np.uint64)
        index.insert(keys)
        index.remove(index.find(keys))
    assert len(index.keys) == 1024
    assert (index.find(np.arange(2, 402, dtype=np.uint64)) >= 0).all()


def test_no_id_is_found_where_a_slot_is_empty_or_was_given_up() -> None:
    index = IdIndex()
    index.remove(index.insert(colliding(3)))
    assert index.find(np.array([EMPTY], np.uint64)).tolist() == [-1]
    assert index.find(colliding(5)).tolist() == [-1] * 5
    assert index.keys[index.keys == GONE].size == 3
