"""What meters send, decoded: the Power Profiler Kit II beside its vendor's library, and ST's two formats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ppk2_api.ppk2_api import PPK2_API

from mcu_agent.meters.ppk2_encode import TYPICAL, encode, logic_of
from mcu_agent.meters.ppk2_stream import Calibration, SpikeFilter, Words, decode
from mcu_agent.meters.stlpm01_stream import decode_binary, decode_text

SUPPLY_V = 3.3
GROUPS = ("R", "GS", "GI", "O", "S", "I", "UG")


def words_of(n: int = 4000, seed: int = 0, switching_error: float = 0.5) -> Words:
    """A stream that goes through all ranges, with a noisy current and a window on channel 5."""
    rng = np.random.default_rng(seed)
    current = np.repeat(10.0 ** rng.uniform(-6, -0.5, n // 40), 40) * (1 + 0.02 * rng.standard_normal(n))
    high = (np.arange(n) >= n // 4) & (np.arange(n) < n // 2)
    return encode(
        np.abs(current),
        logic_of(high, 5),
        TYPICAL,
        supply_v=SUPPLY_V,
        first_count=17,
        switching_error=switching_error,
    )


def vendors(data: bytes, piece: int | None = None) -> tuple[list[float], list[int]]:
    """The vendor's own decoder, fed in pieces."""
    api = PPK2_API(None)
    api.modifiers.update({name: dict(zip("01234", getattr(TYPICAL, name.lower()), strict=True)) for name in GROUPS})
    api.current_vdd = SUPPLY_V * 1000
    samples, bits = [], []
    for start in range(0, len(data), piece or len(data)):
        more, more_bits = api.get_samples(data[start : start + (piece or len(data))])
        samples += more
        bits += more_bits
    return samples, bits


def test_currents_equal_the_vendors_with_the_vendors_filter() -> None:
    data = words_of().tobytes()
    microamperes, bits = vendors(data)
    found = decode(data, TYPICAL, supply_v=SUPPLY_V, trigger=5, spike_filter=SpikeFilter.VENDOR)
    np.testing.assert_allclose(found.current_a * 1e6, microamperes, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.trigger, [bool(one & 32) for one in bits])
    assert found.n_lost == 0


@pytest.mark.parametrize("level", [2e-6, 120e-6, 2e-3, 20e-3, 200e-3])
def test_every_range_gives_the_current_back(level: float) -> None:
    words = encode(np.full(100, level), np.zeros(100, dtype=np.uint8), TYPICAL, supply_v=SUPPLY_V)
    found = decode(words.tobytes(), TYPICAL, supply_v=SUPPLY_V, trigger=0)
    np.testing.assert_allclose(found.current_a, level, rtol=0.02)


