/**
 * The same reals on another scale, with the range of a relu or clip.
 *
 * layout    in, out [n]; multiplier [1]
 * scratch   none
 * aliasing  out may be in
 * source    quant/reference.py:requantise
 */
#ifndef EF_RESCALE_S8_H
#define EF_RESCALE_S8_H

#include "ef_common.h"

EF_INLINE void ef_rescale_s8(int32_t n, const ef_requant_t quant, const int32_t *multipliers, const int8_t *in,
                             int8_t *out)
{
    const int32_t multiplier = multipliers[0];
    for (int32_t i = 0; i < n; ++i) {
        out[i] = ef_requantise(in[i] - quant.input_zero_point, multiplier, quant);
    }
}

#endif
