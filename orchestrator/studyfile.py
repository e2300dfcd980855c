"""The study file: what a user writes in YAML, as checked records.

Only the schema lives here, so that workers can read a study without loading an optimiser. Reading YAML with line
numbers and checking names against what is installed is ``orchestrator.studycheck``.

Parameters of the search space are routed by the first part of their name:

``network.<option>``
    an argument of the network family.
``training.<option>``
    a field of :class:`Training` (``training.learning_rate``, ``training.epochs`` …).
``compression.<option>``
    a field of :class:`Compression`; ``compression.sparsity.<module prefix>`` sets the sparsity of the modules of the
    network whose name starts with that prefix, and ``compression.sparsity`` that of all others.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.records import Json, ParamValue

OBJECTIVE_UNITS = {"error": "1", "rom": "byte", "ram": "byte", "flops": "1", "latency": "s", "energy": "J"}
SPACE_SECTIONS = ("network", "training", "compression")
NOT_SEARCHED = ("training.checkpoint_every",)  # changes no result

_QUANTITY = re.compile(r"^\s*(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ%]*)\s*$")
# What each unit measures, in our base units; a bare number and one with k, M or G may be anything but a time.
_UNITS: dict[str, dict[str, float]] = {
    "": {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9},
    "1": {"%": 0.01},
    "byte": {"B": 1.0, "kB": 1e3, "KB": 1e3, "KiB": 1024.0, "MB": 1e6, "MiB": 1024.0**2, "GB": 1e9, "GiB": 1024.0**3},
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "h": 3600.0, "d": 86400.0},
    "J": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6},
}
# Beyond this a whole number is no longer exact as a float, which the encoding to the unit cube needs.
_LARGEST_INT = 2**53
MOST_WORKERS = 256  # of a kind, started by one run
MOST_BOARDS = 8  # kinds in one study: each has its own values, columns and metrics


def parse_quantity(value: Any, unit: str | None = None) -> Any:
    """``"64 KiB"`` → 65536.0, ``"30 min"`` → 1800.0, ``"10 M"`` → 1e7; anything but text passes unchanged.

    ``unit`` is what it must be in (``byte``, ``s``, ``J``, ``1``); without it all are allowed.

    Raises:
        ValueError: the text is no number above 0 with a known unit, or one of another kind.
    """
    if not isinstance(value, str):
        return value
    kinds = _UNITS if unit is None else {kind: _UNITS[kind] for kind in ("", unit)}
    factors = {name: factor for units in kinds.values() for name, factor in units.items()}
    if unit == "s":
        factors = {"": 1.0, **_UNITS["s"]}
    match = _QUANTITY.match(value)
    if match is None or match.group(2) not in factors or not (amount := float(match.group(1))) > 0:
        units_there = ", ".join(filter(None, factors))
        raise ValueError(f"found {value!r}; allowed: a number above 0, or one with a unit: {units_there}")
    return amount * factors[match.group(2)]


def _parse_seconds(value: Any) -> Any:
    return parse_quantity(value, "s")


Quantity = Annotated[float, BeforeValidator(parse_quantity), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(_parse_seconds), Field(gt=0)]
WholeNumber = Annotated[int, Field(ge=-_LARGEST_INT, le=_LARGEST_INT)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FloatParameter(_Model):
    """A real number in [low, high], searched on a log scale when ``log`` is set."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> FloatParameter:
        _check_range(self.low, self.high, is_log=self.log)
        return self


class IntParameter(_Model):
    """A whole number in low, low + step, …, high."""

    type: Literal["int"]
    low: WholeNumber
    high: WholeNumber
    step: Annotated[int, Field(ge=1)] = 1
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> IntParameter:
        _check_range(self.low, self.high, is_log=self.log)
        if self.log and self.step != 1:
            raise ValueError("log: true goes with step: 1 only")
        return self


class CategoricalParameter(_Model):
    """One of the listed choices, without order."""

    type: Literal["categorical"]
    choices: Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> CategoricalParameter:
        if len(set(self.choices)) != len(self.choices):
            raise ValueError(f"choices holds the same value twice: {list(self.choices)}")
        return self


class FixedParameter(_Model):
    """A value that is not searched."""

    type: Literal["fixed"]
    value: bool | int | float | str


Parameter = Annotated[
    FloatParameter | IntParameter | CategoricalParameter | FixedParameter, Field(discriminator="type")
]


def _check_range(low: float, high: float, *, is_log: bool) -> None:
    if low >= high:
        raise ValueError(f"low {low} must be below high {high}; use type: fixed for a single value")
    if is_log and low <= 0:
        raise ValueError(f"low {low} must be above 0 on a log scale")


