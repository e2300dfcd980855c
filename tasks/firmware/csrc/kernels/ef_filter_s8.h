/**
 * Products of a matrix of weights and columns of input: the inner part of convolutions.
 *
 * A column holds what the window sees at one output pixel, K inputs as 16-bit numbers. Four columns lie side by side, so
 * that a word of weights, once unpacked, serves four pixels; two output channels at a time, so that a word of input
 * serves two. On cores with the DSP extension the functions are assembly (ef_filter_s8.S): eight accumulators stay in
 * registers, and four taps of eight outputs, 32 products, take 30 instructions. Elsewhere, and on the host, they are the
 * C below; both read the same data.
 *
 * layout    columns [ceil(K / 4)][2][4 pixels], two inputs a word: of taps 4i .. 4i + 3, first 0 and 2 of each pixel
 *           (the lower tap in the lower half), then 1 and 3
 *           weights: for each pair of channels {2 biases} [K / 4][2 channels][4 int8] {2 multipliers}, then for an odd
 *           last channel {bias} [K / 4][4 int8] {multiplier}; all of it words
 *           tails [O / 2][K % 4][2 channels], then an odd last channel [K % 4]: taps that fill no word
 *           where K % 4 is 3, weights have a zero behind each row that makes it 0
 * range     the input's zero point is folded into the bias; accumulators fit 32 bits after the last tap, proven by the
 *           compiler for the weights at hand, and may wrap around before
 * scratch   none but the columns
 * alignment columns and weights by words
 * source    quant/reference.py:conv2d and requantise
 */
#ifndef EF_FILTER_S8_H
#define EF_FILTER_S8_H

#include "ef_common.h"

#define EF_QUAD 4 /* pixels side by side */

/** ef_filter_s8.S knows the order of these fields. */
typedef struct {
    const int32_t *weights;
    int32_t n_pairs; /* of output channels: O / 2 */
    int32_t n_steps; /* whole words of taps: K / 4 */
    int32_t stride;  /* bytes from the outputs of one pixel to those of the next */
    int32_t output_zero_point;
    const int8_t *tails;
    int32_t n_tails; /* K % 4, at most 2: three are completed to a word */
    int32_t left_shift;
    int32_t low;
    int32_t high;
    int32_t input_zero_point; /* what padding holds */
} ef_filter_t;

#if EF_HAS_DSP

/** All channel pairs of four pixels. `tail`: K % 4 is 1 or 2; `wide`: a left shift, or bounds inside the range of a byte. */
void ef_quad_s8(const ef_filter_t *filter, const uint32_t *columns, int8_t *out);
void ef_quad_tail_s8(const ef_filter_t *filter, const uint32_t *columns, int8_t *out);
void ef_quad_wide_s8(const ef_filter_t *filter, const uint32_t *columns, int8_t *out);
void ef_quad_tail_wide_s8(const ef_filter_t *filter, const uint32_t *columns, int8_t *out);

/** The odd last channel of four pixels; `out` is where the first pixel's channel 0 goes. */
void ef_quad_last_s8(const ef_filter_t *filter, const uint32_t *columns, int8_t *out);

/** All channel pairs of one pixel; `column` is its word in the first of the columns' rows. */
void ef_pixel_s8(const ef_filter_t *filter, const uint32_t *column, int8_t *out);

/** The odd last channel of one pixel. */
void ef_pixel_last_s8(const ef_filter_t *filter, const uint32_t *column, int8_t *out);

#else

EF_INLINE int8_t ef_filter_byte(const ef_filter_t *filter, uint32_t sum, int32_t multiplier)
{
    const ef_requant_t quant = {0, filter->output_zero_point, filter->low, filter->high, filter->left_shift};
    return ef_requantise((int32_t)sum, multiplier, quant);
}

/** Input `tap` of a pixel, whose first word lies at `column`. */
EF_INLINE int32_t ef_column_at(const uint32_t *column, int32_t tap)
{
    const uint32_t word = column[(tap / 4) * 2 * EF_QUAD + (tap & 1) * EF_QUAD];
    return (int16_t)(tap & 2 ? word >> 16 : word & 0xFFFFu);
}

