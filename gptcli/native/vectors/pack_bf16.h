/* Packs rows of bfloat16 into tiles with the layouts of tiles_bf16.h. */

#ifndef GPTCLI_PACK_BF16_H
#define GPTCLI_PACK_BF16_H

#include "f32x16.h"
#include "tiles_bf16.h"

/* C (32, 16 nb) (+)= A B, summed over `steps` tiles of A and B. The tiles of A are made by
 * pack_a32_transposed. */
INLINE void multiply_transposed(const int nb, const bf16 *A, long a_tile, long a_step,
                                const bf16 *B, long b_tile, long b_step, int steps, float *C,
                                long c_row, int add_old) {
    multiply_tiles(2, nb, A, a_tile, 32, a_step, B, b_tile, b_step, steps, C, c_row, add_old);
}

/* C (32, 32) (+)= A^T B, summed over `steps` pieces that are packed as tiles. */
INLINE void multiply_pieces(const bf16 *A, long a_step, const bf16 *B, long b_step, int steps,
                            float *C, long c_row, int add_old) {
    multiply_transposed(2, A, TILE, a_step, B, TILE, b_step, steps, C, c_row, add_old);
}

/* ---- packing rows into tiles ----------------------------------------------------------------- */

/* Sixteen pairs (a[i], b[i]) of bfloat16: one row of a B tile. */
INLINE __m512i interleave_rows(const bf16 *a, const bf16 *b) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)a));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)b));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

/* Packs X (32, columns) as B tiles, one for every 16 columns. In `out`, each tile begins `tile`
 * numbers after the one before. A product with these tiles sums over the 32 rows of X. */
static void pack_b32(const bf16 *X, long row, int columns, bf16 *out, long tile) {
    for (int c = 0; c < columns; c += 16, out += tile)
        for (int r = 0; r < 16; r++)
            _mm512_storeu_si512(out + 32 * r,
                                interleave_rows(X + 2 * r * row + c, X + (2 * r + 1) * row + c));
}

/* Packs the transpose of X (32, columns) as A tiles, one for every 16 columns. In `out`, each
 * tile begins `tile` numbers after the one before. A product with these tiles sums over the 32 rows
 * of X. */
static void pack_a32_transposed(const bf16 *X, long row, int columns, bf16 *out, long tile) {
    for (int c = 0; c < columns; c += 16, out += tile) {
        __m512i r[16];
        UNROLL(16)
        for (int i = 0; i < 16; i++)
            r[i] = interleave_rows(X + 2 * i * row + c, X + (2 * i + 1) * row + c);
        transpose16_ints(r);
        UNROLL(16)
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + 32 * i, r[i]);
    }
}

/* Packs the transpose of X (16, columns) as B tiles, one for every 32 columns. The tiles follow
 * one another in `out` without a gap. A product with these tiles sums over the columns of X. Zeros
 * fill the rest of the last tile. */
static void pack_b16_transposed(const bf16 *X, long row, int columns, bf16 *out) {
    for (int c = 0; c < columns; c += 32, out += TILE) {
        __mmask16 mask = columns - c >= 32 ? 0xffff : (__mmask16)((1 << (columns - c) / 2) - 1);
        __m512i r[16];
        UNROLL(16)
        for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_epi32(mask, X + i * row + c);
        transpose16_ints(r);
        UNROLL(16)
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + 32 * i, r[i]);
    }
}

#endif
