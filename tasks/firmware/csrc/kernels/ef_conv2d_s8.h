/**
 * Convolution with any window, stride, dilation and number of groups; one scale per output channel.
 *
 * layout    in [H][W][C]   weights [O][kH][kW][C / groups]   bias, multipliers [O]   out [H'][W'][O]
 * range     accumulators fit 32 bits, proven by the compiler for the weights at hand
 * scratch   none
 * aliasing  out must not overlap in
 * source    quant/reference.py:conv2d and requantise
 */
#ifndef EF_CONV2D_S8_H
#define EF_CONV2D_S8_H

#include "ef_common.h"

/** Accumulate `n_outputs` (1 or 4) neighbouring output channels of one pixel and group, sharing the input's loads. */
EF_INLINE void ef_conv2d_block_s8(const ef_window_t shape, const ef_requant_t quant, const int8_t *restrict in,
                                  const int8_t *restrict weights, const int32_t *restrict bias,
                                  const int32_t *restrict multipliers, int8_t *restrict out, int32_t start_y,
                                  int32_t start_x, const ef_span_t rows, const ef_span_t columns, int32_t n_outputs)
{
    const int32_t depth = shape.input_channels / shape.groups;
    const int32_t filter = shape.kernel_height * shape.kernel_width * depth;
    int32_t sums[4];
    for (int32_t j = 0; j < n_outputs; ++j) {
        sums[j] = bias[j];
    }
    for (int32_t ky = rows.first; ky < rows.end; ++ky) {
        const int32_t y = start_y + ky * shape.dilation_y;
        for (int32_t kx = columns.first; kx < columns.end; ++kx) {
            const int32_t x = start_x + kx * shape.dilation_x;
            const int8_t *pixel = in + (y * shape.input_width + x) * shape.input_channels;
            const int8_t *taps = weights + (ky * shape.kernel_width + kx) * depth;
            for (int32_t i = 0; i < depth; ++i) {
                const int32_t value = pixel[i] - quant.input_zero_point;
#pragma clang loop unroll(full)
                for (int32_t j = 0; j < n_outputs; ++j) {
                    sums[j] += value * taps[j * filter + i];
                }
            }
        }
    }
    for (int32_t j = 0; j < n_outputs; ++j) {
        out[j] = ef_requantise(sums[j], multipliers[j], quant);
    }
}

EF_INLINE void ef_conv2d_s8(const ef_window_t shape, const ef_requant_t quant, const int8_t *restrict in,
                            const int8_t *restrict weights, const int32_t *restrict bias,
                            const int32_t *restrict multipliers, int8_t *restrict out)
{
    const int32_t depth = shape.input_channels / shape.groups;
    const int32_t n_outputs = shape.output_channels / shape.groups;
    const int32_t filter = shape.kernel_height * shape.kernel_width * depth;
    for (int32_t oy = 0; oy < shape.output_height; ++oy) {
        const int32_t start_y = oy * shape.stride_y - shape.pad_top;
        const ef_span_t rows = ef_span(start_y, shape.dilation_y, shape.kernel_height, shape.input_height);
        for (int32_t ox = 0; ox < shape.output_width; ++ox) {
            const int32_t start_x = ox * shape.stride_x - shape.pad_left;
            const ef_span_t columns = ef_span(start_x, shape.dilation_x, shape.kernel_width, shape.input_width);
            for (int32_t group = 0; group < shape.groups; ++group) {
                const int8_t *plane = in + group * depth;
                int32_t o = group * n_outputs;
                const int32_t end = o + n_outputs;
                for (; o + 4 <= end; o += 4) {
                    ef_conv2d_block_s8(shape, quant, plane, weights + o * filter, bias + o, multipliers + o, out + o,
                                       start_y, start_x, rows, columns, 4);
                }
                if (n_outputs % 4 != 0) {
                    for (; o < end; ++o) {
                        ef_conv2d_block_s8(shape, quant, plane, weights + o * filter, bias + o, multipliers + o,
                                           out + o, start_y, start_x, rows, columns, 1);
                    }
                }
            }
            out += shape.output_channels;
        }
    }
}

#endif
