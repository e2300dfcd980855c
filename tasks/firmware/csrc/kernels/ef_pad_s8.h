/**
 * An image in a frame of real zeros; scale and zero point pass through.
 *
 * layout    in [rows][n]   out: `before` bytes of frame, the rows with `between` bytes of frame after each but the last,
 *           `after` bytes of frame; n and the frame's sizes are in bytes, all channels of a pixel counted
 * scratch   none
 * aliasing  out must not overlap in
 * source    quant/reference.py:pad
 */
#ifndef EF_PAD_S8_H
#define EF_PAD_S8_H

#include "ef_common.h"

/* Through a volatile pointer: no compiler may turn the loop into a call of memset, which need not exist. */
EF_INLINE int8_t *ef_pad_fill_s8(int8_t *out, int32_t n, int8_t value)
{
    volatile int8_t *frame = out;
    for (int32_t i = 0; i < n; ++i) {
        frame[i] = value;
    }
    return out + n;
}

EF_INLINE void ef_pad_s8(int32_t rows, int32_t n, int32_t before, int32_t between, int32_t after,
                         const ef_requant_t quant, const int8_t *restrict in, int8_t *restrict out)
{
    const int8_t zero = ef_clamp(quant.input_zero_point, quant);
    out = ef_pad_fill_s8(out, before, zero);
    for (int32_t row = 0; row < rows; ++row) {
        for (int32_t i = 0; i < n; ++i) {
            out[i] = ef_clamp(in[i], quant);
        }
        in += n;
        out = ef_pad_fill_s8(out + n, row + 1 < rows ? between : after, zero);
    }
}

#endif
