import logging

from fastreid_sskd.clustering.parallel import LogProgress


def test_logs_share_and_time_left_at_most_once_per_interval(caplog):
    now = [0.0]
    progress = LogProgress("k-NN search", every=10, clock=lambda: now[0])
    with caplog.at_level(logging.INFO, logger="fastreid"):
        for second in (1, 5, 9):
            now[0] = second
            progress(1, 100)
        assert not caplog.records
        now[0] = 12
        progress(25, 100)
        progress(26, 100)
        now[0] = 24
        progress(50, 100)
    assert [record.getMessage() for record in caplog.records] == [
        "k-NN search: 25%, about 36 s left",
        "k-NN search: 50%, about 24 s left",
    ]


def test_nothing_done_yet_says_nothing(caplog):
    now = [0.0]
    progress = LogProgress("k-NN search", every=1, clock=lambda: now[0])
    now[0] = 5
    with caplog.at_level(logging.INFO, logger="fastreid"):
        progress(0, 10)
    assert not caplog.records
