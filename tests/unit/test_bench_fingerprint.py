"""Which code a bench's result depends on."""

from __future__ import annotations

from bench.searching import fingerprint as module
from bench.searching.fingerprint import fingerprint


def test_a_result_depends_on_its_proposer_and_options() -> None:
    prints = {fingerprint(name) for name in ("ars", "ars:policies=5", "random", "qparego")}
    assert len(prints) == 4
    assert fingerprint("ars") == fingerprint("ars")


def test_a_method_depends_on_what_it_imports_and_not_on_other_methods() -> None:
    closure = module._closure("orchestrator.proposers.qparego")
    assert {"orchestrator.proposers.bo", "orchestrator.surrogate", "orchestrator.space"} <= closure
    assert "orchestrator.proposers.ars" not in closure
    assert "orchestrator.proposers.registry" not in module._closure("bench.searching.run")
