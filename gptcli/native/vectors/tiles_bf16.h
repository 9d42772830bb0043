/* Products of bfloat16 matrices with AMX tiles, or with AVX512-BF16 on processors without AMX.
 *
 * A tile is 1 KiB: 16 rows of 64 bytes, so 16 x 32 bfloat16 or 16 x 16 float32. One AMX instruction
 * computes C += A B for three tiles. It adds 32 products to each number of C, in float32:
 *
 *   A  16 rows of 32 consecutive bfloat16; the rows can be any distance apart
 *   B  16 columns; row i of the tile holds the pairs (2i, j), (2i + 1, j) for j = 0 to 15
 *   C  16 rows of 16 float32
 *
 * The layout of B is called VNNI. README.md has drawings. Without AMX, AVX512-BF16 multiplies one
 * row of A at a time. Source: Intel 64 and IA-32 Architectures Software Developer's Manual,
 * TDPBF16PS and VDPBF16PS.
 *
 * Names: pack_a... makes A tiles, pack_b... makes B tiles. `panel` is the distance between the
 * tiles of two neighbouring blocks of 16 columns of B. `step` is the distance from a tile to the
 * next one, whose products are added to the same sums. All distances count numbers, not bytes. */

#ifndef GPTCLI_TILES_H
#define GPTCLI_TILES_H

#include <immintrin.h>

#include "basics.h"

enum { TILE = 512 }; /* bfloat16 in a tile */

/* ---- products of tiles ----------------------------------------------------------------------- */

/* C (+)= A B for na x nb tiles of C. na and nb are 1 or 2. The sum runs over `steps` tiles of A and
 * the same number of tiles of B.
 *
 * The A tile of row block i for step s is at A + i * a_tile + s * a_step; its rows are a_row apart.
 * The B tile of column block j for step s is at B + j * b_tile + s * b_step. Rows of C are c_row
 * apart. If `add_old`, the product is added to the old values of C. With four tiles of C, each
 * loaded tile of A and B is used twice. */

#if defined(__AMX_BF16__) && defined(__AMX_TILE__)

/* The processor's tile configuration (LDTILECFG). */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((packed, aligned(64))) TileConfig;

/* Each thread calls tiles_begin or tiles_begin_rows before its products, and tiles_end after them.
 * Tiles 0 to 3 are C, 4 and 5 are A, 6 and 7 are B. A and C have `rows` rows, at most 16. */
static void tiles_begin_rows(int rows) {
    TileConfig shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.row_bytes[i] = 64;
        shape.rows[i] = i < 6 ? rows : 16;
    }
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&shape);
}

static inline void tiles_begin(void) { tiles_begin_rows(16); }

static void tiles_end(void) { _tile_release(); }

INLINE void multiply_tiles(const int na, const int nb, const bf16 *A, long a_tile, long a_row,
                           long a_step, const bf16 *B, long b_tile, long b_step, int steps,
                           float *C, long c_row, int add_old) {
    const long row = a_row * (long)sizeof(bf16), c = c_row * (long)sizeof(float);
    __asm__ volatile("" ::: "memory"); /* gcc does not know that tile loads read memory */
    if (add_old) {
        _tile_loadd(0, C, c);
        if (nb == 2) _tile_loadd(1, C + 16, c);
        if (na == 2) _tile_loadd(2, C + 16 * c_row, c);
        if (na == 2 && nb == 2) _tile_loadd(3, C + 16 * c_row + 16, c);
    } else {
        _tile_zero(0);
        if (nb == 2) _tile_zero(1);
        if (na == 2) _tile_zero(2);
        if (na == 2 && nb == 2) _tile_zero(3);
    }
    for (int s = 0; s < steps; s++, A += a_step, B += b_step) {
        _tile_loadd(6, B, 64);
        _tile_loadd(4, A, row);
        _tile_dpbf16ps(0, 4, 6);
        if (nb == 2) {
            _tile_loadd(7, B + b_tile, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (na == 2) {
            _tile_loadd(5, A + a_tile, row);
            _tile_dpbf16ps(2, 5, 6);
            if (nb == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, C, c);
    if (nb == 2) _tile_stored(1, C + 16, c);
    if (na == 2) _tile_stored(2, C + 16 * c_row, c);
    if (na == 2 && nb == 2) _tile_stored(3, C + 16 * c_row + 16, c);
}

#else

static void tiles_begin(void) {}
static void tiles_end(void) {}

/* C (8, 16 nb) (+)= A B: eight rows keep their sums in registers. */
INLINE void multiply_8_rows(const int nb, const bf16 *A, long a_row, long a_step, const bf16 *B,
                            long b_tile, long b_step, int steps, float *C, long c_row,
                            int add_old) {
    __m512 sum[8][2];
    UNROLL(8)
    for (int r = 0; r < 8; r++)
        for (int j = 0; j < nb; j++)
            sum[r][j] = add_old ? _mm512_loadu_ps(C + r * c_row + 16 * j) : _mm512_setzero_ps();
    for (int s = 0; s < steps; s++, A += a_step, B += b_step)
        for (int k = 0; k < 16; k++) {
            __m512bh b[2];
            b[0] = (__m512bh)_mm512_loadu_si512(B + 32 * k);
            if (nb == 2) b[1] = (__m512bh)_mm512_loadu_si512(B + b_tile + 32 * k);
            UNROLL(8)
            for (int r = 0; r < 8; r++) {
                int pair;
                memcpy(&pair, A + r * a_row + 2 * k, 4);
                __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
                sum[r][0] = _mm512_dpbf16_ps(sum[r][0], a, b[0]);
                if (nb == 2) sum[r][1] = _mm512_dpbf16_ps(sum[r][1], a, b[1]);
            }
        }
    UNROLL(8)
    for (int r = 0; r < 8; r++)
        for (int j = 0; j < nb; j++) _mm512_storeu_ps(C + r * c_row + 16 * j, sum[r][j]);
}

INLINE void multiply_tiles(const int na, const int nb, const bf16 *A, long a_tile, long a_row,
                           long a_step, const bf16 *B, long b_tile, long b_step, int steps,
                           float *C, long c_row, int add_old) {
    for (int i = 0; i < 2 * na; i++)
        multiply_8_rows(nb, A + (i / 2) * a_tile + (i % 2) * 8 * a_row, a_row, a_step, B, b_tile,
                        b_step, steps, C + 8 * i * c_row, c_row, add_old);
}

#endif

/* C (32, 16 panels) = A (32, 32 steps) B. B consists of panels of 16 columns. */
INLINE void product(const bf16 *A, long a_row, long a_step, const bf16 *B, long panel, int steps,
                    int panels, float *C, long c_row) {
    int p = 0;
    for (; p + 1 < panels; p += 2)
        multiply_tiles(2, 2, A, 16 * a_row, a_row, a_step, B + p * panel, panel, TILE, steps,
                       C + 16 * p, c_row, 0);
    if (p < panels)
        multiply_tiles(2, 1, A, 16 * a_row, a_row, a_step, B + p * panel, panel, TILE, steps,
                       C + 16 * p, c_row, 0);
}

/* Like `product`, but first starts to load `numbers` numbers from `next` on into the cache. */
INLINE void product_and_prefetch(const bf16 *A, long a_row, long a_step, const bf16 *B, long panel,
                                 int steps, int panels, float *C, long c_row, const bf16 *next,
                                 long numbers) {
    prefetch_l2(next, numbers * sizeof *next);
    product(A, a_row, a_step, B, panel, steps, panels, C, c_row);
}

#endif
