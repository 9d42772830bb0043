/* Products of float32 matrices, with the layouts and the functions of tiles_bf16.h.
 *
 * A tile has 512 numbers, as in bfloat16, so the distances between tiles are the same:
 *
 *   A  16 rows of 32 consecutive numbers; the rows can be any distance apart
 *   B  32 rows of 16 columns
 *   A that pack_a... has made: 32 rows of 16, as B; the product reads the columns as rows of A
 *
 * A product keeps ROWS_AT_ONCE rows of C in registers. Source: Goto and van de Geijn 2008, "Anatomy
 * of High-Performance Matrix Multiplication". Distances count numbers, not bytes. */

#ifndef GPTCLI_TILES_F32_H
#define GPTCLI_TILES_F32_H

#include "f32x16.h"

enum {
    TILE = 512,        /* numbers in a tile */
    STEPS_AT_ONCE = 8, /* steps that a product adds at once: the caches hold their tiles */
};

static void tiles_begin(void) {}
static void tiles_end(void) {}

/* C (rows, 16 nb) (+)= A B. Number (r, k) of a tile of A is at A + r * a_row + k * a_column. The
 * rows of a tile of B are b_row apart. */
INLINE void multiply_rows(const int rows, const int nb, const float *A, long a_row, long a_column,
                          long a_step, const float *B, long b_row, long b_tile, long b_step,
                          int steps, float *C, long c_row, int add_old) {
    f32x16 sum[ROWS_AT_ONCE][PANELS_AT_ONCE];
    UNROLL(8)
    for (int r = 0; r < rows; r++) UNROLL(2)
    for (int j = 0; j < nb; j++) sum[r][j] = add_old ? load(C + r * c_row + 16 * j) : zeros();
    for (int s = 0; s < steps; s++, A += a_step, B += b_step)
        for (int k = 0; k < 32; k++) {
            f32x16 b[PANELS_AT_ONCE];
            UNROLL(2)
            for (int j = 0; j < nb; j++) b[j] = load(B + j * b_tile + b_row * k);
            UNROLL(8)
            for (int r = 0; r < rows; r++) {
                const f32x16 a = broadcast(A[r * a_row + k * a_column]);
                UNROLL(2)
                for (int j = 0; j < nb; j++) sum[r][j] = fmadd(a, b[j], sum[r][j]);
            }
        }
    UNROLL(8)
    for (int r = 0; r < rows; r++) UNROLL(2)
    for (int j = 0; j < nb; j++) {
        store(C + r * c_row + 16 * j, sum[r][j]);
    }
}

/* multiply_rows for 16 or 32 rows, ROWS_AT_ONCE at a time. */
INLINE void multiply_all_rows(const int rows, const int nb, const float *A, long a_row,
                              long a_column, long a_step, const float *B, long b_row, long b_tile,
                              long b_step, int steps, float *C, long c_row, int add_old) {
    /* If ROWS_AT_ONCE is 6, 32 rows are split into 6 + 6 + 6 + 6 + 4 + 4, and 16 into 6 + 6 + 4. */
    int r = 0;
    for (; r + ROWS_AT_ONCE <= rows - (ROWS_AT_ONCE == 6 ? 4 : 0); r += ROWS_AT_ONCE)
        multiply_rows(ROWS_AT_ONCE, nb, A + r * a_row, a_row, a_column, a_step, B, b_row, b_tile,
                      b_step, steps, C + r * c_row, c_row, add_old);
    if (ROWS_AT_ONCE == 6)
        for (; r < rows; r += 4)
            multiply_rows(4, nb, A + r * a_row, a_row, a_column, a_step, B, b_row, b_tile, b_step,
                          steps, C + r * c_row, c_row, add_old);
}

/* C (32, 16 panels) = A (32, 32 steps) B. B consists of panels of 16 columns. Number (r, k) of A is
 * at A + r * a_row + k / 32 * a_step + k % 32. */
