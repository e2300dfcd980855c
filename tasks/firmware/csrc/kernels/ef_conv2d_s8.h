/**
 * Convolution with any window, stride and dilation; one scale per output channel. A 1-D convolution has height 1.
 *
 * layout    in [H][W][C]   filter: see ef_filter_s8.h, its inputs in the order [kH][kW][C]   out [H'][W'][O]
 * range     accumulators fit 32 bits, proven by the compiler for the weights at hand
 * scratch   columns: 8 * ceil(kH * kW * C / 4) words, then the lines of ef_columns_s8.h
 * aliasing  out may overlap in as far as the planner computes it (firmware/kernels.py): four pixels are written when all
 *           that they see has been read. Points with more outputs than inputs go from the last pixel to the first, then out
 *           may start anywhere behind the start of in
 * alignment in and columns by words
 * source    quant/reference.py:conv2d and requantise
 */
#ifndef EF_CONV2D_S8_H
#define EF_CONV2D_S8_H

#include "ef_columns_s8.h"

/** `is_wide`: the layer has a left shift, or bounds that cut into the range of a byte. */
EF_INLINE void ef_conv2d_quad(const ef_window_t shape, bool is_wide, const ef_filter_t *filter, const uint32_t *columns,
                              int8_t *out)
{
    const int32_t n_taps = shape.kernel_height * shape.kernel_width * shape.input_channels;
    const bool has_tail = n_taps % 4 == 1 || n_taps % 4 == 2;
    if (shape.output_channels > 1) {
        if (!has_tail && !is_wide) {
            ef_quad_s8(filter, columns, out);
        } else if (!has_tail) {
            ef_quad_wide_s8(filter, columns, out);
        } else if (!is_wide) {
            ef_quad_tail_s8(filter, columns, out);
        } else {
            ef_quad_tail_wide_s8(filter, columns, out);
        }
    }
    if (shape.output_channels % 2 != 0) {
        ef_quad_last_s8(filter, columns, out);
    }
}

EF_INLINE void ef_conv2d_pixel(const ef_window_t shape, const ef_filter_t *filter, const uint32_t *column, int8_t *out)
{
    if (shape.output_channels > 1) {
        ef_pixel_s8(filter, column, out);
    }
    if (shape.output_channels % 2 != 0) {
        ef_pixel_last_s8(filter, column, out);
    }
}

/** Columns of the four pixels from number `at` on, which are read in order; `*oy` and `*ox` move on. */
EF_INLINE void ef_conv2d_columns(const ef_window_t shape, int32_t zero_point, const int8_t *in, int32_t at, int32_t *oy,
                                 int32_t *ox, int8_t *lines, uint32_t *columns)
{
    const int32_t n = shape.output_height * shape.output_width;
    ef_starts_t starts;
    for (int32_t i = 0; i < EF_QUAD; ++i) {
        starts.y[i] = *oy * shape.stride_y - shape.pad_top;
        starts.x[i] = *ox * shape.stride_x - shape.pad_left;
        if (at + i + 1 < n && ++*ox == shape.output_width) { /* the last pixel stands for those that are missing */
            *ox = 0;
            ++*oy;
        }
    }
    ef_columns(shape, zero_point, in, &starts, lines, columns);
}

/** The same where every pixel sees itself alone. */
EF_INLINE void ef_conv2d_points(const ef_window_t shape, const int8_t *in, int32_t at, uint32_t *columns)
{
    const int32_t last = shape.output_height * shape.output_width - 1;
    const int8_t *from[EF_QUAD];
    for (int32_t i = 0; i < EF_QUAD; ++i) {
        const int32_t pixel = last % EF_QUAD != EF_QUAD - 1 && at + i > last ? last : at + i;
        from[i] = in + pixel * shape.input_channels;
    }
    ef_spread_s8(from, shape.input_channels / 4, columns);
}

/** The outputs of `width` pixels, at most four. */
EF_INLINE void ef_conv2d_outputs(const ef_window_t shape, bool is_wide, const ef_filter_t *filter, int32_t width,
                                 const uint32_t *columns, int8_t *out)
{
    if (width == EF_QUAD) {
        ef_conv2d_quad(shape, is_wide, filter, columns, out);
        return;
    }
    for (int32_t i = 0; i < width; ++i) {
        ef_conv2d_pixel(shape, filter, columns + i, out + i * shape.output_channels);
    }
}

EF_INLINE void ef_conv2d_s8(const ef_window_t shape, bool is_wide, const ef_filter_t *filter, const int8_t *in,
                            uint32_t *columns, int8_t *out)
{
    const int32_t n_steps = (shape.kernel_height * shape.kernel_width * shape.input_channels + 3) / 4;
    const int32_t n = shape.output_height * shape.output_width;
    const bool are_alone = shape.kernel_height == 1 && shape.kernel_width == 1 && !ef_is_padded(shape) &&
                           shape.stride_y == 1 && shape.stride_x == 1;
    const bool are_points = are_alone && shape.input_channels % 4 == 0;
    const bool is_backward = are_alone && shape.output_channels > shape.input_channels;
    const int32_t first = is_backward ? (n - 1) / EF_QUAD * EF_QUAD : 0, step = is_backward ? -EF_QUAD : EF_QUAD;
    int8_t *lines = (int8_t *)(columns + n_steps * 2 * EF_QUAD);
    ef_columns_begin(shape, filter->input_zero_point, lines);
    int32_t oy = 0, ox = 0;
    for (int32_t at = first; at >= 0 && at < n; at += step) {
        if (are_points) {
            ef_conv2d_points(shape, in, at, columns);
        } else {
            if (is_backward) {
                oy = at / shape.output_width;
                ox = at % shape.output_width;
            }
            ef_conv2d_columns(shape, filter->input_zero_point, in, at, &oy, &ox, lines, columns);
        }
        const int32_t width = n % EF_QUAD == 0 || n - at >= EF_QUAD ? EF_QUAD : n % EF_QUAD;
        ef_conv2d_outputs(shape, is_wide, filter, width, columns, out + at * shape.output_channels);
    }
}

#endif
