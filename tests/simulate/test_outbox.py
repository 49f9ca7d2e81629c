from headrace.outbox import Event, Outbox


def event(name: str) -> Event:
    return Event("feedback", "u-1", name.encode())


def test_events_leave_when_they_are_due_so_late_ones_come_out_of_order() -> None:
    outbox = Outbox()
    for name, due_ms in (("late", 30.0), ("first", 10.0), ("second", 20.0)):
        outbox.add(event(name), due_ms)
    assert outbox.due(9.9, 10) == []
    assert outbox.due(20.0, 10) == [event("first"), event("second")]
    assert len(outbox) == 1
    assert outbox.due(float("inf"), 10) == [event("late")]
    assert not outbox


def test_events_of_the_same_time_keep_their_order() -> None:
    outbox = Outbox()
    for name in "zyx":
        outbox.add(event(name), 5.0)
    assert [taken.value for taken in outbox.due(5.0, 10)] == [b"z", b"y", b"x"]


def test_no_more_are_taken_than_asked_for() -> None:
    outbox = Outbox()
    for name in "abc":
        outbox.add(event(name), 0.0)
    assert outbox.due(1.0, 2) == [event("a"), event("b")]
    assert outbox.due(1.0, 2) == [event("c")]
