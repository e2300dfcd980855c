/**
 * Mean of each window: the multipliers hold the division.
 *
 * layout    in [H][W][C]   out [H'][W'][C]   multipliers [1], or [kH * kW] with `by_count`: then element n - 1 belongs
 *           to a window that has n elements inside the input
 * range     kH * kW * 255 * 2^left_shift fits 31 bits, proven by the compiler
 * scratch   none
 * aliasing  out may overlap in as far as the planner computes it (firmware/kernels.py): a channel of a pixel is written
 *           when all that it sees has been read
 * source    quant/reference.py:average_pool
 */
#ifndef EF_AVGPOOL_S8_H
#define EF_AVGPOOL_S8_H

#include "ef_common.h"

EF_INLINE void ef_avgpool_s8(const ef_window_t shape, const ef_requant_t quant, bool by_count,
                             const int8_t *in, const int32_t *multipliers, int8_t *out)
{
    for (int32_t oy = 0; oy < shape.output_height; ++oy) {
        const int32_t start_y = oy * shape.stride_y - shape.pad_top;
        const ef_span_t rows = ef_span(start_y, shape.dilation_y, shape.kernel_height, shape.input_height);
        for (int32_t ox = 0; ox < shape.output_width; ++ox) {
            const int32_t start_x = ox * shape.stride_x - shape.pad_left;
            const ef_span_t columns = ef_span(start_x, shape.dilation_x, shape.kernel_width, shape.input_width);
            const int32_t n_inside = (rows.end - rows.first) * (columns.end - columns.first);
            const int32_t multiplier = multipliers[by_count ? n_inside - 1 : 0];
            for (int32_t channel = 0; channel < shape.output_channels; ++channel) {
                int32_t sum = 0;
                for (int32_t ky = rows.first; ky < rows.end; ++ky) {
                    const int32_t y = start_y + ky * shape.dilation_y;
                    for (int32_t kx = columns.first; kx < columns.end; ++kx) {
                        const int32_t x = start_x + kx * shape.dilation_x;
                        sum += in[(y * shape.input_width + x) * shape.input_channels + channel] - quant.input_zero_point;
                    }
                }
                out[channel] = ef_requantise(sum, multiplier, quant);
            }
            out += shape.output_channels;
        }
    }
}

#endif
