/**
 * Largest byte of each window; padding never wins, scale and zero point pass through.
 *
 * layout    in [H][W][C]   out [H'][W'][C]
 * scratch   none
 * aliasing  out may overlap in as far as the planner computes it (firmware/kernels.py): a channel of a pixel is written
 *           when all that it sees has been read
 * source    quant/reference.py:max_pool
 */
#ifndef EF_MAXPOOL_S8_H
#define EF_MAXPOOL_S8_H

#include "ef_common.h"

EF_INLINE void ef_maxpool_s8(const ef_window_t shape, const ef_requant_t quant, const int8_t *in,
                             int8_t *out)
{
    for (int32_t oy = 0; oy < shape.output_height; ++oy) {
        const int32_t start_y = oy * shape.stride_y - shape.pad_top;
        const ef_span_t rows = ef_span(start_y, shape.dilation_y, shape.kernel_height, shape.input_height);
        for (int32_t ox = 0; ox < shape.output_width; ++ox) {
            const int32_t start_x = ox * shape.stride_x - shape.pad_left;
            const ef_span_t columns = ef_span(start_x, shape.dilation_x, shape.kernel_width, shape.input_width);
            for (int32_t channel = 0; channel < shape.output_channels; ++channel) {
                int32_t largest = INT8_MIN;
                for (int32_t ky = rows.first; ky < rows.end; ++ky) {
                    const int32_t y = start_y + ky * shape.dilation_y;
                    for (int32_t kx = columns.first; kx < columns.end; ++kx) {
                        const int32_t x = start_x + kx * shape.dilation_x;
                        const int32_t value = in[(y * shape.input_width + x) * shape.input_channels + channel];
                        largest = value > largest ? value : largest;
                    }
                }
                out[channel] = ef_clamp(largest, quant);
            }
            out += shape.output_channels;
        }
    }
}

#endif
