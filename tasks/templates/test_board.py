"""Runs firmware/firmware.elf on a virtual board and compares every output with the test vectors, bit for bit."""

import json
import sys
from pathlib import Path

import numpy as np

from mcu_agent.boards.virtual import VirtualBoard
from mcu_agent.errors import AgentError
from mcu_agent.kinds import load_kind
from mcu_agent.profiling import profile
from mcu_agent.session import Job, Layer

HERE = Path(__file__).resolve().parent
FIGURES = json.loads((HERE.parent / "figures.json").read_text(encoding="utf-8"))


def main() -> int:
    with np.load(HERE / "test_vectors.npz", allow_pickle=False) as vectors:
        inputs, outputs = vectors["inputs"], vectors["outputs"]
    layers = json.loads((HERE.parent / "layers.json").read_text(encoding="utf-8"))
    job = Job(
        elf=(HERE.parent / "firmware" / "firmware.elf").read_bytes(),
        inputs=inputs.reshape(len(inputs), -1)[:32],
        expected=outputs.reshape(len(outputs), -1)[:32],
        layers=[Layer.from_json(layer) for layer in layers],
    )
    try:
        found = profile(job, VirtualBoard("virtual", load_kind(FIGURES["board"])))
    except AgentError as error:
        print(error)
        return 1
    print(f"{found.n_runs} test vectors bit for bit on a virtual {found.kind}")
    print(f"{found.cycles.median:,.0f} cycles ({found.cycles_source}), {1e3 * found.latency_s:.2f} ms an inference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