INLINE void product(const float *A, long a_row, long a_step, const float *B, long panel, int steps,
                    int panels, float *C, long c_row) {
    for (int s = 0; s < steps; s += STEPS_AT_ONCE) {
        const int now = steps - s < STEPS_AT_ONCE ? steps - s : STEPS_AT_ONCE;
        for (int p = 0; p < panels; p += PANELS_AT_ONCE)
            if (p + PANELS_AT_ONCE <= panels)
                multiply_all_rows(32, PANELS_AT_ONCE, A + s * a_step, a_row, 1, a_step,
                                  B + p * panel + s * TILE, 16, panel, TILE, now, C + 16 * p, c_row,
                                  s > 0);
            else
                multiply_all_rows(32, 1, A + s * a_step, a_row, 1, a_step, B + p * panel + s * TILE,
                                  16, panel, TILE, now, C + 16 * p, c_row, s > 0);
    }
}

/* C (32, 16 nb) (+)= A B, summed over `steps` tiles of A and B. The tiles of A are made by
 * pack_a32_transposed. */
INLINE void multiply_transposed(const int nb, const float *A, long a_tile, long a_step,
                                const float *B, long b_tile, long b_step, int steps, float *C,
                                long c_row, int add_old) {
    /* Multiplies the tiles of one step at a time, because tiles of several steps would compete for
     * the same lines of the cache. */
    for (int s = 0; s < steps; s++, A += a_step, B += b_step)
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < nb; j += PANELS_AT_ONCE)
                if (j + PANELS_AT_ONCE <= nb)
                    multiply_all_rows(16, PANELS_AT_ONCE, A + i * a_tile, 1, 16, 0, B + j * b_tile,
                                      16, b_tile, 0, 1, C + 16 * i * c_row + 16 * j, c_row,
                                      add_old || s > 0);
                else
                    multiply_all_rows(16, 1, A + i * a_tile, 1, 16, 0, B + j * b_tile, 16, b_tile,
                                      0, 1, C + 16 * i * c_row + 16 * j, c_row, add_old || s > 0);
}

/* C (32, 32) (+)= A^T B, summed over `steps` pieces of A and B (numbers.h). */
INLINE void multiply_pieces(const float *A, long a_step, const float *B, long b_step, int steps,
                            float *C, long c_row, int add_old) {
    for (int s = 0; s < steps; s++, A += a_step, B += b_step)
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j += PANELS_AT_ONCE) {
                /* The next pieces are far away, so the processor does not load them by itself. */
                const int quarter = 256 * (2 * i + j), bytes = 1024 * PANELS_AT_ONCE;
                prefetch_l2(A + a_step + quarter, bytes);
                prefetch_l2(B + b_step + quarter, bytes);
                multiply_all_rows(16, PANELS_AT_ONCE, A + 16 * i, 1, 32, 0, B + 16 * j, 32, 16, 0,
                                  1, C + 16 * i * c_row + 16 * j, c_row, add_old || s > 0);
            }
}

/* ---- packing rows into tiles ----------------------------------------------------------------- */

/* Packs X (32, columns) as B tiles, one for every 16 columns. In `out`, each tile begins
 * `tile` numbers after the one before. A product with these tiles sums over the 32 rows of X. */
static void pack_b32(const float *X, long row, int columns, float *out, long tile) {
    for (int c = 0; c < columns; c += 16, out += tile)
        for (int r = 0; r < 32; r++) store(out + 16 * r, load(X + r * row + c));
}

/* Packs the transpose of X (32, columns) as A tiles, which here have the same layout as B tiles. */
static void pack_a32_transposed(const float *X, long row, int columns, float *out, long tile) {
    pack_b32(X, row, columns, out, tile);
}

/* Packs the transpose of X (16, columns) as B tiles, one for every 32 columns. The tiles follow
 * one another in `out` without a gap. A product with these tiles sums over the columns of X. Zeros
 * fill the rest of the last tile. */
static void pack_b16_transposed(const float *X, long row, int columns, float *out) {
    for (int c = 0; c < columns; c += 16, out += TILE / 2) {
        f32x16 r[16];
        UNROLL(16)
        for (int i = 0; i < 16; i++) r[i] = load(X + i * row + c);
        transpose16(r);
        UNROLL(16)
        for (int i = 0; i < 16; i++) store(out + 16 * i, r[i]);
    }
    if (columns % 32) memset(out, 0, TILE / 2 * sizeof *out);
}

#endif
