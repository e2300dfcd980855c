/**
 * Fully connected layer; one scale per output. Four outputs at a time share a word of input, unpacked on the fly: 20
 * instructions for 16 products with the DSP extension (ef_dense_s8.S).
 *
 * layout    in [I]   out [O]
 *           weights [O / 4][I / 4][4 outputs][4], then of the outputs left a pair [I / 4][2][4] and a single [I / 4][4]
 *           tails [O / 4][I % 4][4 outputs], a pair [I % 4][2], a single [I % 4]: inputs that fill no word
 *           requant [O / 4] {4 biases, 4 multipliers}, a pair {2, 2}, a single {1, 1}
 * range     the input's zero point is folded into the bias; accumulators fit 32 bits at the end, proven by the compiler
 *           for the weights at hand, and may wrap around before
 * scratch   none
 * aliasing  out must not overlap in
 * alignment in, weights and requant by words
 * source    quant/reference.py:dense and requantise
 */
#ifndef EF_DENSE_S8_H
#define EF_DENSE_S8_H

#include "ef_common.h"

/** ef_dense_s8.S knows the order of these fields. */
typedef struct {
    const int8_t *weights;
    const int32_t *requant;
    const int8_t *tails;
    int32_t n_outputs;
    int32_t n_steps; /* whole words of input: I / 4 */
    int32_t n_tails; /* I % 4 */
    int32_t output_zero_point;
    int32_t left_shift;
    int32_t low;
    int32_t high;
} ef_dense_t;

#if EF_HAS_DSP

/** `wide`: the layer has a left shift, or bounds inside the range of a byte. */
void ef_dense_s8(const ef_dense_t *layer, const int8_t *in, int8_t *out);
void ef_dense_wide_s8(const ef_dense_t *layer, const int8_t *in, int8_t *out);

#else

/** `width` neighbouring outputs, from tables that hold only such groups. */
EF_INLINE void ef_dense_group(const ef_dense_t *layer, int32_t width, const int8_t *weights, const int8_t *tails,
                              const int32_t *requant, const int8_t *in, int8_t *out)
{
    const ef_requant_t quant = {0, layer->output_zero_point, layer->low, layer->high, layer->left_shift};
    for (int32_t output = 0; output < width; ++output) {
        uint32_t sum = (uint32_t)requant[output];
        for (int32_t step = 0; step < layer->n_steps; ++step) {
            const int8_t *word = weights + (step * width + output) * 4;
            const int8_t *x = in + step * 4;
            sum += (uint32_t)(x[0] * word[0] + x[1] * word[1] + x[2] * word[2] + x[3] * word[3]);
        }
        for (int32_t tap = 0; tap < layer->n_tails; ++tap) {
            sum += (uint32_t)(tails[tap * width + output] * in[layer->n_steps * 4 + tap]);
        }
        out[output] = ef_requantise((int32_t)sum, requant[width + output], quant);
    }
}

static inline void ef_dense_s8(const ef_dense_t *layer, const int8_t *in, int8_t *out)
{
    const int8_t *weights = layer->weights, *tails = layer->tails;
    const int32_t *requant = layer->requant;
    int32_t left = layer->n_outputs;
    while (left > 0) {
        const int32_t width = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        ef_dense_group(layer, width, weights, tails, requant, in, out);
        weights += layer->n_steps * width * 4;
        tails += layer->n_tails * width;
        requant += 2 * width;
        out += width;
        left -= width;
    }
}

#define ef_dense_wide_s8 ef_dense_s8

#endif

#endif
