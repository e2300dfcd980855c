"""Writes the dashboards beside this file: ``python deploy/grafana/generate.py``. The same input gives the same bytes.

A panel is added here and not in Grafana, where nothing would test its query. Each query is run by a test against a
Prometheus that has scraped a real study.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

from panels import Json, Panel, Query, Row, bars, dashboard, dial, lines, number, table, variable  # noqa: E402

_STUDY = '{study=~"$study"}'
_KIND = '{board_kind=~"$board_kind"}'
_GOOD_LOW = {0: "green", 0.05: "yellow", 0.2: "red"}


def _share(name: str, by: str, share: float, labels: str) -> str:
    """The value below which this share of a histogram's observations of the last minutes lies."""
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({name}_bucket{labels}[$__rate_interval])))"


def _shares(name: str, by: str, labels: str) -> list[Query]:
    return [
        Query(expr=_share(name, by, 0.5, labels), legend=f"{{{{{by}}}}} median"),
        Query(expr=_share(name, by, 0.9, labels), legend=f"{{{{{by}}}}} 90 %"),
    ]


def _hourly(name: str, by: str, labels: str) -> str:
    return f"sum by ({by}) (increase({name}{labels}[1h]))"


# ------------------------------------------------------------------------------------------------- panels shared


def _stage_time() -> Panel:
    queries = _shares("edgefront_stage_duration_seconds", "stage", _STUDY)
    return lines("Time of a stage", "On its worker, from taking the task to its result.", queries, "s", width=12)


def _stage_wait() -> Panel:
    queries = _shares("edgefront_stage_wait_seconds", "stage", _STUDY)
    about = "From queueing a stage until a worker took it. Where it grows, that kind of worker is short."
    return lines("Wait for a worker", about, queries, "s", width=12)


def _faults() -> Panel:
    query = Query(expr=_hourly("edgefront_faults_total", "reason", _STUDY), legend="{{reason}}")
    return lines("Faults in an hour", "Attempts that failed, by reason; each is retried.", [query], stacked=True)


def _retries() -> Panel:
    query = Query(expr=_hourly("edgefront_retries_total", "reason", _STUDY), legend="{{reason}}")
    return lines("Retries in an hour", "Stages queued again after a fault.", [query], stacked=True)


def _endings(by: str = "state") -> Panel:
    query = Query(expr=_hourly("edgefront_trials_total", by, _STUDY), legend="{{state}}")
    return lines("Trials in an hour", "Trials that ended, by how they ended.", [query], stacked=True)


def _proposals() -> Panel:
    proposal, fit = "edgefront_proposal_duration_seconds", "edgefront_surrogate_fit_duration_seconds"
    queries = [
        Query(expr=_share(proposal, "study", 0.5, _STUDY), legend="{{study}} proposal, median"),
        Query(expr=_share(proposal, "study", 0.9, _STUDY), legend="{{study}} proposal, 90 %"),
        Query(expr=_share(fit, "study", 0.5, _STUDY), legend="{{study}} of it fitting, median"),
    ]
    return lines("Time to propose", "What the sampler takes for a candidate, and its surrogates' fit.", queries, "s")


def _epochs() -> Panel:
    queries = [
        Query(expr=f"sum(increase(edgefront_epochs_total{_STUDY}[1h]))", legend="trained"),
        Query(expr=f"sum(increase(edgefront_epochs_saved_total{_STUDY}[1h]))", legend="saved by early stopping"),
    ]
    return lines("Epochs in an hour", "Trained, and left out by early stopping.", queries, stacked=True)


def _queues() -> Panel:
    query = Query(expr="max by (queue) (edgefront_queue_depth)", legend="{{queue}}")
    return lines("Waiting in queues", "Messages that no worker has taken yet.", [query], stacked=True)


# --------------------------------------------------------------------------------------------------- dashboards