def step() -> tuple[np.ndarray, bytes]:
    current = np.where(np.arange(600) // 100 % 2 == 0, 1e-3, 20e-3)
    words = encode(current, np.zeros(600, dtype=np.uint8), TYPICAL, supply_v=SUPPLY_V, switching_error=0.5)
    return current, words.tobytes()


def test_the_filter_for_settled_readings_keeps_the_charge_of_steps() -> None:
    current, data = step()
    errors = {
        kind: abs(
            decode(data, TYPICAL, supply_v=SUPPLY_V, trigger=0, spike_filter=kind).current_a.sum() / current.sum() - 1
        )
        for kind in SpikeFilter
    }
    assert errors[SpikeFilter.SETTLED] < 0.001
    assert errors[SpikeFilter.SETTLED] < errors[SpikeFilter.VENDOR]
    assert errors[SpikeFilter.OFF] > 0.005


@pytest.mark.parametrize("n_dropped", [1, 5, 63])
def test_lost_readings_are_counted_and_their_time_kept(n_dropped: int) -> None:
    words = words_of()
    data = np.delete(words, np.arange(2000, 2000 + n_dropped)).tobytes()
    found = decode(data, TYPICAL, supply_v=SUPPLY_V, trigger=5)
    assert found.n_lost == n_dropped
    assert len(found.current_a) == len(words)
    assert int(found.trigger.sum()) == pytest.approx(1000, abs=n_dropped)
    assert (found.current_a[2000 : 2000 + n_dropped] == found.current_a[1999]).all()


@settings(derandomize=True, max_examples=60)
@given(st.integers(1, 1500), st.integers(200, 2400))
def test_the_counter_shows_a_loss_modulo_its_period(n_dropped: int, at: int) -> None:
    data = np.delete(words_of(), np.arange(at, at + n_dropped)).tobytes()
    assert decode(data, TYPICAL, supply_v=SUPPLY_V, trigger=5).n_lost == n_dropped % 64


def test_a_multiple_of_the_counters_period_is_invisible_to_it() -> None:
    data = np.delete(words_of(), np.arange(2000, 2128)).tobytes()
    assert decode(data, TYPICAL, supply_v=SUPPLY_V, trigger=5).n_lost == 0  # hence the second check, by time


def test_a_lost_byte_is_seen_as_a_stream_full_of_gaps() -> None:
    data = words_of().tobytes()
    found = decode(data[:4001] + data[4002:], TYPICAL, supply_v=SUPPLY_V, trigger=5)
    assert found.n_lost > 1000
    assert len(found.current_a) < 4000  # nothing is made up to fill them


def test_a_word_cut_off_at_the_end_is_left_out() -> None:
    data = words_of().tobytes()
    assert len(decode(data[:-3], TYPICAL, supply_v=SUPPLY_V, trigger=5).current_a) == 3999
    assert len(decode(b"", TYPICAL, supply_v=SUPPLY_V, trigger=5).current_a) == 0


def test_the_end_of_the_range_is_marked() -> None:
    current = np.full(300, 0.2)
    current[100:120] = 1.3
    words = encode(current, np.zeros(300, dtype=np.uint8), TYPICAL, supply_v=SUPPLY_V)
    words[200] |= 0x3FFF
    found = decode(words.tobytes(), TYPICAL, supply_v=SUPPLY_V, trigger=0)
    np.testing.assert_array_equal(np.flatnonzero(found.saturated), [*range(100, 120), 200])


def test_impossible_calibration_constants_are_refused() -> None:
    groups = {name: dict.fromkeys("01234", 1.0) for name in GROUPS}
    assert Calibration.from_modifiers(groups).r[0] == 1.0
    groups["R"]["3"] = -0.9
    with pytest.raises(ValueError, match="impossible"):
        Calibration.from_modifiers(groups)


def test_text_is_read_as_the_manual_says() -> None:
    data = (
        b"\r\n6409-07\r\n\0TimeStamp: 000s 500ms, buff 02%\r\n\x001200-06\r\nevent 1 ris\r\n0010-03\r\nsummary end\r\n"
        b"PowerShield > Acquisition completed\r\nPowerShield > 12"
    )
    found = decode_text(data)
    np.testing.assert_allclose(found.current_a, [640.9e-6, 1.2e-3, 0.01])
    assert (found.stamps, found.events, found.faults) == ([(1, 500)], [2], [])
    assert not found.is_overcurrent


def test_time_stamps_in_text_show_lost_and_garbled_readings() -> None:
    lines = ["TimeStamp: 001s 000ms, buff 00%", *["1000-06"] * 980, "TimeStamp: 002s 000ms, buff 00%", "10x0-06"]
    found = decode_text("".join(f"{line}\r\n" for line in lines).encode())
    assert found.n_lost(1000.0) == 20 + 1


def test_words_of_the_meter_are_passed_on() -> None:
    found = decode_text(b"1000-06\r\nerror: board overcurrent\r\nerr: data buffer full\r\n")
    assert found.is_overcurrent
    assert found.faults == ["err: data buffer full"]


def test_binary_is_read_as_the_manual_says() -> None:
    stamp = b"\xf0\xf3" + (1500).to_bytes(4, "big") + b"\x0a\xff\xff"
    found = decode_binary(b"\x52\xa0" + stamp + b"\x40\xf0\x3f\xff" + b"\xf0\xf2hello\xff\xff" + b"\x10\x01\x52")
    np.testing.assert_allclose(found.current_a, [0x2A0 / 16**5, 0xF0 / 16**4, 0xFFF / 16**3, 1 / 16])
    assert found.stamps == [(1, 1500)]
    assert not found.is_overcurrent
    assert found.n_garbled == 0


@pytest.mark.parametrize(
    "message", [b"\xf0\xf5\xff\xff", b"\xf0\xf5\x01\x02\x03\x04\xff\xff", b"\xf0\xf1overcurrent\xff\xff"]
)
def test_overcurrent_is_noticed_in_binary(message: bytes) -> None:
    found = decode_binary(b"\x52\xa0" + message + b"\x52\xa0")
    assert found.is_overcurrent
    assert len(found.current_a) == 2


@settings(derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 14), st.integers(0, 0xFFF)),
            st.sampled_from([b"\xf0\xf3\0\0\0\x01\0\xff\xff", b"\xf0\xf4\xff\xff", b"\xf0\xf7\x0c\xe4\xff\xff"]),
        ),
        max_size=40,
    )
)
def test_readings_between_messages_are_all_found(items: list[tuple[int, int] | bytes]) -> None:
    data, expected = b"", []
    for item in items:
        if isinstance(item, bytes):
            data += item
        else:
            data += (item[0] << 12 | item[1]).to_bytes(2, "big")
            expected.append(item[1] * 16.0 ** -item[0])
    np.testing.assert_allclose(decode_binary(data).current_a, expected)
