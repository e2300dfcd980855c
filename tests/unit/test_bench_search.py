"""The comparison of search methods: runs, their files, statistics and the command."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import wilcoxon

from bench import search
from bench.searching import run as run_module
from bench.searching import scaling, schedule, tables
from bench.searching.comparison import Results, estimate, signed_rank_p
from bench.searching.figures import figure
from bench.searching.problem import Problem, adopt
from bench.searching.run import Run, execute, proposer_of, simulate
from bench.searching.store import path_of, read, write
from bench.searching.tinyml import tinyml
from orchestrator.errors import UsageError
from orchestrator.proposers import registry


def tiny(**changes: Any) -> Run:
    fields: dict[str, Any] = {"problem": "tinyml", "proposer": "random", "seed": 0, "trials": 8, "initial": 4}
    return Run(**(fields | changes))


def finished(proposer: str, seed: int, hv: list[float], problem: str = "p") -> dict[str, Any]:
    return {
        "problem": problem,
        "proposer": proposer,
        "seed": seed,
        "hv": hv,
        "proposal_s": [0.1] * len(hv),
        "proposal_cpu_s": [0.05] * len(hv),
        "repeats": 0,
    }


def compared(**leads: list[float]) -> Results:
    """One run of two trials a seed for each proposer, of these final hypervolumes under a reference of 0.5."""
    runs = [finished(name, seed, [0.0, hv]) for name, finals in leads.items() for seed, hv in enumerate(finals)]
    return Results(runs, {"p": 0.5})


# ---- one run


def test_a_run_is_the_same_every_time() -> None:
    first, second = execute(tiny()), execute(tiny())
    assert first["hv"] == second["hv"]
    assert first["shares"] == second["shares"]
    assert first["hv"] != execute(tiny(seed=1))["hv"]


def test_a_run_records_one_entry_a_trial_and_its_hypervolume_never_falls() -> None:
    record = execute(tiny(trials=12))
    assert {len(record[name]) for name in ("hv", "proposal_s", "proposal_cpu_s", "shares")} == {12}
    assert (np.diff(record["hv"]) >= 0).all()
    assert record["hv"][-1] == pytest.approx(tinyml().score(np.array(record["shares"])))
    assert min(record["proposal_s"]) > 0


def test_all_proposers_start_with_the_same_candidates() -> None:
    starts = [execute(tiny(proposer=name, trials=4))["shares"] for name in registry.names()]
    assert all(start == starts[0] for start in starts)


def test_scored_is_the_truth_and_told_is_the_noise() -> None:
    told: list[float] = []

    def evaluate(params: Any, seed: int) -> dict[str, float]:
        told.append(params["x"] + 0.1 * np.random.default_rng(seed).random())
        return {"a": told[-1]}

    problem = Problem(
        name="noisy",
        parameters=adopt(plain_fields(), "p").parameters,
        objectives=("a",),
        limits=(1.0,),
        evaluate=evaluate,
        truth=lambda params: {"a": params["x"]},
    )
    record = simulate(tiny(trials=5), problem)
    true = [row[0] for row in record.shares]
    assert record.hv[-1] == pytest.approx(1 - min(true))
    assert all(0 < noisy - exact < 0.1 for noisy, exact in zip(told, true, strict=True))


def plain_fields() -> Any:
    class Plain:
        name = "plain"
        parameters = {"x": {"type": "float", "low": 0.0, "high": 0.5}}  # noqa: RUF012
        objectives = ("a",)
        limits = (1.0,)

        def evaluate(self, params: Any, seed: int) -> dict[str, float]:
            return {"a": params["x"]}

    return Plain()


def test_with_workers_as_many_trials_are_pending_and_none_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    pending: list[int] = []
    original = run_module._ask

    def counting(study: Any, *others: Any) -> Any:
        pending.append(sum(not item.state.is_finished() for item in study.get_trials(deepcopy=False)))
        return original(study, *others)

    monkeypatch.setattr(run_module, "_ask", counting)
    record = execute(tiny(trials=10, workers=3))
    assert pending == [0, 1, 2, *[2] * 7]
    assert len(record["hv"]) == 10
    assert record["repeats"] == 0


def test_a_repeated_pending_candidate_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"x": 0.25}
    problem = adopt(plain_fields(), "p")
    original = run_module._ask
    monkeypatch.setattr(
        run_module, "_ask", lambda *arguments: run_module._Asked(original(*arguments).trial, dict(same))
    )
    # The first is asked for while none is pending, the later three beside one other.
    assert simulate(tiny(trials=4, workers=2), problem).repeats == 3


def test_the_sampler_is_told_the_shares_of_known_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: dict[str, Any] = {}

    class Sampler:
        def __init__(self, name: str, *, known: Any = None, **others: Any) -> None:
            taken.update(known=known, **others)

    monkeypatch.setattr(run_module, "ProposerSampler", Sampler)
    problem = tinyml()
    run_module.sampler_of(problem, "random", seed=0, initial=4)
    params = problem.space.decode(np.full(problem.space.dim, 0.5))
    shares = taken["known"].values({name: np.array([value]) for name, value in params.items()})
    assert set(shares) == {"rom", "ram", "flops"}
    assert shares["rom"].tolist() == [pytest.approx(problem.known_values(params)["rom"] / (128 * 1024))]


def test_options_follow_the_name_of_a_proposer() -> None:
    assert proposer_of("ars:policies=5,noise=0.1") == ("ars", {"policies": 5, "noise": 0.1})
    with pytest.raises(UsageError, match="name=number"):
        proposer_of("ars:policies")


# ---- many runs


def test_packed_runs_are_done_where_they_are_unpacked(tmp_path: Path) -> None:
    arguments = ["--problem", "tinyml", "--proposer", "random,qmc", "--seeds", "1", "--trials", "4", "--initial", "3"]
    assert search.main([*arguments, "--out", str(tmp_path / "here")]) == 0
    packed = tmp_path / "runs.json.gz"
    assert search.main(["--out", str(tmp_path / "here"), "--pack", str(packed)]) == 0
    assert search.main([*arguments, "--out", str(tmp_path / "there"), "--unpack", str(packed)]) == 0
    here, there = (json.loads((tmp_path / name / "search.json").read_text()) for name in ("here", "there"))
    assert here == there


@pytest.mark.parametrize(
    "data",
    [b"nothing", None, gzip.compress(b"[]"), gzip.compress(b'{"version": 1}')],
    ids=["text", "flipped", "list", "no runs"],
)
def test_a_file_that_is_no_pack_of_runs_is_refused(
    data: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flipped = bytearray(gzip.compress(b'{"version": 1, "runs": []}' * 20))
    flipped[20] ^= 0xFF
    (tmp_path / "bad.gz").write_bytes(data if data is not None else bytes(flipped))
    with pytest.raises(SystemExit) as ended:
        search.main(["--unpack", str(tmp_path / "bad.gz"), "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "bad.gz: cannot be read" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again_until_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [tiny(trials=4, seed=seed) for seed in (0, 1)]
    done: list[int] = []
    monkeypatch.setattr(schedule, "execute", lambda run: done.append(run.seed) or execute(run))
    assert schedule.complete(runs[:1], tmp_path, jobs=1, is_redo=False, say=print) == []
    schedule.complete(runs, tmp_path, jobs=1, is_redo=False, say=print)
    assert done == [0, 1]
    schedule.complete(runs, tmp_path, jobs=1, is_redo=True, say=print)
    assert done == [0, 1, 0, 1]
    assert [item["seed"] for item in schedule.results(runs, tmp_path)] == [0, 1]


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(run: Run) -> dict[str, Any]:
        if run.seed == 0:
            raise ArithmeticError("no such luck")
        return execute(run)

    monkeypatch.setattr(schedule, "execute", failing)
    runs = [tiny(trials=4, seed=seed) for seed in (0, 1)]
    assert schedule.complete(runs, tmp_path, jobs=1, is_redo=False, say=print) == [
        "tinyml, random, seed 0: ArithmeticError: no such luck"
    ]
    assert len(schedule.results(runs, tmp_path)) == 1


@pytest.mark.parametrize("text", ["", '{"hv": [0.1', '{"version": 0}', "[]"])
def test_a_damaged_or_older_file_counts_as_not_done(tmp_path: Path, text: str) -> None:
    path = path_of(tmp_path, tiny())
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert read(tmp_path, tiny()) is None


def test_results_of_other_settings_are_kept_apart(tmp_path: Path) -> None:
    other = [tiny(), tiny(trials=9), tiny(initial=5), tiny(workers=2), tiny(seed=1), tiny(proposer="ars:policies=5")]
    assert len({path_of(tmp_path, item) for item in other}) == len(other)
    write(path_of(tmp_path, tiny()), {"version": 1})
    assert [item.name for item in path_of(tmp_path, tiny()).parent.iterdir()] == [path_of(tmp_path, tiny()).name]


# ---- statistics


@pytest.mark.parametrize("seed", range(4))
def test_the_rank_test_agrees_with_scipy(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.4, 1.0, 5 + seed)
    expected = wilcoxon(differences, alternative="greater", method="exact").pvalue
    assert signed_rank_p(differences) == pytest.approx(expected)


def test_many_pairs_are_tested_by_random_signs() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1.0, 40)
    expected = wilcoxon(differences, alternative="greater", method="exact").pvalue
    assert signed_rank_p(differences) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("differences", "p"),
    [([1.0, 2.0, 3.0], 1 / 8), ([-1.0, -2.0], 1.0), ([0.0, 0.0], 1.0), ([0.0, 1.0], 0.5), ([1.0, 1.0, -1.0], 0.5)],
)
def test_p_values_computed_by_hand(differences: list[float], p: float) -> None:
    assert signed_rank_p(np.array(differences)) == pytest.approx(p)


def test_an_estimate_holds_its_mean_and_one_value_has_no_width() -> None:
    several = estimate(np.array([1.0, 2.0, 6.0]))
    assert several.low < several.mean == 3.0 < several.high
    assert several == estimate(np.array([1.0, 2.0, 6.0]))
    one = estimate(np.array([2.0]))
    assert (one.low, one.mean, one.high) == (2.0, 2.0, 2.0)


def test_standings_are_shares_of_the_reference_the_best_first() -> None:
    standings = compared(b=[0.1, 0.2], a=[0.3, 0.5]).standings()
    assert [(item.proposer, item.n_seeds) for item in standings] == [("a", 2), ("b", 2)]
    assert standings[0].final.mean == pytest.approx(0.8)
    assert standings[0].area.mean == pytest.approx(0.4)
    assert (standings[0].proposal_s, standings[0].proposal_cpu_s) == (0.1, 0.05)


def test_tables_in_markdown_hold_what_the_plain_ones_hold() -> None:
    results = compared(a=[0.3, 0.5, 0.4], b=[0.2, 0.3, 0.35])
    plain, markdown = (
        tables.text(results.standings(), results.leads("a"), [], is_markdown=is_markdown)
        for is_markdown in (False, True)
    )
    assert "| `b` | 3 |" in markdown
    cells = {cell.strip(" `") for line in markdown.splitlines() for cell in line.split("|")} - {"---", ""}
    assert all(cell in plain for cell in cells)


def test_a_lead_is_paired_by_seed_and_says_what_p_could_be_reached() -> None:
    (lead,) = compared(a=[0.3, 0.5, 0.4], b=[0.2, 0.3, 0.35]).leads("a")
    assert (lead.other, lead.n_pairs) == ("b", 3)
    assert lead.final.mean == pytest.approx((0.2 + 0.4 + 0.1) / 3)
    assert lead.p == lead.p_least == 1 / 8
    assert lead.trials_to_match == 2


def test_only_seeds_that_both_have_finished_are_compared() -> None:
    (lead,) = compared(a=[0.3, 0.5, 0.4], b=[0.2]).leads("a")
    assert lead.n_pairs == 1


def test_a_base_that_never_reaches_the_other_says_so() -> None:
    (lead,) = compared(a=[0.1], b=[0.2]).leads("a")
    assert lead.trials_to_match is None
    assert lead.p == 1.0


def test_several_problems_are_pooled_in_a_last_line() -> None:
    runs = [finished(m, s, [v], p) for p in ("p", "q") for s in (0, 1) for m, v in (("a", 0.4 + s), ("b", 0.1))]
    leads = Results(runs, {"p": 1.0, "q": 2.0}).leads("a")
    assert [item.problem for item in leads] == ["p", "q", "all"]
    assert (leads[-1].n_pairs, leads[-1].p) == (4, 1 / 16)


def test_the_figure_shows_mean_and_band_of_every_proposer() -> None:
    drawn = figure(compared(a=[0.3, 0.5], b=[0.2, 0.3]), "title")
    (mean,) = [trace for trace in drawn.data if trace.name == "a" and trace.showlegend]
    (band, *_) = [trace for trace in drawn.data if trace.legendgroup == "a" and trace.fill == "toself"]
    assert mean.y.tolist() == [0.0, 80.0]
    assert band.y.tolist() == pytest.approx([0, 80 + 20 * 2**0.5, 80 - 20 * 2**0.5, 0])
    assert {trace.name for trace in drawn.data if trace.xaxis == "x2"} == {"a", "b"}


def test_every_proposer_is_in_the_legend_once_whatever_problems_it_was_run_on() -> None:
    runs = [finished("a", 0, [0.1]), finished("a", 0, [0.1], "q"), finished("b", 0, [0.1], "q")]
    drawn = figure(Results(runs, {"p": 1.0, "q": 1.0}), "title")
    assert [trace.name for trace in drawn.data if trace.showlegend] == ["a", "b"]


# ---- scaling


def test_proposal_times_are_taken_at_every_size_until_the_limit() -> None:
    found = scaling.proposal_times(tinyml(), "random", [20, 10], seed=0, limit_s=60)
    assert [item["trials"] for item in found] == [10, 20]
    assert len(scaling.proposal_times(tinyml(), "random", [10, 20], seed=0, limit_s=0.0)) == 1


def test_growth_is_the_exponent_of_the_trials() -> None:
    times = [{"trials": n, "proposal_s": 1e-3 * n**2} for n in (10, 20, 40)]
    assert scaling.growth(times) == pytest.approx(2.0)
    assert scaling.growth(times[:1]) is None


# ---- the command


def command(folder: Path, *extra: str) -> int:
    cheap = ["--problem", "tinyml", "--proposer", "random", "--trials", "5", "--initial", "3", "--seeds", "2"]
    return search.main([*cheap, "--out", str(folder), *extra])


def test_json_has_the_documented_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"runs", "reference_hv"}
    assert [(item["problem"], item["proposer"], item["seed"]) for item in printed["runs"]] == [
        ("tinyml", "random", 0),
        ("tinyml", "random", 1),
    ]
    assert all(set(item) == {"problem", "proposer", "seed", "hv", "proposal_s"} for item in printed["runs"])
    assert all(len(item["hv"]) == len(item["proposal_s"]) == 5 for item in printed["runs"])
    assert list(printed["reference_hv"]) == ["tinyml"]
    assert json.loads((tmp_path / "search.json").read_text()) == printed


def test_the_table_and_the_page_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--proposer", "nsga2") == 0
    assert "lead of random" in capsys.readouterr().out
    assert "hypervolume" in (tmp_path / "search.html").read_text(encoding="utf-8")
    assert len(json.loads((tmp_path / "statistics.json").read_text())["leads"]) == 1


def test_a_problem_of_ones_own_is_scored_against_the_union_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (
        "class Mine:\n    name = 'mine'\n    parameters = {'x': {'type': 'float', 'low': 0.0, 'high': 1.0}}\n"
        "    objectives = ('a', 'b')\n    limits = (1.0, 1.0)\n"
        "    def evaluate(self, params, seed):\n        return {'a': params['x'], 'b': 1 - params['x'] ** 0.5}\n"
    )
    (tmp_path / "own_problem_of_a_test.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--problem", "own_problem_of_a_test:Mine", "--proposer", "random", "--trials", "4", "--seeds", "1"]
    assert search.main([*arguments, "--out", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["reference_hv"] == {"own_problem_of_a_test:Mine": pytest.approx(found["runs"][0]["hv"][-1])}
    assert "union of these runs" in printed.err


def test_processes_of_their_own_give_the_same_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(tmp_path / "one", "--json")
    one = json.loads(capsys.readouterr().out)
    assert command(tmp_path / "two", "--json", "--jobs", "2") == 0
    two = json.loads(capsys.readouterr().out)
    assert [item["hv"] for item in one["runs"]] == [item["hv"] for item in two["runs"]]


def test_a_failed_run_is_named_and_the_exit_code_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(run: Run) -> dict[str, Any]:
        raise ArithmeticError("no such luck")

    monkeypatch.setattr(schedule, "execute", failing)
    assert command(tmp_path) == 1
    assert "failed: tinyml, random, seed 1: ArithmeticError: no such luck" in capsys.readouterr().err


def test_results_of_other_code_are_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path)
    monkeypatch.setattr(search, "fingerprint", lambda proposer: "other")
    command(tmp_path)
    assert "2 of 2 results come from other code" in capsys.readouterr().err


def test_scaling_prints_times_by_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--scaling", "10,20", "--json") == 0
    found = json.loads(capsys.readouterr().out)["scaling"]
    assert [(item["proposer"], item["trials"]) for item in found] == [("random", 10), ("random", 20)]


def test_with_workers_the_table_says_what_is_left_of_the_sequential_hypervolume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path, "--workers", "2")
    assert "one worker" not in capsys.readouterr().out
    command(tmp_path)
    assert "one worker" not in capsys.readouterr().out
    command(tmp_path, "--workers", "2")
    # Random search asks for the same candidates, whoever is pending.
    assert "100.0 [100.0, 100.0]" in capsys.readouterr().out.split("one worker")[1]


def test_an_interrupted_bench_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: Run) -> dict[str, Any]:
        if run.seed == 1:
            raise KeyboardInterrupt
        return execute(run)

    monkeypatch.setattr(schedule, "execute", interrupted)
    assert command(tmp_path) == 130
    assert "goes on" in capsys.readouterr().err
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problem", "tiny"], "allowed are tinyml, tinyml-log"),
        (["--problem", "math:pi"], "a problem needs"),
        (["--proposer", "best"], "allowed are ars"),
        (["--proposer", "nsga2:populace=3"], "populace"),
        (["--proposer", "nsga2:population=x"], "name=number"),
        (["--seeds", "many"], "--seeds: found 'many'"),
        (["--seeds", "0"], "--seeds"),
        (["--seeds", "4-2"], "must not be above"),
        (["--trials", "0"], "--trials: found 0"),
        (["--trials", "x"], "invalid int value"),
        (["--jobs", "0"], "--jobs: found 0"),
        (["--workers", "-1"], "--workers: found -1"),
        (["--scaling", "10,ten"], "--scaling: found 'ten'"),
        (["--make-reference", "0"], "--make-reference"),
        (["--against", "nobody"], "--against"),
    ],
)
def test_wrong_arguments_are_answered_with_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        search.main(["--trials", "4", "--seeds", "1", "--out", str(tmp_path), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("2-4", [2, 3, 4]), ("1,7", [1, 7]), ("4,", [4]), ("3-3", [3])]
)
def test_seeds_are_counted_spanned_or_listed(text: str, seeds: list[int]) -> None:
    assert search._seeds(text) == seeds
