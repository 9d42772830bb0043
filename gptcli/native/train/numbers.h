/* The type of activations and packed weights (bfloat16 or float32), and what depends on it.
 *
 * BFLOAT16 is 1 or 0; library.py sets it. In both cases, the residual stream, sums, the norms'
 * scales, the unpacked weights and the gradients of the weights are float32. */

#ifndef GPTCLI_NUMBERS_H
#define GPTCLI_NUMBERS_H

#ifndef BFLOAT16
#error "compile with -DBFLOAT16=1 or -DBFLOAT16=0"
#endif

#if BFLOAT16
#include "../vectors/pack_bf16.h"

typedef bf16 num;

INLINE f32x16 load_num(const num *p) { return load_bf16(p); }
INLINE void store_num(num *p, f32x16 x) { store_bf16(p, x); }
INLINE f32x16 load_first_num(const num *p, long n) { return load_first_bf16(p, n); }
INLINE void store_first_num(num *p, long n, f32x16 x) { store_first_bf16(p, n, x); }
#else
#include "../vectors/tiles_f32.h"

typedef float num;

INLINE f32x16 load_num(const num *p) { return load(p); }
INLINE void store_num(num *p, f32x16 x) { store(p, x); }
INLINE f32x16 load_first_num(const num *p, long n) { return load_first(p, n); }
INLINE void store_first_num(num *p, long n, f32x16 x) { store_first(p, n, x); }
#endif

/* The size of a number in bytes. library.py compares it with the size of the dtype it needs. */
int number_bytes(void) { return sizeof(num); }

/* ---- arrays in pieces ------------------------------------------------------------------------ */

/* An array (rows, C) in pieces consists of blocks of 32 x 32 numbers. The blocks of the same 32
 * rows follow one another in memory. So code that works block by block reads memory in order. */

enum { PIECE = 1024 }; /* numbers in a piece */

/* The index of number (r, c) in an array that has C columns and is stored in pieces. */
INLINE long in_pieces(long r, long c, long C) {
    return (r & ~31L) * C + c / 32 * PIECE + (r & 31) * 32 + c % 32;
}

/* Sets the rows `from` to end - 1 of an array in pieces to 0. */
static void clear_rows(num *array, long from, long end, long columns) {
    for (long r = from; r < end; r++)
        for (long c = 0; c < columns; c += 16) store_num(array + in_pieces(r, c, columns), zeros());
}

/* The gradient of a matrix is A^T B. A and B are arrays in pieces. In bfloat16, their pieces are
 * packed as tiles. In float32, the product reads the pieces themselves (multiply_pieces), so both
 * arrays are computed at their final places, and the functions that pack pieces do nothing. */

#if BFLOAT16

/* Packs X, an array in pieces, as B tiles, two for each piece. `numbers` is the length of X. */
static void pack_b_pieces(const num *X, long numbers, num *out) {
    for (long i = 0; i < numbers; i += PIECE) pack_b32(X + i, 32, 32, out + i, TILE);
}

/* Packs the transpose of an array in pieces as A tiles, two for each piece. */
static void pack_a_pieces_transposed(const num *X, long numbers, num *out) {
    for (long i = 0; i < numbers; i += PIECE) pack_a32_transposed(X + i, 32, 32, out + i, TILE);
}

#else

static void pack_b_pieces(const num *X, long numbers, num *out) {}
static void pack_a_pieces_transposed(const num *X, long numbers, num *out) {}

#endif

/* ---- products of attention ------------------------------------------------------------------- */

/* Attention takes QUERIES queries at a time, and all keys up to the last of these queries. More
 * queries would waste time on keys that most of them do not see. Fewer than 32 are not possible in
 * bfloat16, because a tile has 32 inputs. `depth`, the number of products in a sum, is a multiple
 * of QUERIES. The rows of a B panel follow one another. */

#if BFLOAT16

enum { QUERIES = 32 };

/* C (QUERIES, 16 panels) = A (QUERIES, depth) B. Rows of A are a_row apart, panels of B b_panel. */
static void multiply_queries(const num *A, long a_row, const num *B, long b_panel, int depth,
                             int panels, float *C, long c_row) {
    product(A, a_row, 32, B, b_panel, depth / 32, panels, C, c_row);
}

/* Packs the transpose of X (QUERIES, columns), whose rows are `row` apart, as A tiles that are
 * `tile` apart. */
