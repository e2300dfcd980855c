/**
 * What all kernels share. Every kernel is an inline function whose shape is a compile-time constant at its only call, so
 * that the compiler makes one specialised function a layer; everything that depends on trained values comes through
 * pointers, so that two networks of one shape give code of one size.
 *
 * rounding  half up, rounded once: clamp(zero_point + (accumulator * 2^left_shift * multiplier + 2^31 >> 32)), where >>
 *           rounds down (arithmetic shift); see units-and-signs.md. Lowering proved that no step leaves its type.
 * signs     zero points in the positive sense, -128..127; kernels subtract the input's and add the output's
 * source    quant/reference.py is the definition of every operator
 */
#ifndef EF_COMMON_H
#define EF_COMMON_H

#include <stdbool.h>
#include <stdint.h>

#define EF_INLINE static inline __attribute__((always_inline))

/** Kernels in assembly exist for Thumb-2 with the DSP extension: Cortex-M4, M7, most M33. EF_PORTABLE leaves them out. */
#if defined(__ARM_FEATURE_DSP) && !defined(EF_PORTABLE)
#define EF_HAS_DSP 1
#else
#define EF_HAS_DSP 0
#endif

/** How accumulators become bytes: the part that is the same for all channels of a layer. */
typedef struct {
    int32_t input_zero_point;
    int32_t output_zero_point;
    int32_t low;
    int32_t high;
    int32_t left_shift;
} ef_requant_t;

/** A sliding window over an image in [H][W][C]; sizes in elements. */
typedef struct {
    int32_t input_height, input_width, input_channels;
    int32_t output_height, output_width, output_channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t dilation_y, dilation_x;
    int32_t pad_top, pad_left;
    int32_t groups;
} ef_window_t;

/** Taps first .. end-1 of a window lie inside the input along one axis. */
typedef struct {
    int32_t first;
    int32_t end;
} ef_span_t;

EF_INLINE int8_t ef_clamp(int32_t value, const ef_requant_t quant)
{
    value = value < quant.low ? quant.low : value;
    return (int8_t)(value > quant.high ? quant.high : value);
}

EF_INLINE int8_t ef_requantise(int32_t accumulator, int32_t multiplier, const ef_requant_t quant)
{
    const int32_t shifted = accumulator * (int32_t)(1 << quant.left_shift);
    const int64_t scaled = (int64_t)shifted * multiplier + (INT64_C(1) << 31);
    return ef_clamp(quant.output_zero_point + (int32_t)(scaled >> 32), quant);
}

/** Taps inside an input of `size` elements for a window whose tap 0 lies at `start` (negative in the padding). */
EF_INLINE ef_span_t ef_span(int32_t start, int32_t dilation, int32_t kernel, int32_t size)
{
    const int32_t skipped = start < 0 ? (dilation - 1 - start) / dilation : 0;
    const int32_t reach = start < size ? (size - start + dilation - 1) / dilation : 0;
    const ef_span_t span = {skipped, reach < kernel ? reach : kernel};
    return span;
}

#endif
