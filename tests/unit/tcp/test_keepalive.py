from trio_passt.tcp import timeouts
from trio_passt.tcp.keepalive import Keepalive


def test_open_connection_may_be_silent_for_two_hours_and_a_half_closed_one_for_a_minute() -> None:
    keepalive = Keepalive(100.0)
    assert keepalive.due == 100 + 7200
    keepalive.half_closed()
    assert keepalive.due == 100 + 60
    keepalive.half_closed()
    assert keepalive.due == 100 + 60
    keepalive.heard(130.0)
    assert keepalive.due == 130 + 60


def test_three_probes_and_then_the_end() -> None:
    keepalive = Keepalive(0.0)
    now = keepalive.due
    for _ in range(timeouts.KEEPALIVE_PROBES):
        assert keepalive.probe(now)
        assert keepalive.due == now + 10
        keepalive.half_closed()
        assert keepalive.due == now + 10
        now += 10
    assert not keepalive.probe(now)


def test_answer_starts_it_all_again() -> None:
    keepalive = Keepalive(0.0)
    keepalive.half_closed()
    assert keepalive.probe(60.0)
    keepalive.heard(61.0)
    assert keepalive.due == 61 + 60
    for _ in range(timeouts.KEEPALIVE_PROBES):
        assert keepalive.probe(200.0)
