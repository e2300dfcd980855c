/**
 * Depthwise convolution: every output channel sees the input channel of the same number; one scale per channel. For cores
 * with the DSP extension the compiler writes a function for each geometry (firmware/depthwise.py) with this contract.
 *
 * layout    in [H][W][C]   weights [C][kH][kW]   requant [C] {bias, multiplier}   out [H'][W'][C]
 * range     the input's zero point is folded into the bias; accumulators fit 32 bits at the end, proven by the compiler
 *           for the weights at hand
 * scratch   the plane: one channel with its padding; see firmware/depthwise.py for its size
 * aliasing  out may start where in starts: a channel is copied before its outputs are written over it
 * alignment plane and requant by words
 * source    quant/reference.py:conv2d and requantise
 */
#ifndef EF_DWCONV2D_S8_H
#define EF_DWCONV2D_S8_H

#include "ef_common.h"

/** Assembly that the compiler writes knows the order of these fields. */
typedef struct {
    const int8_t *weights;
    const int32_t *requant;
    int32_t n_channels;
    int32_t input_zero_point;
    int32_t output_zero_point;
    int32_t left_shift;
    int32_t low;
    int32_t high;
} ef_depthwise_t;

/** One output of the channel in `plane`, [H][W]. */
EF_INLINE int32_t ef_dwconv2d_sum(const ef_window_t shape, int32_t zero_point, const int8_t *weights, int32_t bias,
                                  const int8_t *plane, int32_t start_y, int32_t start_x)
{
    uint32_t sum = (uint32_t)bias;
    for (int32_t ky = 0; ky < shape.kernel_height; ++ky) {
        const int32_t y = start_y + ky * shape.dilation_y;
        for (int32_t kx = 0; kx < shape.kernel_width; ++kx) {
            const int32_t x = start_x + kx * shape.dilation_x;
            const bool is_inside = (uint32_t)y < (uint32_t)shape.input_height && (uint32_t)x < (uint32_t)shape.input_width;
            const int32_t value = is_inside ? plane[y * shape.input_width + x] : zero_point;
            sum += (uint32_t)(value * weights[ky * shape.kernel_width + kx]);
        }
    }
    return (int32_t)sum;
}

EF_INLINE void ef_dwconv2d_s8(const ef_window_t shape, const ef_depthwise_t *layer, const int8_t *in, uint32_t *scratch,
                              int8_t *out)
{
    const ef_requant_t quant = {0, layer->output_zero_point, layer->low, layer->high, layer->left_shift};
    const int32_t n_taps = shape.kernel_height * shape.kernel_width;
    const int32_t channels = shape.input_channels;
    int8_t *plane = (int8_t *)scratch;
    for (int32_t channel = 0; channel < channels; ++channel) {
        const int32_t *requant = layer->requant + 2 * channel;
        for (int32_t i = 0; i < shape.input_height * shape.input_width; ++i) {
            plane[i] = in[i * channels + channel];
        }
        int32_t i = channel;
        for (int32_t oy = 0; oy < shape.output_height; ++oy) {
            for (int32_t ox = 0; ox < shape.output_width; ++ox, i += channels) {
                const int32_t sum = ef_dwconv2d_sum(shape, layer->input_zero_point, layer->weights + channel * n_taps,
                                                    requant[0], plane, oy * shape.stride_y - shape.pad_top,
                                                    ox * shape.stride_x - shape.pad_left);
                out[i] = ef_requantise(sum, requant[1], quant);
            }
        }
    }
}

#endif