def _fixed_if_plain(value: Any) -> Any:
    """A bare scalar in the space is a fixed parameter."""
    if isinstance(value, (bool, int, float, str)):
        return {"type": "fixed", "value": value}
    return value


SpaceEntry = Annotated[Parameter, BeforeValidator(_fixed_if_plain)]


class Dataset(_Model):
    """Where the data comes from and how it is split. ``source``: a built-in name, a path to an ``.npz`` with ``x`` and
    ``y``, or ``module:function`` returning such arrays."""

    source: str
    validation: Annotated[float, Field(gt=0, lt=0.9)] = 0.2
    test: Annotated[float, Field(gt=0, lt=0.9)] = 0.2
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Dataset:
        if self.validation + self.test > 0.9:
            raise ValueError(f"validation {self.validation} and test {self.test} leave less than 0.1 for training")
        return self


class Network(_Model):
    """``family``: built-in name or ``module:function`` returning a PyTorch module; ``options`` are fixed arguments."""

    family: str
    options: dict[str, Any] = Field(default_factory=dict)


class Objective(_Model):
    """``limit`` bounds the objective (more is infeasible) and scales it in the hypervolume. Where it is left out, the
    board's flash and RAM bound ``rom`` and ``ram``, 1.0 bounds ``error`` and 1e9 ``flops``."""

    limit: Quantity | None = None


class Plateau(_Model):
    """The search ends when the last ``trials`` trials raised the hypervolume by no more than the share ``gain``."""

    trials: Annotated[int, Field(ge=1, description="Trials looked back on; the initial design is not among them.")]
    gain: Annotated[Fraction, Field(description="Share of the hypervolume reached.")] = 0.005


class Budget(_Model):
    trials: Annotated[int, Field(ge=1, le=1_000_000)]
    wall_clock: Seconds | None = None
    plateau: Plateau | None = None


class EarlyStopping(_Model):
    """``conservative`` gives a training up when the chance that the trial still adds more than the share ``gain`` to
    the hypervolume is below ``chance``; ``off`` lets every training run to its end."""

    mode: Literal["conservative", "off"] = "conservative"
    chance: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    gain: Annotated[float, Field(ge=0, le=0.1)] = 0.001

    @model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, given: Any) -> Any:
        # YAML reads a bare off as false
        if isinstance(given, dict) and given.get("mode") is False:
            return {**given, "mode": "off"}
        return given


class Sampler(_Model):
    """``initial`` trials come from a Latin hypercube, the rest from the named proposer."""

    name: str = "ars"
    initial: Annotated[int, Field(ge=1, le=1_000_000)] = 8
    options: dict[str, Any] = Field(default_factory=dict)


