/* What all vector code shares: inlining, unrolling, the type of bfloat16, the number of lanes,
 * prefetching. */

#ifndef GPTCLI_BASICS_H
#define GPTCLI_BASICS_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

/* Unrolls the whole loop that follows, which has at most n rounds. */
#define AS_TEXT(x) #x
#if defined(__clang__)
#define UNROLL(n) _Pragma("clang loop unroll(full)")
#else
#define UNROLL(n) _Pragma(AS_TEXT(GCC unroll n))
#endif

/* A bfloat16 number is stored as its bits. */
typedef uint16_t bf16;

enum { LANES = 16 };

/* The smallest multiple of m that is at least n. */
static inline long round_up(long n, long m) { return (n + m - 1) / m * m; }

/* Starts to load memory into the first-level cache before it is needed. */
INLINE void prefetch(const char *p, long bytes) {
    for (long i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 3);
}

/* Starts to load memory into the second-level cache. Call it before code that reads
 * memory out of order. */
static inline void prefetch_l2(const void *p, long bytes) {
    for (long i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i, 0, 2);
}

#endif
