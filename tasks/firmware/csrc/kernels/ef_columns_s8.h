/**
 * What a window sees at four output pixels, as columns for ef_filter_s8.h. A tap in the padding is read from a line that
 * holds the input's zero point.
 *
 * layout    in [H][W][C]   columns: see ef_filter_s8.h
 *           lines, words behind the columns: where C is a multiple of four, one of kW * C bytes that padding is read from
 *           (only layers with padding have it); elsewhere four of ceil(kH * kW * C / 4) words, in which the bytes of a
 *           pixel are brought together before they are spread
 * alignment in, columns and lines by words
 */
#ifndef EF_COLUMNS_S8_H
#define EF_COLUMNS_S8_H

#include "ef_filter_s8.h"

#define EF_SMALL_ROW 24 /* bytes up to which copying a row is written out */

#if EF_HAS_DSP

/** Spread `n` words of each of four pixels over as many steps of the columns; n > 0. */
void ef_spread_s8(const int8_t *const in[EF_QUAD], int32_t n, uint32_t *columns);

/** Bring `n_rows` rows of `n` bytes, `pitch` bytes apart, together in `out`; both above 0. */
void ef_gather_s8(const int8_t *in, int32_t n, int32_t n_rows, int32_t pitch, int8_t *out);

#else

static inline void ef_spread_s8(const int8_t *const in[EF_QUAD], int32_t n, uint32_t *columns)
{
    for (int32_t pixel = 0; pixel < EF_QUAD; ++pixel) {
        const int8_t *x = in[pixel];
        for (int32_t i = 0; i < n; ++i, x += 4) {
            uint32_t *step = columns + i * 2 * EF_QUAD + pixel;
            step[0] = ((uint32_t)x[0] & 0xFFFFu) | (uint32_t)x[2] << 16;
            step[EF_QUAD] = ((uint32_t)x[1] & 0xFFFFu) | (uint32_t)x[3] << 16;
        }
    }
}

static inline void ef_gather_s8(const int8_t *in, int32_t n, int32_t n_rows, int32_t pitch, int8_t *out)
{
    for (int32_t row = 0; row < n_rows; ++row, in += pitch) {
        for (int32_t i = 0; i < n; ++i) {
            *out++ = in[i];
        }
    }
}

#endif

/** Where the windows of four pixels start; negative in the padding. */
typedef struct {
    int32_t y[EF_QUAD];
    int32_t x[EF_QUAD];
} ef_starts_t;

/** Whether any window of the layer reaches into padding: a constant where the shape is one. */
EF_INLINE bool ef_is_padded(const ef_window_t shape)
{
    const int32_t end_y = (shape.output_height - 1) * shape.stride_y - shape.pad_top;
    const int32_t end_x = (shape.output_width - 1) * shape.stride_x - shape.pad_left;
    return shape.pad_top > 0 || shape.pad_left > 0 ||
           end_y + (shape.kernel_height - 1) * shape.dilation_y >= shape.input_height ||
           end_x + (shape.kernel_width - 1) * shape.dilation_x >= shape.input_width;
}

/** Words of the columns and the lines behind them. */
EF_INLINE int32_t ef_columns_words_of(const ef_window_t shape)
{
    const int32_t n_steps = (shape.kernel_height * shape.kernel_width * shape.input_channels + 3) / 4;
    if (shape.input_channels % 4 != 0) {
        return n_steps * 3 * EF_QUAD;
    }
    return n_steps * 2 * EF_QUAD + (ef_is_padded(shape) ? shape.kernel_width * shape.input_channels / 4 : 0);
}

EF_INLINE bool ef_inside(int32_t at, int32_t size)
{
    return (uint32_t)at < (uint32_t)size;
}

/** Whether the taps of a row lie side by side inside the input. */
EF_INLINE bool ef_is_row(const ef_window_t shape, int32_t x)
{
    return shape.dilation_x == 1 && x >= 0 && x + shape.kernel_width <= shape.input_width;
}

/** One tap (ky, kx), or from kx on a row of taps, of four pixels: `n` words each. */
EF_INLINE void ef_columns_taps(const ef_window_t shape, const int8_t *in, const ef_starts_t *starts, int32_t ky,
                               int32_t kx, int32_t n, const int8_t *zeros, uint32_t *columns)
{
    const int8_t *from[EF_QUAD];
    for (int32_t i = 0; i < EF_QUAD; ++i) {
        const int32_t y = starts->y[i] + ky * shape.dilation_y, x = starts->x[i] + kx * shape.dilation_x;
        const bool is_inside = !ef_is_padded(shape) || (ef_inside(y, shape.input_height) && ef_inside(x, shape.input_width));
        from[i] = is_inside ? in + (y * shape.input_width + x) * shape.input_channels : zeros;
    }
    ef_spread_s8(from, n, columns);
}

/** Channels fill whole words: taps are spread from where they lie. */
EF_INLINE void ef_columns_words(const ef_window_t shape, const int8_t *in, const ef_starts_t *starts,
                                const int8_t *zeros, uint32_t *columns)
{
    const int32_t words = shape.input_channels / 4;
    bool are_rows = shape.dilation_x == 1;
    if (ef_is_padded(shape) && are_rows) {
        are_rows = ef_is_row(shape, starts->x[0]) && ef_is_row(shape, starts->x[1]) &&
                   ef_is_row(shape, starts->x[2]) && ef_is_row(shape, starts->x[3]);
    }
    const int32_t taps = are_rows ? shape.kernel_width : 1;
    for (int32_t ky = 0; ky < shape.kernel_height; ++ky) {
        for (int32_t kx = 0; kx < shape.kernel_width; kx += taps) {
            ef_columns_taps(shape, in, starts, ky, kx, taps * words, zeros, columns);
            columns += taps * words * 2 * EF_QUAD;
        }
    }
}

