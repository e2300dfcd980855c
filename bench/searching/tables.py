"""The comparison as tables, for a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from bench.searching.comparison import Estimate, Kept, Lead, Standing

_STANDINGS = ("problem", "proposer", "seeds", "final, %", "area, %", "s/proposal", "CPU s/proposal")
_LEADS = ("problem", "over", "pairs", "final", "p", "area", "p", "least p", "matched at trial")
_KEPT = ("problem", "proposer", "seeds", "final, % of one worker", "pending repeated")


def text(standings: Sequence[Standing], leads: Sequence[Lead], kept: Sequence[Kept], *, is_markdown: bool) -> str:
    """Standings, leads, and what several workers keep of the hypervolume of one; empty tables are left out."""
    draw = _markdown if is_markdown else _plain
    parts = [draw(_STANDINGS, [_standing(item) for item in standings])]
    if leads:
        parts.append(f"lead of {leads[0].base}, paired by seed, in points; p one-sided, least p of so few pairs")
        parts.append(draw(_LEADS, [_lead(item) for item in leads]))
    if kept:
        parts.append(draw(_KEPT, [_kept(item) for item in kept]))
    return "\n\n".join(parts)


def _standing(item: Standing) -> list[str]:
    times = [f"{item.proposal_s:.3f}", f"{item.proposal_cpu_s:.3f}"]
    return [item.problem, item.proposer, str(item.n_seeds), _percent(item.final), _percent(item.area), *times]


def _lead(item: Lead) -> list[str]:
    final, area = [_percent(item.final), _p(item.p)], [_percent(item.area), _p(item.p_area)]
    matched = str(item.trials_to_match or "never")
    return [item.problem, item.other, str(item.n_pairs), *final, *area, f"{item.p_least:.2g}", matched]


def _kept(item: Kept) -> list[str]:
    return [item.problem, item.proposer, str(item.n_seeds), _percent(item.share), str(item.repeats)]


def _percent(item: Estimate) -> str:
    return f"{100 * item.mean:.1f} [{100 * item.low:.1f}, {100 * item.high:.1f}]"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _plain(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[index]) for row in [head, *rows]) for index in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [head, *rows]]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    named = [[f"`{cell}`" if index < 2 else cell for index, cell in enumerate(row)] for row in rows]
    lines = [head, ["---"] * len(head), *named]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