class Training(_Model):
    """Each field but ``checkpoint_every`` may also be searched, as ``training.<field>`` in the space. A training keeps
    its state after the first epoch that ends ``checkpoint_every`` after the last time, and another worker goes on from
    there; the result is the same."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 20
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    label_smoothing: Fraction = 0.0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|xpu|cuda(:[0-9]+)?)$")] = "cpu"
    checkpoint_every: Seconds = 60.0


class Compression(_Model):
    """Structured pruning (``sparsity``: share of the channels removed, in ``steps`` rounds with ``finetune_epochs``
    after each), then static int8 quantisation calibrated on ``calibration_samples`` training samples."""

    sparsity: Fraction = 0.0
    steps: Annotated[int, Field(ge=1, le=100)] = 2
    finetune_epochs: Annotated[int, Field(ge=0, le=100_000)] = 2
    criterion: Literal["l1", "l2", "random"] = "l1"
    calibration_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 128


class Parallelism(_Model):
    """Worker processes started by ``edgefront run`` in embedded mode, ``boards`` for each board kind. ``in_flight``
    trials are under way at once (default: the number of train and build workers)."""

    train_workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1
    build_workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1
    boards: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1
    in_flight: Annotated[int, Field(ge=1, le=1024)] | None = None

    @property
    def trials_in_flight(self) -> int:
        return self.in_flight or self.train_workers + self.build_workers


class Firmware(_Model):
    """How networks are compiled: ``optimise`` for ``speed``, or for ``size``: no loop unrolled, 0.5 to 2.4 KiB less
    code for 2 to 12 % more cycles. ``extra_macs``: the share of more multiply-accumulates that may be spent on less
    RAM."""

    optimise: Literal["speed", "size"] = "speed"
    extra_macs: Annotated[float, Field(ge=0, le=1)] = 0.0


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Profiling(_Model):
    """``samples`` validation samples are run on the board and compared with the host bit for bit; ``timeout`` bounds
    one attempt at a profile. ``calibration`` names files of ``edgefront rack calibrate``, at most one a board kind, by
    which virtual boards estimate latency and energy; a study that has begun holds what was in them."""

    samples: Annotated[int, Field(ge=32, le=1_000_000)] = 32
    timeout: Seconds = 120.0
    calibration: Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_listed)] = ()


def _all_if_missing(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _check_web_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # brackets that are no IPv6, a port that is none
        raise ValueError(f"allowed: http://host:port/… with a port from 1 to 65535 ({error})") from error
    if not has_host:
        raise ValueError("allowed: http://host:port/… with the name of a host and a port from 1 to 65535")
    return url


class Notify(_Model):
    """Where to send word of the study: a POST of JSON to ``webhook`` on each event of ``on``: ``record`` (a larger
    hypervolume), ``end``, ``stall`` (no trial told for the time ``stall_after``). With ``secret`` each is signed."""

    webhook: Annotated[
        str, Field(pattern=r"^https?://[^\s/]+\S*$", max_length=2000), AfterValidator(_check_web_address)
    ]
    on: Annotated[
        tuple[Literal["record", "end", "stall"], ...], BeforeValidator(_all_if_missing), Field(min_length=1)
    ] = (
        "record",
        "end",
        "stall",
    )
    secret: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    stall_after: Seconds = 3600.0


class StudyFile(_Model):
    """A whole study: dataset, network family with its space, board or boards, objectives, budget, how to search and
    evaluate."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    dataset: Dataset
    network: Network
    space: Annotated[dict[str, SpaceEntry], Field(min_length=1)]
    board: str | None = None
    boards: Annotated[tuple[str, ...], Field(min_length=2, max_length=MOST_BOARDS)] | None = None
    objectives: Annotated[
        dict[Literal["error", "rom", "ram", "flops", "latency", "energy"], Objective], Field(min_length=1)
    ]
    budget: Budget
    sampler: Sampler = Sampler()
    training: Training = Training()
    compression: Compression = Compression()
    early_stopping: EarlyStopping = EarlyStopping()
    firmware: Firmware = Firmware()
    parallelism: Parallelism = Parallelism()
    profiling: Profiling = Profiling()
    notify: Notify | None = None

    @model_validator(mode="after")
    def _check(self) -> StudyFile:
        for field, text in wrong_boards(self.board, self.boards):
            raise PydanticCustomError("boards", "{field}: {text}", {"field": field, "text": text})
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """The board kinds the study is for, in the order of the file; mostly one."""
        return self.boards or (str(self.board),)

    def to_json(self) -> Json:
        """Whichever of ``board`` and ``boards`` was not given is left out: a study that names one board is the same
        JSON, and its results have the same names, as before there could be several. So is one without calibration or
        notifications."""
        data = self.model_dump(mode="json")
        del data["board" if self.boards else "boards"]
        if not self.profiling.calibration:
            del data["profiling"]["calibration"]
        if self.notify is None:
            del data["notify"]
        return data

    def for_stages(self) -> Json:
        """What workers are told of the study: all but whom to notify, which is secret and no business of theirs."""
        return {name: value for name, value in self.to_json().items() if name != "notify"}

    @staticmethod
    def from_json(data: Json) -> StudyFile:
        return StudyFile.model_validate(data)


def wrong_boards(board: object, boards: object) -> list[tuple[str, str]]:
    """What is wrong with the two fields together, or with the list in itself: each as field and text."""
    if board is not None and boards is not None:
        return [("boards", "is given beside board; give board for one kind, or boards for several, not both")]
    if board is None and boards is None:
        return [("board", "is missing and must be given; for several kinds in one study give boards: [kind, kind]")]
    kinds = list(boards) if isinstance(boards, (list, tuple)) else []
    doubled = [i for i, kind in enumerate(kinds) if kind in kinds[:i]]
    return [
        (f"boards.{i}", f"found {kinds[i]!r} twice; name each kind once (more boards of one kind: parallelism.boards)")
        for i in doubled
    ]


def section(params: dict[str, ParamValue], name: str) -> dict[str, ParamValue]:
    """The parameters of one section, without the section's name: ``section(p, "network")["width"]``."""
    prefix = name + "."
    return {key[len(prefix) :]: value for key, value in params.items() if key.startswith(prefix)}
