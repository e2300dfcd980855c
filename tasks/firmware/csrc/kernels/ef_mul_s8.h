/**
 * Product of two tensors, rounded once. `other` is repeated for every pixel: one pixel makes it a product of equals.
 *
 * layout    in, out [pixels][n]   other [n]; quant.input_zero_point belongs to in, terms.zero_point to other
 * range     255 * 255 * 2^left_shift fits 31 bits: left_shift 0..15
 * scratch   none
 * aliasing  out may be in; with one pixel it may be other as well
 * source    quant/reference.py:multiply
 */
#ifndef EF_MUL_S8_H
#define EF_MUL_S8_H

#include "ef_common.h"

typedef struct {
    int32_t zero_point;
    int32_t multiplier;
} ef_mul_t;

EF_INLINE void ef_mul_s8(int32_t pixels, int32_t n, const ef_requant_t quant, const ef_mul_t terms, const int8_t *in,
                         const int8_t *other, int8_t *out)
{
    for (int32_t pixel = 0; pixel < pixels; ++pixel) {
        for (int32_t i = 0; i < n; ++i) {
            const int32_t product = (in[i] - quant.input_zero_point) * (other[i] - terms.zero_point);
            out[i] = ef_requantise(product, terms.multiplier, quant);
        }
        in += n;
        out += n;
    }
}

#endif
