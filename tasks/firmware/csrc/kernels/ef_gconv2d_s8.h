/**
 * Convolution in groups: any window, stride, dilation and number of groups; one scale per output channel.
 *
 * layout    in [H][W][C]   weights [O][kH][kW][C / groups]   bias, multipliers [O]   out [H'][W'][O]
 * range     accumulators fit 32 bits, proven by the compiler for the weights at hand
 * scratch   none
 * aliasing  out must not overlap in
 * source    quant/reference.py:conv2d and requantise
 */
#ifndef EF_GCONV2D_S8_H
#define EF_GCONV2D_S8_H

#include "ef_common.h"

/** What the window sees at one output pixel: the input of its group, where tap (0, 0) lies, and the taps inside. */
typedef struct {
    const int8_t *in;
    int32_t start_y, start_x;
    ef_span_t rows, columns;
} ef_gconv2d_view_t;

/** Four neighbouring output channels of one pixel: they share the loads of the input. */
EF_INLINE void ef_gconv2d_four_s8(const ef_window_t shape, const ef_requant_t quant, const ef_gconv2d_view_t view,
                                 const int8_t *restrict weights, const int32_t *restrict bias,
                                 const int32_t *restrict multipliers, int8_t *restrict out)
{
    const int32_t depth = shape.input_channels / shape.groups;
    const int32_t filter = shape.kernel_height * shape.kernel_width * depth;
    int32_t sum0 = bias[0], sum1 = bias[1], sum2 = bias[2], sum3 = bias[3];
    for (int32_t ky = view.rows.first; ky < view.rows.end; ++ky) {
        const int32_t y = view.start_y + ky * shape.dilation_y;
        for (int32_t kx = view.columns.first; kx < view.columns.end; ++kx) {
            const int32_t x = view.start_x + kx * shape.dilation_x;
            const int8_t *pixel = view.in + (y * shape.input_width + x) * shape.input_channels;
            const int8_t *taps = weights + (ky * shape.kernel_width + kx) * depth;
            for (int32_t i = 0; i < depth; ++i) {
                const int32_t value = pixel[i] - quant.input_zero_point;
                sum0 += value * taps[i];
                sum1 += value * taps[i + filter];
                sum2 += value * taps[i + 2 * filter];
                sum3 += value * taps[i + 3 * filter];
            }
        }
    }
    out[0] = ef_requantise(sum0, multipliers[0], quant);
    out[1] = ef_requantise(sum1, multipliers[1], quant);
    out[2] = ef_requantise(sum2, multipliers[2], quant);
    out[3] = ef_requantise(sum3, multipliers[3], quant);
}

/** One output channel of one pixel: what is left when their number is no multiple of four. */
EF_INLINE int8_t ef_gconv2d_one_s8(const ef_window_t shape, const ef_requant_t quant, const ef_gconv2d_view_t view,
                                  const int8_t *restrict weights, int32_t bias, int32_t multiplier)
{
    const int32_t depth = shape.input_channels / shape.groups;
    int32_t sum = bias;
    for (int32_t ky = view.rows.first; ky < view.rows.end; ++ky) {
        const int32_t y = view.start_y + ky * shape.dilation_y;
        for (int32_t kx = view.columns.first; kx < view.columns.end; ++kx) {
            const int32_t x = view.start_x + kx * shape.dilation_x;
            const int8_t *pixel = view.in + (y * shape.input_width + x) * shape.input_channels;
            const int8_t *taps = weights + (ky * shape.kernel_width + kx) * depth;
            for (int32_t i = 0; i < depth; ++i) {
                sum += (pixel[i] - quant.input_zero_point) * taps[i];
            }
        }
    }
    return ef_requantise(sum, multiplier, quant);
}

EF_INLINE void ef_gconv2d_s8(const ef_window_t shape, const ef_requant_t quant, const int8_t *restrict in,
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
                const ef_gconv2d_view_t view = {in + group * depth, start_y, start_x, rows, columns};
                const int32_t end = (group + 1) * n_outputs;
                int32_t o = group * n_outputs;
                for (; o + 4 <= end; o += 4) {
                    ef_gconv2d_four_s8(shape, quant, view, weights + o * filter, bias + o, multipliers + o, out + o);
                }
                if (n_outputs % 4 != 0) {
                    for (; o < end; ++o) {
                        out[o] = ef_gconv2d_one_s8(shape, quant, view, weights + o * filter, bias[o], multipliers[o]);
                    }
                }
            }
            out += shape.output_channels;
        }
    }
}

#endif
