"""Depthwise convolution for the DSP extension: assembly made for one geometry.

A channel is copied out of the image into a *plane* of 16-bit numbers with its padding around it. There, neighbouring
inputs of a channel are neighbouring halves of words, so one SMLAD takes two taps, and a word that is loaded serves two
neighbouring outputs. The weights of a channel are unpacked once and stay in registers where they take no more than six.
All sizes are constants of the code, so every load has its offset in the instruction. Layers of one geometry share it.

The outputs of a channel take the places of that channel's inputs, which have been copied by then: a layer may work in
place whatever its stride.

For a row of taps w0 w1 w2 over inputs p0 p1 | p2 p3, with words A = (p0, p1), B = (p2, p3), the two outputs are

    SMLAD(A, w0w1) + SMLABT(B, w1w2)        p0·w0 + p1·w1 + p2·w2
    SMLATB(A, w0w1) + SMLAD(B, w1w2)        p1·w0 + p2·w1 + p3·w2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.firmware.ir import Shape, Window

_WEIGHT_REGISTERS = ("r3", "r4", "r5", "r6", "r7", "r8")
_STREAMED_REGISTERS = ("r4", "r5", "r6", "r7")
_INPUT_REGISTERS = ("r8", "r10", "r11")  # the last ones are used first
_MOST_UNROLLED, _MOST_UNROLLED_SMALL = 12, 4
_UNROLLED_TURNS = 3  # of the loop over a row: the loop's own instructions would be a tenth
_LARGEST_POST_INDEX = 255
_LARGEST_OFFSET = 4095
_LARGEST_PAIR_OFFSET = 1020
_LARGEST_CHUNK = 5  # taps of a row at a time: four words of weights and three of inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """What the code depends on. ``is_wide``: a left shift, or bounds that cut into the range of a byte; ``is_small``:
    loops are not unrolled."""

    source: Shape
    target: Shape
    window: Window
    is_wide: bool
    is_small: bool = False

    @property
    def rows(self) -> int:
        """Rows of the plane that some window sees."""
        return (self.target[0] - 1) * self.window.stride[0] + self.window.kernel[0]

    @property
    def columns(self) -> int:
        return (self.target[1] - 1) * self.window.stride[1] + self.window.kernel[1]

    @property
    def used_rows(self) -> int:
        """Rows of the input that are in the plane."""
        return min(self.source[0], self.rows - self.window.pads.top)

    @property
    def used_columns(self) -> int:
        return min(self.source[1], self.columns - self.window.pads.left)

    @property
    def pitch(self) -> int:
        """Elements from one row of the plane to the next; even, so that rows start at words."""
        return -(-max(self.columns, self.window.pads.left + self.used_columns) // 2) * 2

    @property
    def step(self) -> int:
        """Outputs a turn of the inner loop makes."""
        return 2 if self.window.stride[1] == 1 else 1

    @property
    def chunks(self) -> list[tuple[int, int, int]]:
        """(row, first tap, taps) of the pieces in which the window is worked off."""
        height, width = self.window.kernel
        pieces = []
        for row in range(height):
            at = 0
            while width - at > _LARGEST_CHUNK:
                pieces.append((row, at, _LARGEST_CHUNK - 1))
                at += _LARGEST_CHUNK - 1
            pieces.append((row, at, width - at))
        return pieces

    @property
    def weight_words(self) -> int:
        return sum(len(_weight_pairs(taps, self.step)) for _, _, taps in self.chunks)

    @property
    def is_streamed(self) -> bool:
        """Unpacked weights lie behind the plane because there are not enough registers for them."""
        inputs = max(_n_inputs(taps, self.step - 1) for _, _, taps in self.chunks)
        shared = 1 if inputs == len(_INPUT_REGISTERS) else 0
        return self.weight_words > len(_WEIGHT_REGISTERS) - shared

    @property
    def plane_bytes(self) -> int:
        return self.rows * self.pitch * 2

    @property
    def scratch_bytes(self) -> int:
        return self.plane_bytes + (4 * self.weight_words if self.is_streamed else 0)

    @property
    def is_supported(self) -> bool:
        """Whether there is such code; other depthwise convolutions take the portable kernel."""
        height, width = self.window.kernel
        reach = (height - 1) * self.pitch * 2 + 2 * width + 4
        return (
            self.window.dilation == (1, 1)
            and self.window.stride[1] <= 2
            and self.source[2] == self.target[2] <= _LARGEST_OFFSET
            and self.used_rows > 0
            and self.used_columns > 0
            and reach <= _LARGEST_OFFSET
            and self.weight_words * 4 <= _LARGEST_PAIR_OFFSET
            and height * width <= _LARGEST_OFFSET
            and self._gap_bytes <= _LARGEST_OFFSET
        )

    @property
    def _gap_bytes(self) -> int:
        """Bytes of a row of the input that no window sees."""
        return (self.source[1] - self.used_columns) * self.source[2]


def assembly(name: str, geometry: Geometry) -> str:
    """The function ``name`` with the contract of ``ef_dwconv2d_s8`` (csrc/kernels/ef_dwconv2d_s8.h)."""
    lines = [*_entry(name, geometry), *_channel(geometry), *_exit(name)]
    return "\n".join(line if line.endswith(":") or line.startswith("/*") else f"    {line}" for line in lines) + "\n"


# Offsets in ef_depthwise_t, and on the stack: the first four words are as in the record.
_WEIGHTS, _REQUANT, _CHANNELS, _INPUT_ZERO = 0, 4, 8, 12
_ZERO_POINT, _SHIFT, _BOUNDS = 16, 20, 24
_MULTIPLIER, _LOW, _IN, _OUT, _PLANE, _LEFT, _TAPS, _BIASES, _ROWS = 0, 12, 20, 24, 28, 32, 36, 40, 44
_FRAME = 48


def _entry(name: str, geometry: Geometry) -> Iterator[str]:
    """r0 layer, r1 in, r2 plane, r3 out."""
    yield f'.section .text.{name}, "ax", %progbits'
    yield from (".balign 4", f".global {name}", ".thumb_func", f".type {name}, %function", f"{name}:")
    yield "push {r4-r11, lr}"
    yield f"sub sp, sp, #{_FRAME}"
    yield f"strd r1, r3, [sp, #{_IN}]"
    yield f"str r2, [sp, #{_PLANE}]"
    yield "ldmia r0!, {r4-r7}"
    yield f"strd r4, r5, [sp, #{_TAPS}]"
    yield f"str r6, [sp, #{_LEFT}]"
    yield "ldmia r0, {r8-r11}"
    yield "add r12, sp, #4"
    yield "stmia r12, {r8-r11}"  # zero point, shift, low, high
    yield from _fill(geometry)


def _fill(geometry: Geometry) -> Iterator[str]:
    """The input's zero point (r7) everywhere in the plane (r2); only the padding keeps it."""
    if (geometry.used_rows, geometry.used_columns) == (geometry.rows, geometry.pitch):
        return
    words = geometry.plane_bytes // 4
    yield "pkhbt r7, r7, r7, lsl #16"
    yield f"movw r6, #{words & 0xFFFF}"
    if words > 0xFFFF:
        yield f"movt r6, #{words >> 16}"
    yield "1:"
    yield from ("str r7, [r2], #4", "subs r6, #1", "bne 1b")


