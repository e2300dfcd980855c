"""One page with what the runs show: hypervolume against trials with a band, and seconds a proposal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from bench.searching.comparison import Results
from orchestrator.arrays import FloatArray

# Okabe and Ito's colours, told apart with any colour vision; beyond eight, lines are dashed.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_DASHES = ("solid", "dash", "dot")


def write_page(results: Results, path: Path, title: str) -> None:
    """The page, which needs no network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = figure(results, title).to_html(include_plotlyjs=True, full_html=True)
    path.write_text(page, encoding="utf-8")


def figure(results: Results, title: str) -> go.Figure:
    """One row a problem: on the left the mean with one standard deviation to both sides over the seeds, on the right
    the median seconds of a proposal on a log scale."""
    titles = [
        text for name in results.problems for text in (f"{name}: hypervolume, % of reference", f"{name}: s/proposal")
    ]
    drawn = make_subplots(rows=len(results.problems), cols=2, subplot_titles=titles, column_widths=[0.62, 0.38])
    shown: set[str] = set()
    for row, problem in enumerate(results.problems, start=1):
        for index, proposer in enumerate(results.proposers):
            if results.seeds(problem, proposer):
                look = {
                    "color": _COLOURS[index % len(_COLOURS)],
                    "dash": _DASHES[index // len(_COLOURS) % len(_DASHES)],
                }
                for trace in _quality(
                    100 * results.curves(problem, proposer), proposer, look, is_first=proposer not in shown
                ):
                    drawn.add_trace(trace, row=row, col=1)
                shown.add(proposer)
                drawn.add_trace(_speed(results.seconds(problem, proposer), proposer, look), row=row, col=2)
        drawn.update_yaxes(type="log", dtick=1, row=row, col=2)
        drawn.update_xaxes(title_text="trial", row=row)
    drawn.update_layout(title=title, template="plotly_white", height=120 + 380 * len(results.problems))
    return drawn


def _quality(curves: FloatArray, name: str, look: dict[str, Any], *, is_first: bool) -> Iterator[go.Scatter]:
    trials = np.arange(1, curves.shape[1] + 1)
    mean, deviation = curves.mean(axis=0), curves.std(axis=0, ddof=1 if len(curves) > 1 else 0)
    yield go.Scatter(
        x=np.concatenate([trials, trials[::-1]]),
        y=np.concatenate([mean + deviation, (mean - deviation)[::-1]]),
        fill="toself",
        fillcolor=look["color"],
        opacity=0.15,
        line={"width": 0},
        hoverinfo="skip",
        legendgroup=name,
        showlegend=False,
    )
    yield go.Scatter(x=trials, y=mean, name=name, line=look, legendgroup=name, showlegend=is_first)


def _speed(seconds: FloatArray, name: str, look: dict[str, Any]) -> go.Scatter:
    trials = np.arange(1, seconds.shape[1] + 1)
    median = np.maximum(np.median(seconds, axis=0), 1e-5)
    return go.Scatter(x=trials, y=median, name=name, line=look, legendgroup=name, showlegend=False)
