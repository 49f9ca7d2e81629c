"""The keys of a block's pages in one buffer: what feedback needs of them as long as they are open.

With ten million open items an object is not where the last one was, and whoever follows a reference waits for memory. What is worse:
objects that stay lie scattered among those that come and go with each batch, and whatever is made later is made in the gaps between
them, all over memory: the decoding of exposures took half as long again.
"""

from collections.abc import Sequence
from struct import Struct

import numpy as np
import numpy.typing as npt
import pyarrow as pa

PAGE = np.dtype([("ts_ms", "=i8"), ("request", "=i4"), ("user", "=i4"), ("row", "=i4")])
"""Of a page: its time, where its request and its user begin in the text, and its first row."""
PAGE_AND_NEXT = Struct("=qiiiqiii")
ITEM = np.dtype("=i4")
"""Of a row: where its item begins in the text."""
ITEM_AND_NEXT = Struct("=ii")


class PageKeys:
    """P pages with R rows. The buffer: P + 1 PAGEs, R + 1 ITEMs, the text; the last of each says where the one before it ends."""

    __slots__ = ("_buffer", "pages", "rows")

    def __init__(self, columns: pa.RecordBatch) -> None:
        """Of a batch of KEYS."""
        items = columns["item_ids"]
        texts = [_text(column) for column in (columns["request_id"], columns["user_id"], items.flatten())]
        (request_ends, requests), (user_ends, users), (item_ends, item_text) = texts
        self.pages, self.rows = len(columns), len(item_ends) - 1
        pages = np.zeros(self.pages + 1, PAGE)
        pages["ts_ms"][:-1] = columns["ts_ms"].to_numpy()
        row_bounds = items.offsets.to_numpy()
        pages["request"], pages["user"], pages["row"] = request_ends, user_ends + len(requests), row_bounds - row_bounds[0]
        item_starts = (item_ends + (len(requests) + len(users))).astype(ITEM)
        self._buffer = b"".join([pages.tobytes(), item_starts.tobytes(), requests, users, item_text])

    def ts_ms(self, page: int) -> int:
        """When it was shown."""
        return self._page(page)[0]

    def is_request(self, page: int, wanted: str) -> bool:
        """Whether the page is of this request."""
        _, start, _, _, _, end, _, _ = self._page(page)
        return self._text(start, end) == wanted.encode()

    def is_user(self, page: int, wanted: str) -> bool:
        """Whether the page was shown to this user."""
        _, _, start, _, _, _, end, _ = self._page(page)
        return self._text(start, end) == wanted.encode()

    def row_of(self, page: int, item_id: str | None) -> int:
        """The first row of the page with this item, or at all; -1 where there is none."""
        _, _, _, first_row, _, _, _, end_row = self._page(page)
        if item_id is None:
            return first_row
        wanted, starts = item_id.encode(), PAGE.itemsize * (self.pages + 1)
        for row in range(first_row, end_row):
            if self._text(*ITEM_AND_NEXT.unpack_from(self._buffer, starts + ITEM.itemsize * row)) == wanted:
                return row
        return -1

    def times_ms(self) -> npt.NDArray[np.int64]:
        """When each page was shown [P]."""
        return self._columns()["ts_ms"][:-1]

    def row_bounds(self) -> npt.NDArray[np.int32]:
        """The first row of each page, and R [P + 1]."""
        return self._columns()["row"]

    def _page(self, page: int) -> Sequence[int]:
        return PAGE_AND_NEXT.unpack_from(self._buffer, PAGE.itemsize * page)

    def _columns(self) -> npt.NDArray[np.void]:
        return np.frombuffer(self._buffer, PAGE, self.pages + 1)

    def _text(self, start: int, end: int) -> bytes:
        first = PAGE.itemsize * (self.pages + 1) + ITEM.itemsize * (self.rows + 1)
        return self._buffer[first + start : first + end]


def _text(column: pa.StringArray) -> tuple[npt.NDArray[np.int32], bytes]:
    """Where each text of N begins, and the last ends [N + 1]; all of them."""
    _, ends, text = column.buffers()
    bounds = np.frombuffer(ends, np.int32, len(column) + 1, 4 * column.offset) if ends else np.zeros(1, np.int32)
    start, end = int(bounds[0]), int(bounds[-1])
    return bounds - start, b"" if text is None else text[start:end].to_pybytes()