def _channel(geometry: Geometry) -> Iterator[str]:
    yield "/* a channel: its inputs into the plane */"
    yield "2:"
    yield from _extraction(geometry)
    yield "/* its weights, bias and multiplier */"
    yield from _weights(geometry)
    yield from (f"ldr r11, [sp, #{_BIASES}]", "ldrd r9, r10, [r11], #8", f"str r11, [sp, #{_BIASES}]")
    yield f"str r10, [sp, #{_MULTIPLIER}]"
    yield from (f"ldr r0, [sp, #{_PLANE}]", f"ldr r1, [sp, #{_OUT}]")
    yield f"movw r12, #{geometry.target[0]}"
    yield f"str r12, [sp, #{_ROWS}]"
    yield "/* its outputs, row by row */"
    yield "5:"
    yield from _row(geometry)
    yield from (f"ldr r12, [sp, #{_ROWS}]", "subs r12, #1", f"str r12, [sp, #{_ROWS}]", "bne.w 5b")
    yield from (f"ldr r1, [sp, #{_IN}]", f"ldr r3, [sp, #{_OUT}]", f"ldr r12, [sp, #{_LEFT}]")
    yield from ("adds r1, #1", "adds r3, #1", "subs r12, #1")
    yield from (f"str r1, [sp, #{_IN}]", f"str r3, [sp, #{_OUT}]", f"str r12, [sp, #{_LEFT}]", "bne.w 2b")


