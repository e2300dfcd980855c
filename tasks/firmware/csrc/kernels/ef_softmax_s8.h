/**
 * Softmax over the channels of each pixel, in integers: a table of exponents by distance from the largest byte, their
 * sum, and one unsigned division of 32 bits an element (an instruction on Cortex-M3 and later).
 *
 * layout    in, out [pixels][n]
 * range     the n exponents sum to at most 2^32 - 1, exponents[0] is at most 2^30, and exponents[0] * output_scale is at
 *           least 2^44: the divisor is no zero, and adding half of it to an exponent stays within 32 bits
 * scratch   none
 * aliasing  out may be in
 * source    quant/reference.py:softmax
 */
#ifndef EF_SOFTMAX_S8_H
#define EF_SOFTMAX_S8_H

#include "ef_common.h"

typedef struct {
    uint32_t output_scale; /* in units of 2^-32 */
    uint32_t exponents[256];
} ef_softmax_t;

EF_INLINE void ef_softmax_s8(int32_t pixels, int32_t n, const ef_requant_t quant, const ef_softmax_t *terms,
                             const int8_t *in, int8_t *out)
{
    for (int32_t pixel = 0; pixel < pixels; ++pixel) {
        int32_t largest = in[0];
        for (int32_t i = 1; i < n; ++i) {
            largest = in[i] > largest ? in[i] : largest;
        }
        uint32_t sum = 0;
        for (int32_t i = 0; i < n; ++i) {
            sum += terms->exponents[largest - in[i]];
        }
        const uint32_t divisor = (uint32_t)(((uint64_t)sum * terms->output_scale + (UINT64_C(1) << 31)) >> 32);
        for (int32_t i = 0; i < n; ++i) {
            const uint32_t quotient = (terms->exponents[largest - in[i]] + divisor / 2) / divisor;
            out[i] = ef_clamp(quant.output_zero_point + (int32_t)quotient, quant);
        }
        in += n;
        out += n;
    }
}

#endif
