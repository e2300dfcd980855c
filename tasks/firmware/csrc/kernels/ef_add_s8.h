/**
 * Sum or difference of two tensors, each on its own scale, rounded once.
 *
 * layout    in, other, out [n]; quant.input_zero_point belongs to in, other_zero_point to other
 * range     multipliers 0..2^31-1 for in, -(2^31-1)..2^31-1 for other; left_shift 0..22: each product stays below 2^61, so
 *           their sum fits 64 bits with either sign
 * scratch   none
 * aliasing  out may be in or other
 * source    quant/reference.py:add
 */
#ifndef EF_ADD_S8_H
#define EF_ADD_S8_H

#include "ef_common.h"

typedef struct {
    int32_t other_zero_point;
    int32_t multiplier;
    int32_t other_multiplier;
} ef_add_t;

EF_INLINE void ef_add_s8(int32_t n, const ef_requant_t quant, const ef_add_t terms, const int8_t *in,
                         const int8_t *other, int8_t *out)
{
    const int32_t factor = (int32_t)(1 << quant.left_shift);
    for (int32_t i = 0; i < n; ++i) {
        const int32_t first = (in[i] - quant.input_zero_point) * factor;
        const int32_t second = (other[i] - terms.other_zero_point) * factor;
        const int64_t sum = (int64_t)first * terms.multiplier + (int64_t)second * terms.other_multiplier;
        out[i] = ef_clamp(quant.output_zero_point + (int32_t)((sum + (INT64_C(1) << 31)) >> 32), quant);
    }
}

#endif