def search() -> Json:
    """All studies of all orchestrators."""
    told, budget = "edgefront_trials_told", "edgefront_trials_budget"
    studies = table(
        "Studies",
        "Where each study stands.",
        {
            "running": (f"max by (study) (edgefront_study_running{_STUDY})", "bool_yes_no"),
            "trials told": (f"max by (study) ({told}{_STUDY})", "short"),
            "of": (f"max by (study) ({budget}{_STUDY})", "short"),
            "under way": (f"max by (study) (edgefront_trials_running{_STUDY})", "short"),
            "hypervolume": (f"max by (study) (edgefront_hypervolume{_STUDY})", "none"),
            "on the front": (f"max by (study) (edgefront_front_size{_STUDY})", "short"),
            "best error": (f"min by (study) (edgefront_best_error_ratio{_STUDY})", "percentunit"),
            "feasible": (f"max by (study) (edgefront_feasible_ratio{_STUDY})", "percentunit"),
            "last progress": (
                f"time() - max by (study) (edgefront_last_progress_timestamp_seconds{_STUDY})",
                "s",
            ),
        },
        keys={"study": "study"},
        width=24,
        height=7,
    )
    head = [
        number("Studies running", "Under way now.", Query(expr=f"sum(edgefront_study_running{_STUDY})")),
        number(
            "Trials told",
            "Of all studies, earlier runs included.",
            # A study that has changed hands is still told of by the orchestrator that had it.
            Query(expr=f"sum(max by (study) ({told}{_STUDY}))"),
        ),
        number("Under way", "Trials in some stage.", Query(expr=f"sum(edgefront_trials_running{_STUDY})")),
        dial("Feasible", "Complete trials among those judged.", Query(expr=f"avg(edgefront_feasible_ratio{_STUDY})")),
        number(
            "Faults in an hour",
            "All attempts that failed.",
            Query(expr=f"sum(increase(edgefront_faults_total{_STUDY}[1h]))"),
            decimals=0,
            steps={0: "green", 5: "yellow", 20: "red"},
        ),
        dial(
            "Disk used",
            "Of the volume that holds the studies.",
            Query(expr="max(1 - edgefront_studies_free_bytes / edgefront_studies_size_bytes)"),
            steps={0: "green", 0.8: "yellow", 0.9: "red"},
        ),
    ]
    course = [
        lines(
            "Hypervolume",
            "Share of the box under the limits that the front dominates. Never falls.",
            [Query(expr=f"max by (study) (edgefront_hypervolume{_STUDY})", legend="{{study}}")],
            "none",
            width=12,
            height=9,
        ),
        lines(
            "Best error",
            "Lowest validation error of a trial that keeps all limits.",
            [Query(expr=f"min by (study) (edgefront_best_error_ratio{_STUDY})", legend="{{study}}")],
            "percentunit",
            width=12,
            height=9,
        ),
    ]
    choice = variable("study", "Study", "label_values(edgefront_trials_budget, study)", several=True)
    return dashboard(
        "edgefront-search",
        "Edgefront: search",
        "All studies at a glance.",
        [choice],
        [
            Row(title="Now", panels=head),
            Row(title="Studies", panels=[studies]),
            Row(title="Course", panels=course),
            Row(title="Work", panels=[_endings(), _proposals(), _epochs()]),
            Row(title="Trouble", panels=[_faults(), _retries(), _queues()]),
            Row(title="Orchestrators", panels=_orchestrator_panels()),
        ],
    )


def _orchestrator_panels() -> list[Panel]:
    """What orchestrators say of their list and of themselves. Two of one list both tell of all its studies."""
    return [
        lines(
            "Studies by state",
            "On the list. Submitted ones wait for a slot or to be tried again, failed ones for somebody.",
            [Query(expr="max by (state) (edgefront_studies)", legend="{{state}}")],
            stacked=True,
        ),
        lines(
            "Slots",
            "Trials that may be under way at once: each study's share, and all of them.",
            [
                Query(expr=f"max by (study) (edgefront_study_slots{_STUDY})", legend="{{study}}"),
                Query(expr="max(edgefront_slots)", legend="all"),
            ],
        ),
        lines(
            "Studies started again in an hour",
            "Their process had died, or could not reach what it needs.",
            [Query(expr=_hourly("edgefront_study_restarts_total", "study", _STUDY), legend="{{study}}")],
            stacked=True,
        ),
        lines(
            "Notifications given up in an hour",
            "The webhook did not take them.",
            [Query(expr="sum(increase(edgefront_notifications_failed_total[1h]))", legend="given up")],
        ),
        lines(
            "Since the last round",
            "An orchestrator goes through its list every second. Where this grows, it cannot reach the list.",
            [Query(expr="time() - edgefront_last_round_timestamp_seconds", legend="{{instance}}")],
            "s",
        ),
    ]