static void pack_queries(const num *X, long row, int columns, num *out, long tile) {
    pack_a32_transposed(X, row, columns, out, tile);
}

/* C (QUERIES, 16) (+)= A B, a sum over `depth` queries. A has been made by pack_queries. */
static void sum_over_queries(const num *A, long a_tile, const num *B, int depth, float *C,
                             long c_row, int add_old) {
    multiply_transposed(1, A, a_tile, TILE, B, 0, TILE, depth / 32, C, c_row, add_old);
}

#else

enum { QUERIES = 16 };

NOINLINE void multiply_queries(const num *A, long a_row, const num *B, long b_panel, int depth,
                               int panels, float *C, long c_row) {
    multiply_16_rows(A, a_row, 1, B, b_panel, depth, 256, panels, C, c_row, 0);
}

static void pack_queries(const num *X, long row, int columns, num *out, long tile) {
    for (int c = 0; c < columns; c += 16, out += tile)
        for (int i = 0; i < QUERIES; i++) store(out + 16 * i, load(X + i * row + c));
}

NOINLINE void sum_over_queries(const num *A, long a_tile, const num *B, int depth, float *C,
                               long c_row, int add_old) {
    multiply_16_rows(A, 1, 16, B, 0, depth, 128, 1, C, c_row, add_old);
}

#endif

/* ---- exponentials ---------------------------------------------------------------------------- */

#if BFLOAT16

/* 2^x with a relative error of about 3e-6. If 2^x is outside of float32's range, the result is 0 or
 * infinity. A polynomial gives 2^r for the fraction r of x. The polynomial has the least
 * relative error over [0, 1). The whole part of x is added to the exponent. */
INLINE f32x16 vexp2(f32x16 x) {
    f32x16 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    f32x16 y = broadcast(0.0135341384f);
    y = fmadd(y, r, broadcast(0.0520115159f));
    y = fmadd(y, r, broadcast(0.2414427251f));
    y = fmadd(y, r, broadcast(0.6930038333f));
    y = fmadd(y, r, broadcast(1.0000026226f));
    return _mm512_scalef_ps(y, x);
}

/* 1 / (1 + 2^x) with a relative error of about 6e-5, which is much smaller than bfloat16's rounding
 * error. */
INLINE f32x16 inverse_of_1_plus_exp2(f32x16 x) {
    return _mm512_rcp14_ps(add(vexp2(x), broadcast(1.0f)));
}

#else

INLINE f32x16 vexp2(f32x16 x) { return exp2_f32(x); }

/* 1 / (1 + 2^x). Bounds on x are enough here, because 1 + 2^-126 is 1. */
INLINE f32x16 inverse_of_1_plus_exp2(f32x16 x) {
    x = minimum(broadcast(127.0f), maximum(broadcast(-126.0f), x));
    return divide(broadcast(1.0f), add(exp2_in_range(x), broadcast(1.0f)));
}

#endif

/* e^x. Rounding x * LOG2_E adds at most 5e-8 |x| to the relative error of vexp2. */
INLINE f32x16 vexp(f32x16 x) { return vexp2(mul(x, broadcast(LOG2_E))); }

/* 1 / (1 + e^-x). */
INLINE f32x16 sigmoid(f32x16 x) { return inverse_of_1_plus_exp2(mul(x, broadcast(-LOG2_E))); }

/* ln x for a normal number x > 0, with a relative error of about 2e-7. x = m 2^e with m from
 * sqrt(1/2) to sqrt(2). m = (1 + t) / (1 - t), and ln m is a series in t. */
INLINE f32x16 vlog(f32x16 x) {
    const i32x16 bits = bits_of(x);
    const i32x16 whole = shift_right(sub_ints(bits, broadcast_int(0x3f3504f3)), 23);
    const f32x16 e = to_float(whole), m = from_bits(sub_ints(bits, shift_left(whole, 23)));
    const f32x16 one = broadcast(1.0f);
    const f32x16 t = divide(sub(m, one), add(m, one)), q = mul(t, t);
    f32x16 y = broadcast(2.0f / 9);
    y = fmadd(y, q, broadcast(2.0f / 7));
    y = fmadd(y, q, broadcast(2.0f / 5));
    y = fmadd(y, q, broadcast(2.0f / 3));
    y = fmadd(y, q, broadcast(2.0f));
    return fmadd(e, broadcast(0.69314718f), mul(y, t));
}

#endif
