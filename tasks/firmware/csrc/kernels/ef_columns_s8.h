/**
 * What a window sees at one output pixel, as a column for ef_filter_s8.h; padding becomes the input's zero point.
 *
 * layout    in [H][W][C]   column: see ef_filter_s8.h   line [4 * ceil(kH * kW * C / 4)], used where C is no multiple of
 *           four: the bytes are brought together there before they are spread
 * alignment in and line by words
 */
#ifndef EF_COLUMNS_S8_H
#define EF_COLUMNS_S8_H

#include "ef_filter_s8.h"

#define EF_COLUMN_STEP (2 * EF_QUAD) /* words from one step of a column to the next */

#if EF_HAS_DSP

/** Spread `n` words of bytes from `in` over the steps of a column; n > 0. */
void ef_spread_s8(const int8_t *in, int32_t n, uint32_t *column);

#else

static inline void ef_spread_s8(const int8_t *in, int32_t n, uint32_t *column)
{
    for (int32_t i = 0; i < n; ++i, in += 4, column += EF_COLUMN_STEP) {
        column[0] = ((uint32_t)in[0] & 0xFFFFu) | (uint32_t)in[2] << 16;
        column[EF_QUAD] = ((uint32_t)in[1] & 0xFFFFu) | (uint32_t)in[3] << 16;
    }
}

#endif

/** The zero point in `n` steps of a column. */
EF_INLINE void ef_spread_zero(int32_t zero_point, int32_t n, uint32_t *column)
{
    const uint32_t pair = ((uint32_t)zero_point & 0xFFFFu) | (uint32_t)zero_point << 16;
    for (int32_t i = 0; i < n; ++i, column += EF_COLUMN_STEP) {
        column[0] = pair;
        column[EF_QUAD] = pair;
    }
}

/** Whether `at` lies in an axis of `size` elements; constant for layers without padding. */
EF_INLINE bool ef_inside(bool is_padded, int32_t at, int32_t size)
{
    return !is_padded || (uint32_t)at < (uint32_t)size;
}

/** Channels fill whole words: every tap is spread from where it lies, a row of taps at once where it is inside. */
EF_INLINE void ef_column_words(const ef_window_t shape, bool is_padded, int32_t zero_point, const int8_t *in, int32_t y,
                               int32_t x, uint32_t *column)
{
    const int32_t words = shape.input_channels / 4;
    const int32_t reach = (shape.kernel_width - 1) * shape.dilation_x;
    const bool is_row = shape.dilation_x == 1 && ef_inside(is_padded, x, shape.input_width) &&
                        ef_inside(is_padded, x + reach, shape.input_width);
    for (int32_t ky = 0; ky < shape.kernel_height; ++ky, y += shape.dilation_y) {
        const bool has_row = ef_inside(is_padded, y, shape.input_height);
        if (has_row && is_row) {
            const int32_t start = (y * shape.input_width + x) * shape.input_channels;
            ef_spread_s8(in + start, shape.kernel_width * words, column);
            column += shape.kernel_width * words * EF_COLUMN_STEP;
            continue;
        }
        for (int32_t kx = 0; kx < shape.kernel_width; ++kx) {
            const int32_t tap = x + kx * shape.dilation_x;
            if (has_row && ef_inside(is_padded, tap, shape.input_width)) {
                ef_spread_s8(in + (y * shape.input_width + tap) * shape.input_channels, words, column);
            } else {
                ef_spread_zero(zero_point, words, column);
            }
            column += words * EF_COLUMN_STEP;
        }
    }
}

/** Copy `n` bytes, by words where the core may load words from anywhere. */
EF_INLINE void ef_copy(const int8_t *restrict in, int32_t n, int8_t *restrict out)
{
    int32_t i = 0;
#if defined(__ARM_FEATURE_UNALIGNED)
    for (; i + 4 <= n; i += 4) {
        __builtin_memcpy(out + i, in + i, 4);
    }
#endif
    for (; i < n; ++i) {
        out[i] = in[i];
    }
}

/** Any number of channels: first the bytes in a line, then spread. */
EF_INLINE void ef_column_bytes(const ef_window_t shape, bool is_padded, int32_t zero_point, const int8_t *in, int32_t y,
                               int32_t x, int8_t *line, uint32_t *column)
{
    const int32_t channels = shape.input_channels;
    const int32_t reach = (shape.kernel_width - 1) * shape.dilation_x;
    const bool is_row = shape.dilation_x == 1 && ef_inside(is_padded, x, shape.input_width) &&
                        ef_inside(is_padded, x + reach, shape.input_width);
    int8_t *next = line;
    for (int32_t ky = 0; ky < shape.kernel_height; ++ky, y += shape.dilation_y) {
        const bool has_row = ef_inside(is_padded, y, shape.input_height);
        if (has_row && is_row) {
            ef_copy(in + (y * shape.input_width + x) * channels, shape.kernel_width * channels, next);
            next += shape.kernel_width * channels;
            continue;
        }
        for (int32_t kx = 0; kx < shape.kernel_width; ++kx) {
            const int32_t tap = x + kx * shape.dilation_x;
            if (has_row && ef_inside(is_padded, tap, shape.input_width)) {
                ef_copy(in + (y * shape.input_width + tap) * channels, channels, next);
            } else {
                for (int32_t i = 0; i < channels; ++i) {
                    next[i] = (int8_t)zero_point;
                }
            }
            next += channels;
        }
    }
    ef_spread_s8(line, (shape.kernel_height * shape.kernel_width * channels + 3) / 4, column);
}

/** The column of output pixel (oy, ox). */
EF_INLINE void ef_column(const ef_window_t shape, int32_t zero_point, const int8_t *in, int32_t oy, int32_t ox,
                         int8_t *line, uint32_t *column)
{
    const int32_t y = oy * shape.stride_y - shape.pad_top, x = ox * shape.stride_x - shape.pad_left;
    const int32_t end_y = (shape.output_height - 1) * shape.stride_y - shape.pad_top;
    const int32_t end_x = (shape.output_width - 1) * shape.stride_x - shape.pad_left;
    const bool is_padded = shape.pad_top > 0 || shape.pad_left > 0 ||
                           end_y + (shape.kernel_height - 1) * shape.dilation_y >= shape.input_height ||
                           end_x + (shape.kernel_width - 1) * shape.dilation_x >= shape.input_width;
    if (shape.input_channels % 4 == 0) {
        ef_column_words(shape, is_padded, zero_point, in, y, x, column);
    } else {
        ef_column_bytes(shape, is_padded, zero_point, in, y, x, line, column);
    }
}

#endif
