/**
 * One input of a concatenation: its channels go to their place in every pixel, on the output's scale.
 *
 * layout    in [pixels][n]   out [pixels][stride], already at the first channel of this input
 * range     the part's left_shift 0..22; quant's input zero point and left shift are not read
 * scratch   none
 * aliasing  out must not overlap in
 * source    quant/reference.py:concatenate
 */
#ifndef EF_CONCAT_S8_H
#define EF_CONCAT_S8_H

#include "ef_common.h"

typedef struct {
    int32_t zero_point;
    int32_t multiplier;
    int32_t left_shift;
} ef_concat_t;

EF_INLINE void ef_concat_s8(int32_t pixels, int32_t n, int32_t stride, ef_requant_t quant, const ef_concat_t *part,
                            const int8_t *restrict in, int8_t *restrict out)
{
    const int32_t multiplier = part->multiplier;
    quant.input_zero_point = part->zero_point;
    quant.left_shift = part->left_shift;
    for (int32_t pixel = 0; pixel < pixels; ++pixel) {
        for (int32_t i = 0; i < n; ++i) {
            out[i] = ef_requantise(in[i] - quant.input_zero_point, multiplier, quant);
        }
        in += n;
        out += stride;
    }
}

#endif
