"""Keys in a buffer are what they were in columns, and an event is new once."""

import random

import pyarrow as pa
import pytest

from headrace.step import Record
from joiner.event_ids import EventIds
from joiner.page_keys import PageKeys
from joiner.pages import key_columns
from schemas.exposure import ExposureKey, ItemKey

TEXTS = ["a", "", "ab", "häufig", "b" * 300, "日本", "aaa"]


def columns_of(pages: list[tuple[str, str, int, list[str]]]) -> pa.RecordBatch:
    """Pages as (request_id, user_id, ts_ms, item_ids)."""
    keys = [ExposureKey(r, u, ts_ms, b"", b"", [ItemKey(i, 0) for i in items]) for r, u, ts_ms, items in pages]  # type: ignore[arg-type]
    return key_columns([Record(7 + page, 0, b"") for page in range(len(keys))], keys)


@pytest.mark.parametrize("before", [0, 3])
def test_the_keys_of_every_page_are_found_in_all_of_a_batch_and_in_a_slice(before: int) -> None:
    rng = random.Random(4)
    pages = [
        (rng.choice(TEXTS), rng.choice(TEXTS), rng.randrange(1 << 50), rng.choices(TEXTS[:-1], k=rng.randrange(1, 5))) for _ in range(60)
    ]
    keys = PageKeys(columns_of(pages).slice(before, 50))
    pages = pages[before : before + 50]
    assert (keys.pages, keys.rows) == (len(pages), sum(len(items) for _, _, _, items in pages))
    assert keys.times_ms().tolist() == [ts_ms for _, _, ts_ms, _ in pages]
    first_row = 0
    for page, (request_id, user_id, ts_ms, items) in enumerate(pages):
        assert keys.ts_ms(page) == ts_ms
        assert [text for text in [*TEXTS, "absent"] if keys.is_request(page, text)] == [request_id]
        assert [text for text in [*TEXTS, "absent"] if keys.is_user(page, text)] == [user_id]
        assert keys.row_of(page, None) == first_row == keys.row_bounds()[page]
        for text in [*TEXTS, "absent"]:
            assert keys.row_of(page, text) == (first_row + items.index(text) if text in items else -1)
        first_row += len(items)
    assert keys.row_bounds()[-1] == first_row


def test_an_event_is_new_once_on_each_page() -> None:
    rng, events, seen = random.Random(2), EventIds(), set[tuple[int, str]]()
    for _ in range(5000):
        event = rng.randrange(40), f"é{rng.randrange(60)}"
        assert events.add(*event) == (event not in seen)
        seen.add(event)
    assert len(seen) > 2000
