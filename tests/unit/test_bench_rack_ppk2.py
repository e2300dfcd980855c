"""The bench of the Power Profiler Kit II, in small."""

from __future__ import annotations

from bench.rack_ppk2 import decoder_report, ppk2_report


def test_energy_is_right_and_no_dropped_block_is_believed() -> None:
    report = ppk2_report(n_traces=33, seed=3)
    assert report["error_pct"] < 1
    assert report["coverage_pct"] >= 90
    assert report["bad_traces_accepted"] == report["good_traces_refused"] == 0
    assert report == ppk2_report(n_traces=33, seed=3)


def test_the_decoder_keeps_up_with_the_kit() -> None:
    assert decoder_report(20_000)["decode_ms"] < 200  # which is what the kit takes to send them
