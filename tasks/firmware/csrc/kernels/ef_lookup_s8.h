/**
 * Any function of single bytes, as a table that was computed by the compiler.
 *
 * layout    in, out [n]   table [256]: the output of byte q at q + 128
 * scratch   none
 * aliasing  out may be in
 * source    quant/reference.py:look_up
 */
#ifndef EF_LOOKUP_S8_H
#define EF_LOOKUP_S8_H

#include "ef_common.h"

EF_INLINE void ef_lookup_s8(int32_t n, const int8_t *table, const int8_t *in, int8_t *out)
{
    const int8_t *centre = table + 128;
    for (int32_t i = 0; i < n; ++i) {
        out[i] = centre[in[i]];
    }
}

#endif