def study() -> Json:
    """One study, from its budget to its faults."""
    told, budget = f"max(edgefront_trials_told{_STUDY})", f"max(edgefront_trials_budget{_STUDY})"
    head = [
        dial("Of the budget", "Trials told of those allowed.", Query(expr=f"{told} / {budget}")),
        number("Hypervolume", "0 to 1.", Query(expr=f"max(edgefront_hypervolume{_STUDY})"), "none", decimals=4),
        number("On the front", "Trials that no other beats.", Query(expr=f"max(edgefront_front_size{_STUDY})")),
        number(
            "Best error",
            "Of a trial that keeps all limits.",
            Query(expr=f"min(edgefront_best_error_ratio{_STUDY})"),
            "percentunit",
            decimals=2,
        ),
        dial("Feasible", "Complete among those judged.", Query(expr=f"max(edgefront_feasible_ratio{_STUDY})")),
        number(
            "Since the last progress",
            "Nothing began or ended for so long.",
            Query(expr=f"time() - max(edgefront_last_progress_timestamp_seconds{_STUDY})"),
            "s",
            spark=False,
            steps={0: "green", 1800: "yellow", 3600: "red"},
        ),
    ]
    course = [
        lines(
            "Hypervolume",
            "Share of the box under the limits that the front dominates. Never falls.",
            [Query(expr=f"max by (study) (edgefront_hypervolume{_STUDY})", legend="{{study}}")],
            "none",
            width=12,
        ),
        lines(
            "Front",
            "How many trials it has.",
            [Query(expr=f"max by (study) (edgefront_front_size{_STUDY})", legend="{{study}}")],
            width=6,
        ),
        bars(
            "Best error under each limit",
            "Lowest error of any trial within this one limit, whatever else it breaks. The limit with the highest bar "
            "is the one that costs accuracy.",
            Query(
                expr=f"min by (objective) (edgefront_best_error_under_limit_ratio{_STUDY})",
                legend="{{objective}}",
            ),
            "percentunit",
            width=6,
        ),
    ]
    endings = bars(
        "Endings",
        "Of the trials since the orchestrator started.",
        Query(expr=f"sum by (state) (edgefront_trials_total{_STUDY})", legend="{{state}}"),
    )
    boards = lines(
        "Boards of the study",
        "Boards that may measure its trials, by what they do.",
        [Query(expr=f"sum by (state) (edgefront_boards{_STUDY})", legend="{{state}}")],
        stacked=True,
    )
    choice = variable("study", "Study", "label_values(edgefront_trials_budget, study)", several=False)
    return dashboard(
        "edgefront-study",
        "Edgefront: one study",
        "Everything about one study.",
        [choice],
        [
            Row(title="Now", panels=head),
            Row(title="Course", panels=course),
            Row(title="Stages", panels=[_stage_time(), _stage_wait()]),
            Row(title="Work", panels=[_endings(), _proposals(), _epochs()]),
            Row(title="Endings and trouble", panels=[endings, boards, _faults(), _retries()]),
        ],
    )


def workers() -> Json:
    """Queues, and the processes that serve them."""
    up = 'sum(up{job=~"edgefront.*"})'
    head = [
        number("Processes up", "Orchestrators, workers and agents that answer.", Query(expr=up)),
        number(
            "Processes down",
            "That Prometheus knows and cannot reach.",
            Query(expr='count(up{job=~"edgefront.*"} == 0) or vector(0)'),
            steps={0: "green", 1: "red"},
        ),
        number("Waiting", "Messages in all queues.", Query(expr="sum(max by (queue) (edgefront_queue_depth))")),
        number(
            "Stages in an hour",
            "That ended, however.",
            Query(expr=f"sum(increase(edgefront_stage_duration_seconds_count{_STUDY}[1h]))"),
            decimals=0,
        ),
        number(
            "Busy workers",
            "Average number of stages running at once, over the last minutes.",
            Query(expr=f"sum(rate(edgefront_stage_duration_seconds_sum{_STUDY}[$__rate_interval]))"),
            decimals=1,
        ),
        number(
            "Workers lost",
            "In the last hour; their stages were run again.",
            Query(expr='sum(increase(edgefront_faults_total{reason="worker_lost"}[1h]))'),
            decimals=0,
            steps={0: "green", 1: "yellow", 5: "red"},
        ),
    ]
    load = lines(
        "Stages in an hour",
        "That ended, by stage.",
        [Query(expr=_hourly("edgefront_stage_duration_seconds_count", "stage", _STUDY), legend="{{stage}}")],
        stacked=True,
        width=12,
    )
    reach = lines(
        "Reachable",
        "1 while Prometheus reads the process's metrics.",
        [Query(expr='up{job=~"edgefront.*"}', legend="{{job}} {{instance}}")],
        width=12,
        highest=1.0,
    )
    queues = lines(
        "Waiting in queues",
        "Messages that no worker has taken yet.",
        [Query(expr="max by (queue) (edgefront_queue_depth)", legend="{{queue}}")],
        stacked=True,
        width=12,
    )
    choice = variable("study", "Study", "label_values(edgefront_trials_budget, study)", several=True)
    return dashboard(
        "edgefront-workers",
        "Edgefront: workers and queues",
        "Is there enough of everything, and does it work?",
        [choice],
        [
            Row(title="Now", panels=head),
            Row(title="Queues", panels=[queues, load, _stage_wait(), _stage_time()]),
            Row(title="Processes", panels=[reach, *_worker_panels()]),
            Row(title="Trouble", panels=[_faults(), _retries()]),
        ],
    )