/** Copy `n` bytes, a small constant, without a loop where words may lie anywhere. */
EF_INLINE void ef_copy(const int8_t *in, int32_t n, int8_t *out)
{
#if defined(__arm__) && !defined(__ARM_FEATURE_UNALIGNED)
    for (int32_t i = 0; i < n; ++i) {
        out[i] = in[i];
    }
#else
#pragma GCC unroll 8
    for (int32_t i = 0; i < n / 4 * 4; i += 4) {
        __builtin_memcpy(out + i, in + i, 4);
    }
    if (n & 2) {
        __builtin_memcpy(out + n / 4 * 4, in + n / 4 * 4, 2);
    }
    if (n & 1) {
        out[n - 1] = in[n - 1];
    }
#endif
}

EF_INLINE int8_t *ef_fill(int8_t value, int32_t n, int8_t *out)
{
    for (int32_t i = 0; i < n; ++i) {
        *out++ = value;
    }
    return out;
}

/** A row of taps that reaches beyond the input, or has gaps. */
EF_INLINE int8_t *ef_line_row(const ef_window_t shape, int32_t zero_point, const int8_t *row, int32_t x, int8_t *line)
{
    const int32_t channels = shape.input_channels;
    if (shape.dilation_x == 1) {
        const int32_t end = x + shape.kernel_width;
        const int32_t before = x < 0 ? -x : 0, after = end > shape.input_width ? end - shape.input_width : 0;
        const int32_t inside = shape.kernel_width - before - after;
        if (before + after >= shape.kernel_width) {
            return ef_fill((int8_t)zero_point, shape.kernel_width * channels, line);
        }
        line = ef_fill((int8_t)zero_point, before * channels, line);
        ef_gather_s8(row + (x + before) * channels, inside * channels, 1, 0, line);
        return ef_fill((int8_t)zero_point, after * channels, line + inside * channels);
    }
    for (int32_t kx = 0; kx < shape.kernel_width; ++kx, line += channels) {
        const int32_t at = x + kx * shape.dilation_x;
        if (ef_inside(at, shape.input_width)) {
            ef_gather_s8(row + at * channels, channels, 1, 0, line);
        } else {
            (void)ef_fill((int8_t)zero_point, channels, line);
        }
    }
    return line;
}

/** The bytes that the window at (y, x) sees, side by side in `line`. */
EF_INLINE void ef_line(const ef_window_t shape, int32_t zero_point, const int8_t *in, int32_t y, int32_t x, int8_t *line)
{
    const int32_t channels = shape.input_channels, pitch = shape.input_width * channels;
    const bool are_rows_inside = y >= 0 && y + (shape.kernel_height - 1) * shape.dilation_y < shape.input_height;
    if (shape.dilation_x == 1 && (!ef_is_padded(shape) || (are_rows_inside && ef_is_row(shape, x)))) {
        const int32_t n = shape.kernel_width * channels;
        const int8_t *from = in + y * pitch + x * channels;
        if (n > EF_SMALL_ROW) {
            ef_gather_s8(from, n, shape.kernel_height, pitch * shape.dilation_y, line);
            return;
        }
        for (int32_t ky = 0; ky < shape.kernel_height; ++ky, line += n, from += pitch * shape.dilation_y) {
            ef_copy(from, n, line);
        }
        return;
    }
    for (int32_t ky = 0; ky < shape.kernel_height; ++ky, y += shape.dilation_y) {
        if (ef_inside(y, shape.input_height)) {
            line = ef_line_row(shape, zero_point, in + y * pitch, x, line);
        } else {
            line = ef_fill((int8_t)zero_point, shape.kernel_width * channels, line);
        }
    }
}

/** Any number of channels: first the bytes of each pixel in a line, then spread. */
EF_INLINE void ef_columns_bytes(const ef_window_t shape, int32_t zero_point, const int8_t *in, const ef_starts_t *starts,
                                int8_t *lines, uint32_t *columns)
{
    const int32_t n_steps = (shape.kernel_height * shape.kernel_width * shape.input_channels + 3) / 4;
    const int8_t *from[EF_QUAD];
    for (int32_t i = 0; i < EF_QUAD; ++i) {
        int8_t *line = lines + i * n_steps * 4;
        ef_line(shape, zero_point, in, starts->y[i], starts->x[i], line);
        from[i] = line;
    }
    ef_spread_s8(from, n_steps, columns);
}

/** Before the first columns of a layer: the line that padding is read from. */
EF_INLINE void ef_columns_begin(const ef_window_t shape, int32_t zero_point, int8_t *lines)
{
    if (shape.input_channels % 4 == 0 && ef_is_padded(shape)) {
        for (int32_t i = 0; i < shape.kernel_width * shape.input_channels; ++i) {
            lines[i] = (int8_t)zero_point;
        }
    }
}

/** The columns of four output pixels. */
EF_INLINE void ef_columns(const ef_window_t shape, int32_t zero_point, const int8_t *in, const ef_starts_t *starts,
                          int8_t *lines, uint32_t *columns)
{
    if (shape.input_channels % 4 == 0) {
        ef_columns_words(shape, in, starts, lines, columns);
    } else {
        ef_columns_bytes(shape, zero_point, in, starts, lines, columns);
    }
}

#endif
