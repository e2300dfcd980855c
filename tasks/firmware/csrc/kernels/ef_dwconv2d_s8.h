/**
 * Depthwise convolution: every output channel sees one input channel; one scale per output channel.
 *
 * layout    in [H][W][C]   weights [O][kH][kW]   bias, multipliers [O]   out [H'][W'][O]; O is a multiple of C, and
 *           output channel o reads input channel o / (O / C)
 * range     accumulators fit 32 bits, proven by the compiler for the weights at hand
 * scratch   none
 * aliasing  out must not overlap in
 * source    quant/reference.py:conv2d and requantise
 */
#ifndef EF_DWCONV2D_S8_H
#define EF_DWCONV2D_S8_H

#include "ef_common.h"

EF_INLINE void ef_dwconv2d_s8(const ef_window_t shape, const ef_requant_t quant, const int8_t *restrict in,
                              const int8_t *restrict weights, const int32_t *restrict bias,
                              const int32_t *restrict multipliers, int8_t *restrict out)
{
    const int32_t per_channel = shape.output_channels / shape.input_channels;
    const int32_t filter = shape.kernel_height * shape.kernel_width;
    for (int32_t oy = 0; oy < shape.output_height; ++oy) {
        const int32_t start_y = oy * shape.stride_y - shape.pad_top;
        const ef_span_t rows = ef_span(start_y, shape.dilation_y, shape.kernel_height, shape.input_height);
        for (int32_t ox = 0; ox < shape.output_width; ++ox) {
            const int32_t start_x = ox * shape.stride_x - shape.pad_left;
            const ef_span_t columns = ef_span(start_x, shape.dilation_x, shape.kernel_width, shape.input_width);
            for (int32_t o = 0; o < shape.output_channels; ++o) {
                int32_t sum = bias[o];
                for (int32_t ky = rows.first; ky < rows.end; ++ky) {
                    const int32_t y = start_y + ky * shape.dilation_y;
                    for (int32_t kx = columns.first; kx < columns.end; ++kx) {
                        const int32_t x = start_x + kx * shape.dilation_x;
                        const int32_t value = in[(y * shape.input_width + x) * shape.input_channels + o / per_channel];
                        sum += (value - quant.input_zero_point) * weights[o * filter + ky * shape.kernel_width + kx];
                    }
                }
                out[o] = ef_requantise(sum, multipliers[o], quant);
            }
            out += shape.output_channels;
        }
    }
}

#endif