def _extraction(geometry: Geometry) -> Iterator[str]:
    pads, width = geometry.window.pads, geometry.used_columns
    yield from (f"ldr r0, [sp, #{_IN}]", f"ldr r1, [sp, #{_PLANE}]")
    yield from _add("r1", 2 * (pads.top * geometry.pitch + pads.left))
    yield f"movw r2, #{geometry.used_rows}"
    yield "3:"
    most = _MOST_UNROLLED_SMALL if geometry.is_small else _MOST_UNROLLED
    turns, rest = divmod(width, most) if width > most else (0, width)
    if turns:
        yield f"movw r3, #{turns}"
        yield "4:"
        yield from _elements(geometry, most)
        yield from ("subs r3, #1", "bne 4b")
    yield from _elements(geometry, rest)
    yield from _add("r0", geometry.source[1] * geometry.source[2] - width * geometry.source[2])
    yield from _add("r1", 2 * (geometry.pitch - width))
    yield from ("subs r2, #1", "bne 3b")


def _elements(geometry: Geometry, n: int) -> Iterator[str]:
    for _ in range(n):
        yield from _stepped("ldrsb r12, [r0]", "r0", geometry.source[2])
        yield "strh r12, [r1], #2"


def _stepped(access: str, register: str, n_bytes: int) -> Iterator[str]:
    """A load or store through ``register``, which then moves on."""
    if n_bytes <= _LARGEST_POST_INDEX:
        yield f"{access}, #{n_bytes}"
    else:
        yield access
        yield from _add(register, n_bytes)


def _add(register: str, n_bytes: int) -> Iterator[str]:
    while n_bytes > 0:
        part = min(n_bytes, _LARGEST_OFFSET)
        yield f"addw {register}, {register}, #{part}"
        n_bytes -= part


def _weight_pairs(taps: int, step: int) -> list[int]:
    """The first taps t of the words (w[t], w[t + 1]) that a row of taps needs."""
    return list(range(max(taps - 1, 1))) if step == 2 else list(range(0, taps, 2))


def _n_inputs(taps: int, last_output: int) -> int:
    """Words of inputs that a row of taps sees from its first output to ``last_output``."""
    return (taps - 1 + last_output) // 2 + 1


def _weights(geometry: Geometry) -> Iterator[str]:
    """Unpacked into registers, or behind the plane."""
    width = geometry.window.kernel[1]
    yield f"ldr r0, [sp, #{_TAPS}]"
    if geometry.is_streamed:
        yield f"ldr r3, [sp, #{_PLANE}]"
        yield from _add("r3", geometry.plane_bytes)
    word = 0
    for row, first, taps in geometry.chunks:
        loaded = -1
        for tap in _weight_pairs(taps, geometry.step):
            at = row * width + first + tap
            if loaded == tap:
                yield "mov r10, r11"
            else:
                yield f"ldrsb r10, [r0, #{at}]"
            loaded = tap + 1
            has_second = loaded < taps
            if has_second:
                yield f"ldrsb r11, [r0, #{at + 1}]"
            target = "r12" if geometry.is_streamed else _WEIGHT_REGISTERS[word]
            yield f"pkhbt {target}, r10, r11, lsl #16" if has_second else f"mov {target}, r10"
            if geometry.is_streamed:
                yield f"str r12, [r3, #{4 * word}]"
            word += 1
    yield from _add("r0", geometry.window.kernel[0] * width)
    yield f"str r0, [sp, #{_TAPS}]"


def _row(geometry: Geometry) -> Iterator[str]:
    """Pointers: r0 plane, r1 out, r9 bias; r2 turns left."""
    turns, rest = divmod(geometry.target[1], geometry.step)
    moved = 4 * turns
    outputs = list(range(geometry.step))
    if turns <= (1 if geometry.is_small else _UNROLLED_TURNS):
        for _ in range(turns):
            yield from _outputs(geometry, outputs, moves=True)
    else:
        unrolled = 1 if geometry.is_small else 2 - turns % 2
        yield f"movw r2, #{turns // unrolled}"
        yield "6:"
        for _ in range(unrolled):
            yield from _outputs(geometry, outputs, moves=True)
        yield from ("subs r2, #1", "bne.w 6b")
    if rest:
        yield from _outputs(geometry, [0], moves=False)
    yield from _move("r0", 2 * geometry.pitch * geometry.window.stride[0] - moved)


