"""Write the small study that each version of the ledger leaves behind for its successors to open.

``python -m tests.support.kept_study`` once for a new version: two trials told, two under way, in ``tests/data``. What
an earlier version wrote is never written again.
"""

from __future__ import annotations

import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path

from orchestrator.tables import LEDGER_VERSION
from tests.support.stored import begin, in_file, run_until

DATA = Path(__file__).parents[1] / "data"


def main() -> None:
    file = DATA / f"study-v{LEDGER_VERSION}.tar.gz"
    if file.exists():
        raise SystemExit(f"{file} exists; a new form of the tables needs a new LEDGER_VERSION")
    with tempfile.TemporaryDirectory() as folder:
        study = begin(in_file(Path(folder)))
        study.take_sources({"dataset": "d" * 64})
        run_until(study, "stage_finished", 1, trial=2, stage="compress")
        study.close()
        shutil.rmtree(study.folder / "artifacts" / "memo")
        connection = sqlite3.connect(study.folder / "study.db")
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("VACUUM")
        connection.close()
        with tarfile.open(file, "w:gz") as archive:
            for name in ("study.db", "study.yaml", "artifacts"):
                archive.add(study.folder / name, arcname=f"small/{name}", filter=_plain)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
