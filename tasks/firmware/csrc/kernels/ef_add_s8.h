/**
 * Sum or difference of two tensors, each on its own scale, rounded once. Zero points and the rounding's half are one
 * constant: with q for bytes, s for the left shift and m for multipliers the output is
 * (offset + (in << s) * m + (other << s) * m') >> 32.
 *
 * layout    in, other, out [n]
 * range     multipliers 0..2^31-1 for in, -(2^31-1)..2^31-1 for other; left_shift 0..22: each product stays below 2^60, so
 *           their sum and the offset fit 64 bits with either sign
 * scratch   none
 * aliasing  out may be in or other
 * alignment in and other by words
 * source    quant/reference.py:add
 */
#ifndef EF_ADD_S8_H
#define EF_ADD_S8_H

#include "ef_common.h"

/** ef_add_s8.S knows the order of these fields. */
typedef struct {
    uint32_t offset_low; /* of the 64 bits of the offset */
    uint32_t offset_high;
    int32_t multiplier;
    int32_t other_multiplier;
    int32_t left_shift;
    int32_t low;
    int32_t high;
} ef_add_t;

#if EF_HAS_DSP

/** `wide`: bounds inside the range of a byte. */
void ef_add_s8(const ef_add_t *layer, int32_t n, const int8_t *in, const int8_t *other, int8_t *out);
void ef_add_wide_s8(const ef_add_t *layer, int32_t n, const int8_t *in, const int8_t *other, int8_t *out);

#else

static inline void ef_add_s8(const ef_add_t *layer, int32_t n, const int8_t *in, const int8_t *other, int8_t *out)
{
    const ef_requant_t quant = {0, 0, layer->low, layer->high, 0};
    const int64_t offset = (int64_t)((uint64_t)layer->offset_high << 32 | layer->offset_low);
    const int32_t factor = (int32_t)(1 << layer->left_shift);
    for (int32_t i = 0; i < n; ++i) {
        const int64_t first = (int64_t)(in[i] * factor) * layer->multiplier;
        const int64_t second = (int64_t)(other[i] * factor) * layer->other_multiplier;
        out[i] = ef_clamp((int32_t)((offset + first + second) >> 32), quant);
    }
}

#define ef_add_wide_s8 ef_add_s8

#endif

#endif