def _worker_panels() -> list[Panel]:
    """What workers say of themselves; by instance, which is the worker."""
    used, total = "edgefront_worker_gpu_memory_used_bytes", "edgefront_worker_gpu_memory_total_bytes"
    return [
        lines(
            "Tasks under way",
            "By worker and stage.",
            [Query(expr="edgefront_worker_tasks_running", legend="{{instance}} {{stage}}")],
            stacked=True,
        ),
        lines(
            "Tasks of workers in an hour",
            "By how they ended; what was handed over goes on elsewhere.",
            [
                Query(
                    expr="sum by (outcome) (increase(edgefront_worker_tasks_total[1h]))",
                    legend="{{outcome}}",
                )
            ],
            stacked=True,
        ),
        lines(
            "Time of a task",
            "By stage, whatever its outcome.",
            [Query(expr=_share("edgefront_worker_task_duration_seconds", "stage", 0.9, ""), legend="{{stage}} 90 %")],
            "s",
        ),
        lines(
            "Faults of workers in an hour",
            "Tasks that ended in a fault, by worker and reason: one bad machine stands out.",
            [
                Query(
                    expr="sum by (instance, reason) (increase(edgefront_worker_faults_total[1h]))",
                    legend="{{instance}} {{reason}}",
                )
            ],
            stacked=True,
        ),
        lines(
            "Memory of workers",
            "Resident memory of all processes of a worker.",
            [Query(expr="edgefront_worker_memory_bytes", legend="{{instance}}")],
            "bytes",
        ),
        lines(
            "Memory of a task",
            "The most that a task of the stage took since its worker started, and where a limit would end it.",
            [
                Query(expr="max by (stage) (edgefront_worker_task_memory_peak_bytes)", legend="{{stage}}"),
                Query(expr="max(edgefront_worker_memory_limit_bytes)", legend="limit, 0: none"),
            ],
            "bytes",
        ),
        lines(
            "Processes replaced in an hour",
            "Child processes that ended, by why.",
            [
                Query(expr="sum by (reason) (increase(edgefront_worker_child_exits_total[1h]))", legend="{{reason}}"),
                Query(expr="sum(increase(edgefront_worker_restarts_total[1h]))", legend="whole workers"),
            ],
            stacked=True,
        ),
        lines(
            "Checkpoints in an hour",
            "Of long trainings: saved, and gone on from.",
            [Query(expr="sum by (action) (increase(edgefront_worker_checkpoints_total[1h]))", legend="{{action}}")],
        ),
        lines(
            "Time of a checkpoint",
            "To save one, and to load one; a training waits for it.",
            [
                Query(
                    expr=_share("edgefront_worker_checkpoint_duration_seconds", "action", 0.9, ""),
                    legend="{{action}} 90 %",
                )
            ],
            "s",
        ),
        lines(
            "Size of a checkpoint",
            "The last one of each worker.",
            [Query(expr="edgefront_worker_checkpoint_size_bytes", legend="{{instance}}")],
            "bytes",
        ),
        lines(
            "GPU use",
            "Share of the time in which it was busy.",
            [Query(expr="edgefront_worker_gpu_utilisation_ratio", legend="{{instance}} GPU {{gpu}}")],
            "percentunit",
            highest=1.0,
        ),
        lines(
            "GPU memory",
            "Share in use.",
            [Query(expr=f"{used} / {total}", legend="{{instance}} GPU {{gpu}}")],
            "percentunit",
            highest=1.0,
        ),
    ]


