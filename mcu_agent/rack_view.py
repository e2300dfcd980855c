"""Boards of a rack as rows for scripts and people: what they are doing, and what their self-tests found."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mcu_agent.errors import AgentError
from mcu_agent.measuring import recorder_of
from mcu_agent.pool import BoardStatus, Pool
from mcu_agent.rack import RackBoard
from mcu_agent.recovery import check_board

CHECKS_AT_ONCE = 8


def checked(pool: Pool, names: tuple[str, ...], wait_s: float) -> list[dict[str, Any]]:
    """The self-tests of boards, side by side."""
    entries = [pool.rack.board(name) for name in names] if names else list(pool.rack.boards)

    def one(entry: RackBoard) -> dict[str, Any]:
        try:
            report = check_board(pool, entry.board_id, "self-test", wait_s=wait_s, recorders=recorder_of)
            return {**report.to_json(), "quarantine": pool.record(entry.board_id).quarantine}
        except AgentError as error:  # one board's, which keeps no other from its test
            fields = {"board": entry.board_id, "kind": entry.kind, "driver": entry.driver}
            return {
                **fields,
                "ok": False,
                "reason": error.reason,
                "fault": str(error),
                "checks": {},
                "seconds": 0.0,
                "quarantine": pool.record(entry.board_id).quarantine,
            }

    with ThreadPoolExecutor(min(len(entries), CHECKS_AT_ONCE)) as executor:
        return list(executor.map(one, entries))


def check_row(row: dict[str, Any]) -> dict[str, Any]:
    def found(name: str) -> str:
        check = row["checks"].get(name, {"ok": None, "found": ""})
        return "FAILS" if check["ok"] is False else check["found"] or "-"

    fields = {name: row[name] for name in ("board", "kind", "driver")}
    columns = {name: found(name) for name in ("image", "answer", "cycles", "meter")}
    stays_out = f"ok, but out of use: {row['quarantine']}" if row["quarantine"] else "ok"
    return {**fields, **columns, "seconds": f"{row['seconds']:.1f}", "result": row["fault"] or stays_out}


def status_row(status: BoardStatus) -> dict[str, Any]:
    """Times in seconds since the epoch, null where there is none."""
    record = status.record
    return {
        "board": status.board.board_id,
        "kind": status.board.kind,
        "driver": status.board.driver,
        "state": status.state.value,
        "since": status.since or None,
        "detail": status.detail,
        "self_test": {"at": record.tested_at, "ok": not record.test, "found": record.test}
        if record.tested_at
        else None,
        "tags": list(status.board.tags),
        "uart": status.board.uart or None,
    }


def for_people(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Times as how long ago; the column of tags, where a board has any."""
    now, has_tags = time.time(), any(row["tags"] for row in rows)

    def test(found: dict[str, Any] | None) -> str:
        return f"{'passed' if found['ok'] else 'failed'} {_ago(found['at'], now)}" if found else "never"

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in row.items() if name not in ("tags", "uart")}
        tags = {"tags": " ".join(row["tags"])} if has_tags else {}
        since = _ago(row["since"], now) if row["since"] else ""
        return {**fields, "since": since, "self_test": test(row["self_test"]), **tags}

    return [shown(row) for row in rows]


def _ago(then: float, now: float) -> str:
    seconds = max(now - then, 0.0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