def _move(register: str, n_bytes: int) -> Iterator[str]:
    if n_bytes >= 0:
        yield from _add(register, n_bytes)
    else:
        yield f"subw {register}, {register}, #{-n_bytes}"


def _outputs(geometry: Geometry, outputs: Sequence[int], *, moves: bool) -> Iterator[str]:
    """Neighbouring outputs of one channel; sums in r12 and lr."""
    sums, started = ("r12", "lr"), [False, False]
    word = moved = 0
    for row, first, taps in geometry.chunks:
        weights = _weight_pairs(taps, geometry.step)
        inputs = _INPUT_REGISTERS[-_n_inputs(taps, outputs[-1]) :]
        if geometry.is_streamed:
            registers = list(_STREAMED_REGISTERS[: len(weights)])
            yield from _loads(registers, "r3", 4 * word)
        else:
            registers = list(_WEIGHT_REGISTERS[word : word + len(weights)])
        offset = 2 * (row * geometry.pitch + first) - moved
        if moves and not moved:
            moved = 4
            yield from _loads_moving(inputs)
        else:
            yield from _loads(inputs, "r0", offset)
        for output in outputs:
            for operation, at, weight in _products(taps, output, weights):
                start = sums[output] if started[output] else "r9"
                yield f"{operation} {sums[output]}, {inputs[at]}, {registers[weight]}, {start}"
                started[output] = True
        word += len(weights)
    yield from _bytes(geometry, [sums[output] for output in outputs])


def _products(taps: int, output: int, weights: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """(operation, word of inputs, word of weights) whose sum is the output that starts at input ``output``."""
    tap = 0
    if output % 2:
        yield "smlatb", 0, 0
        tap = 1
    while tap < taps:
        at = (tap + output) // 2
        if tap + 1 < taps:
            yield "smlad", at, weights.index(tap)
        elif tap in weights:
            yield "smlabb", at, weights.index(tap)
        else:
            yield "smlabt", at, weights.index(tap - 1)
        tap += 2


def _loads(registers: Sequence[str], base: str, offset: int) -> Iterator[str]:
    at = 0
    while at < len(registers):
        here = offset + 4 * at
        if at + 1 < len(registers) and here <= _LARGEST_PAIR_OFFSET:
            yield f"ldrd {registers[at]}, {registers[at + 1]}, [{base}, #{here}]"
            at += 2
        else:
            yield f"ldr {registers[at]}, [{base}, #{here}]"
            at += 1


def _loads_moving(registers: Sequence[str]) -> Iterator[str]:
    """The first loads of a turn, after which the plane's pointer stands at the next turn's."""
    yield from _loads(registers[2:], "r0", 8)
    if len(registers) > 1:
        yield f"ldrd {registers[0]}, {registers[1]}, [r0], #4"
    else:
        yield f"ldr {registers[0]}, [r0], #4"


def _bytes(geometry: Geometry, sums: Sequence[str]) -> Iterator[str]:
    if geometry.is_wide:
        yield f"ldr r10, [sp, #{_LOW - 4}]"
        yield from (f"lsl {value}, {value}, r10" for value in sums)
    yield f"ldrd r10, r11, [sp, #{_MULTIPLIER}]"
    yield from (f"smmlar {value}, {value}, r10, r11" for value in sums)
    if geometry.is_wide:
        yield f"ldrd r10, r11, [sp, #{_LOW}]"
        for value in sums:
            yield from (f"cmp {value}, r10", "it lt", f"movlt {value}, r10")
            yield from (f"cmp {value}, r11", "it gt", f"movgt {value}, r11")
    else:
        yield from (f"ssat {value}, #8, {value}" for value in sums)
    for value in sums:
        yield from _stepped(f"strb {value}, [r1]", "r1", geometry.target[2])


def _exit(name: str) -> Iterator[str]:
    yield f"add sp, sp, #{_FRAME}"
    yield from ("pop {r4-r11, pc}", f".size {name}, . - {name}")
