"""What a study reads from outside is fixed by its content, and nothing is evaluated with anything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.studyfile import StudyFile
from tasks.errors import Defect
from tasks.nn.sources import data_for, sources_of
from tasks.registry import memo_key
from tests.support.studies import request, study_file


def save(path: Path, shift: float = 0.0) -> None:
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.random((60, 1, 4, 4), np.float32) + np.float32(shift), y=np.arange(60) % 3)


def study(source: str, family: str = "mlp", **dataset: float) -> StudyFile:
    return study_file(dataset={"source": source, **dataset}, network={"family": family})


def test_data_are_known_by_their_content_and_not_by_their_name_or_split(tmp_path: Path) -> None:
    save(tmp_path / "a.npz")
    save(tmp_path / "b.npz")
    save(tmp_path / "c.npz", shift=1.0)
    one = sources_of(study(str(tmp_path / "a.npz")))
    assert one == sources_of(study(str(tmp_path / "b.npz"), validation=0.3))
    assert one != sources_of(study(str(tmp_path / "c.npz")))
    assert set(one) == {"dataset"}


def test_a_stage_refuses_data_that_have_changed_since_the_run_began(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    save(path)
    file = study(str(path))
    asked = request(study=file.to_json(), sources=sources_of(file))
    assert len(data_for(asked, file).train) > 0
    save(path, shift=1.0)
    with pytest.raises(Defect, match=r"dataset '.*data\.npz' is not what the run has started with") as caught:
        data_for(asked, file)
    assert caught.value.reason == "dataset_changed"


def test_a_stage_without_fingerprints_takes_what_there_is() -> None:
    file = study("digits")
    assert len(data_for(request(study=file.to_json()), file).train) == 1079


def test_ones_own_network_is_known_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFRONT_IMPORT_PATH", str(tmp_path))
    (tmp_path / "net_of_sources.py").write_text("def build(**options): pass\n")
    (tmp_path / "nets_of_sources").mkdir()
    (tmp_path / "nets_of_sources" / "__init__.py").write_text("from .inner import build\n")
    (tmp_path / "nets_of_sources" / "inner.py").write_text("def build(**options): pass\n")
    module = sources_of(study("digits", "net_of_sources:build"))
    package = sources_of(study("digits", "nets_of_sources:build"))
    assert module["dataset"] == package["dataset"]
    assert module["network"] != package["network"]
    # What was imported counts, not what the file holds by now.
    (tmp_path / "net_of_sources.py").write_text("def build(**options): return 1\n")
    assert sources_of(study("digits", "net_of_sources:build")) == module
    monkeypatch.delitem(__import__("sys").modules, "net_of_sources")
    assert sources_of(study("digits", "net_of_sources:build"))["network"] != module["network"]


def test_a_remembered_result_does_not_answer_for_other_data() -> None:
    one = request(sources={"dataset": "a"})
    assert memo_key(one) == memo_key(replace(one, trial=5, sources={"dataset": "a"}))
    assert memo_key(one) != memo_key(replace(one, sources={"dataset": "b"}))


def test_fingerprints_travel_with_the_request() -> None:
    one = request(sources={"dataset": "a", "network": "b"})
    assert type(one).from_json(one.to_json()) == one