/** `width` neighbouring channels of `n` pixels; `block` is their part of the weights. */
EF_INLINE void ef_filter_group(const ef_filter_t *filter, int32_t width, int32_t n, const int32_t *block,
                               const int8_t *tails, const uint32_t *columns, int8_t *out)
{
    const int8_t *words = (const int8_t *)(block + width);
    const int32_t *multipliers = block + width + filter->n_steps * width;
    for (int32_t channel = 0; channel < width; ++channel) {
        uint32_t sums[EF_QUAD];
        for (int32_t pixel = 0; pixel < n; ++pixel) {
            sums[pixel] = (uint32_t)block[channel];
        }
        for (int32_t step = 0; step < filter->n_steps; ++step) {
            const int8_t *word = words + (step * width + channel) * 4;
            for (int32_t pixel = 0; pixel < n; ++pixel) {
                const uint32_t even = columns[step * 2 * EF_QUAD + pixel];
                const uint32_t odd = columns[step * 2 * EF_QUAD + EF_QUAD + pixel];
                sums[pixel] += (uint32_t)((int16_t)(even & 0xFFFFu) * word[0] + (int16_t)(even >> 16) * word[2] +
                                          (int16_t)(odd & 0xFFFFu) * word[1] + (int16_t)(odd >> 16) * word[3]);
            }
        }
        for (int32_t tap = 0; tap < filter->n_tails; ++tap) {
            const uint32_t weight = (uint32_t)tails[tap * width + channel];
            for (int32_t pixel = 0; pixel < n; ++pixel) {
                sums[pixel] += weight * (uint32_t)ef_column_at(columns + pixel, filter->n_steps * 4 + tap);
            }
        }
        for (int32_t pixel = 0; pixel < n; ++pixel) {
            out[pixel * filter->stride + channel] = ef_filter_byte(filter, sums[pixel], multipliers[channel]);
        }
    }
}

/** Words of a pair of channels. */
EF_INLINE int32_t ef_filter_pair_words(const ef_filter_t *filter)
{
    return 2 * filter->n_steps + 4;
}

EF_INLINE void ef_filter_pairs(const ef_filter_t *filter, int32_t n, const uint32_t *columns, int8_t *out)
{
    for (int32_t pair = 0; pair < filter->n_pairs; ++pair) {
        ef_filter_group(filter, 2, n, filter->weights + pair * ef_filter_pair_words(filter),
                        filter->tails + pair * filter->n_tails * 2, columns, out + pair * 2);
    }
}

EF_INLINE void ef_filter_last(const ef_filter_t *filter, int32_t n, const uint32_t *columns, int8_t *out)
{
    const int32_t pairs = filter->n_pairs;
    ef_filter_group(filter, 1, n, filter->weights + pairs * ef_filter_pair_words(filter),
                    filter->tails + pairs * filter->n_tails * 2, columns, out + pairs * 2);
}

static inline void ef_quad_s8(const ef_filter_t *filter, const uint32_t *columns, int8_t *out)
{
    ef_filter_pairs(filter, EF_QUAD, columns, out);
}

static inline void ef_quad_last_s8(const ef_filter_t *filter, const uint32_t *columns, int8_t *out)
{
    ef_filter_last(filter, EF_QUAD, columns, out);
}

static inline void ef_pixel_s8(const ef_filter_t *filter, const uint32_t *column, int8_t *out)
{
    ef_filter_pairs(filter, 1, column, out);
}

static inline void ef_pixel_last_s8(const ef_filter_t *filter, const uint32_t *column, int8_t *out)
{
    ef_filter_last(filter, 1, column, out);
}

#define ef_quad_tail_s8 ef_quad_s8
#define ef_quad_wide_s8 ef_quad_s8
#define ef_quad_tail_wide_s8 ef_quad_s8

#endif

#endif
