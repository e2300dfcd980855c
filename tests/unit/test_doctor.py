"""What the doctor finds and advises."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import doctor


def finding(name: str, findings: list[doctor.Finding]) -> doctor.Finding:
    return next(one for one in findings if one.name == name)


def test_everything_required_is_found_where_the_tests_run(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path / "not" / "yet" / "there")
    assert [one.name for one in findings if one.is_required and not one.is_ok] == []
    assert finding("torch", findings).found


def test_what_is_missing_comes_with_the_way_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    findings = doctor.examine(tmp_path, {})
    assert "pip install ziglang" in finding("ziglang", findings).remedy
    assert not finding("redis", findings).is_ok
    assert "EDGEFRONT_BROKER_URL" in finding("redis", findings).remedy
    assert "apt-get install --no-install-recommends gcc-arm-none-eabi" in finding("arm-none-eabi-gcc", findings).remedy


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    disk = finding("disk", doctor.examine(tmp_path))
    assert not disk.is_ok
    assert "free 2 GB" in disk.remedy


def test_a_data_folder_that_does_not_exist_is_no_data_folder(tmp_path: Path) -> None:
    assert not finding("EDGEFRONT_DATA", doctor.examine(tmp_path, {"EDGEFRONT_DATA": str(tmp_path / "x")})).is_ok
    assert finding("EDGEFRONT_DATA", doctor.examine(tmp_path, {"EDGEFRONT_DATA": str(tmp_path)})).is_ok


def test_json_leaves_out_remedies_that_are_not_needed(tmp_path: Path) -> None:
    for one in doctor.examine(tmp_path):
        assert bool(one.to_json()["remedy"]) == (not one.is_ok)