def rack() -> Json:
    """The boards of all agents."""
    states = f"sum by (state) (edgefront_rack_boards{_KIND})"

    def count(title: str, about: str, state: str, steps: dict[float, str]) -> Panel:
        chosen = f'{{state="{state}",board_kind=~"$board_kind"}}'
        return number(title, about, Query(expr=f"sum(edgefront_rack_boards{chosen})"), steps=steps)

    head = [
        number("Boards", "Of all agents.", Query(expr=f"sum(edgefront_rack_boards{_KIND})")),
        count("Idle", "Ready to measure.", "idle", {0: "red", 1: "green"}),
        count("Measuring", "Leased to a stage.", "leased", {0: "blue"}),
        count("Stuck", "Their holder does not come back.", "stuck", {0: "green", 1: "yellow"}),
        count(
            "In quarantine",
            "Out of use until somebody or a self-test puts them back.",
            "quarantined",
            {0: "green", 1: "red"},
        ),
        number(
            "Measurements in an hour",
            "Complete ones.",
            Query(expr='sum(increase(edgefront_measurements_total{outcome="complete",board_kind=~"$board_kind"}[1h]))'),
            decimals=0,
        ),
    ]
    work = [
        lines(
            "Boards by state",
            "All kinds chosen above.",
            [Query(expr=states, legend="{{state}}")],
            stacked=True,
            width=12,
        ),
        lines(
            "Measurements in an hour",
            "By how they ended; image faults are the candidate's, rig faults the lab's.",
            [Query(expr=_hourly("edgefront_measurements_total", "outcome", _KIND), legend="{{outcome}}")],
            stacked=True,
            width=12,
        ),
        lines(
            "Time of a measurement",
            "Flashing, running with known answers, measuring energy, all of it.",
            _shares("edgefront_measurement_duration_seconds", "phase", _KIND),
            "s",
        ),
        lines(
            "Latency of an inference",
            "Median by kind of board. Emulated values are counted, not measured.",
            [
                Query(
                    expr=_share("edgefront_inference_latency_seconds", "board_kind, source", 0.5, _KIND),
                    legend="{{board_kind}} {{source}}",
                )
            ],
            "s",
        ),
        lines(
            "Energy of an inference",
            "Median by kind of board; measured, or estimated from a stated model.",
            [
                Query(
                    expr=_share("edgefront_inference_energy_joules", "board_kind, source", 0.5, _KIND),
                    legend="{{board_kind}} {{source}}",
                )
            ],
            "joule",
        ),
    ]
    trouble = [
        lines(
            "Faults of the rig in an hour",
            "Boards, probes and meters, by reason.",
            [Query(expr=_hourly("edgefront_rig_faults_total", "reason", _KIND), legend="{{reason}}")],
            stacked=True,
        ),
        lines(
            "Power cycles and quarantines in an hour",
            "What the agent did about faults.",
            [
                Query(expr=f"sum(increase(edgefront_power_cycles_total{_KIND}[1h]))", legend="power cycles"),
                Query(expr=f"sum(increase(edgefront_quarantines_total{_KIND}[1h]))", legend="quarantines"),
            ],
        ),
        table(
            "Self-tests",
            "The newest of each board.",
            {
                "passed": ("min by (board) (edgefront_last_self_test_passed)", "bool_yes_no"),
                "age": ("time() - max by (board) (edgefront_last_self_test_timestamp_seconds)", "s"),
            },
            keys={"board": "board"},
        ),
    ]
    choice = variable("board_kind", "Board kind", "label_values(edgefront_rack_boards, board_kind)", several=True)
    return dashboard(
        "edgefront-rack",
        "Edgefront: rack",
        "The boards, what they measure and what is wrong with them.",
        [choice],
        [Row(title="Now", panels=head), Row(title="Work", panels=work), Row(title="Trouble", panels=trouble)],
    )


DASHBOARDS = {"search": search, "study": study, "workers": workers, "rack": rack}


def render(name: str) -> str:
    """The dashboard's file."""
    return json.dumps(DASHBOARDS[name](), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for name in DASHBOARDS:
        path = FOLDER / "dashboards" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(name), encoding="utf-8")


if __name__ == "__main__":
    main()
