/**
 * Convolution and a sum with another tensor: the bytes of both, four pixels at a time.
 *
 * layout    as in ef_conv2d_s8.h and ef_add_s8.h; the convolution's result is the sum's first term; other [H'][W'][O]
 * range     as there
 * scratch   that of ef_conv2d_s8.h in whole words, then 4 * O bytes
 * aliasing  out may be other, unless in is other; towards in as in ef_conv2d_s8.h
 * alignment in, other and columns by words
 * source    quant/reference.py:conv2d, requantise and add
 */
#ifndef EF_CONV2D_ADD_S8_H
#define EF_CONV2D_ADD_S8_H

#include "ef_add_s8.h"
#include "ef_conv2d_s8.h"

/** `cuts`: the sum's bounds cut into the range of a byte. */
EF_INLINE void ef_conv2d_add_s8(const ef_window_t shape, bool is_wide, bool cuts, const ef_filter_t *filter,
                                const ef_add_t *terms, const int8_t *in, const int8_t *other, uint32_t *columns,
                                int8_t *out)
{
    const int32_t n = shape.output_height * shape.output_width;
    int8_t *results = (int8_t *)(columns + ef_columns_words_of(shape));
    int32_t oy = 0, ox = 0;
    for (int32_t at = ef_conv2d_first(shape); at >= 0 && at < n; at += ef_conv2d_step(shape)) {
        const int32_t start = at * shape.output_channels;
        const int32_t n_bytes = ef_conv2d_width(shape, at) * shape.output_channels;
        ef_conv2d_group(shape, is_wide, filter, in, at, &oy, &ox, columns, results);
        if (cuts) {
            ef_add_wide_s8(terms, n_bytes, results, other + start, out + start);
        } else {
            ef_add_s8(terms, n_bytes, results, other + start, out + start);
        }
    }
}

#endif
