/**
 * Fully connected layer; one scale per output.
 *
 * layout    in [I]   weights [O][I]   bias, multipliers [O]   out [O]
 * range     accumulators fit 32 bits, proven by the compiler for the weights at hand
 * scratch   none
 * aliasing  out must not overlap in
 * source    quant/reference.py:dense and requantise
 */
#ifndef EF_DENSE_S8_H
#define EF_DENSE_S8_H

#include "ef_common.h"

EF_INLINE void ef_dense_s8(int32_t n_inputs, int32_t n_outputs, const ef_requant_t quant, const int8_t *restrict in,
                           const int8_t *restrict weights, const int32_t *restrict bias,
                           const int32_t *restrict multipliers, int8_t *restrict out)
{
    int32_t o = 0;
    for (; o + 4 <= n_outputs; o += 4) {
        const int8_t *row = weights + o * n_inputs;
        int32_t sum0 = bias[o], sum1 = bias[o + 1], sum2 = bias[o + 2], sum3 = bias[o + 3];
        for (int32_t i = 0; i < n_inputs; ++i) {
            const int32_t value = in[i] - quant.input_zero_point;
            sum0 += value * row[i];
            sum1 += value * row[i + n_inputs];
            sum2 += value * row[i + 2 * n_inputs];
            sum3 += value * row[i + 3 * n_inputs];
        }
        out[o] = ef_requantise(sum0, multipliers[o], quant);
        out[o + 1] = ef_requantise(sum1, multipliers[o + 1], quant);
        out[o + 2] = ef_requantise(sum2, multipliers[o + 2], quant);
        out[o + 3] = ef_requantise(sum3, multipliers[o + 3], quant);
    }
    for (; o < n_outputs; ++o) {
        int32_t sum = bias[o];
        for (int32_t i = 0; i < n_inputs; ++i) {
            sum += (in[i] - quant.input_zero_point) * weights[o * n_inputs + i];
        }
        out[o] = ef_requantise(sum, multipliers[o], quant);
    }
}

#endif
