/* Chooses the next token from logits: repetition penalty, temperature, top-k, top-p, min-p.
 *
 * The operations and their order are those of choose_token in gptcli/sampling/next_token.py. V is
 * the size of the vocabulary. Arrays of V numbers have room for V rounded up to 16. */

#ifndef GPTCLI_NEXT_TOKEN_H
#define GPTCLI_NEXT_TOKEN_H

#include <stdlib.h>

#include "../vectors/lanes.h"

/* The sampling parameters. SamplingParamsStruct in library.py mirrors this struct. */
typedef struct {
    double temperature, top_p, min_p, penalty; /* top_p 1, min_p 0 or penalty 1 has no effect */
    int32_t top_k;                             /* 0: all tokens */
} SamplingParams;

/* library.py compares this size with that of SamplingParamsStruct. */
int sampling_params_bytes(void) { return sizeof(SamplingParams); }

typedef struct {
    float logit;
    int32_t token;
} Candidate;

/* A thread's scratch for the choice: V numbers in each array. */
typedef struct {
    float *logits, *weights;
    Candidate *candidates;
} ChoiceScratch;

/* The k-th largest of n numbers, k from 1 to n, by quickselect. Reorders x. */
static float kth_largest(float *x, long n, long k) {
    long low = 0, high = n - 1, target = k - 1;
    while (low < high) {
        const float pivot = x[low + (high - low) / 2];
        long i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                const float t = x[i];
                x[i++] = x[j], x[j--] = t;
            }
        }
        if (target <= j)
            high = j;
        else if (target >= i)
            low = i;
        else
            break;
    }
    return x[target];
}

/* The order for qsort: larger logits first. Of equal logits, the smaller token comes first. */
static int by_falling_logit(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token - y->token;
}

/* weights = e^(logits - top): the probabilities before division by their sum. Returns this sum. */
static double exp_weights(const float *logits, int V, float top, float *weights) {
    const v16 shift = broadcast(top);
    double total = 0.0;
    for (int v = 0; v < V; v += LANES) {
        v16 e = v16_exp(load(logits + v) - shift);
        e = blend(LANE_INDEX + v < V, e, broadcast(0.0f));
        store(weights + v, e);
        for (int i = 0; i < LANES; i++) total += e[i];
    }
    return total;
}

/* The largest of V logits. */
static float largest_logit(const float *logits, int V) {
    v16 largest = broadcast(-INFINITY);
    for (int v = 0; v < V; v += LANES)
        largest = lanewise_max(blend(LANE_INDEX + v < V, load(logits + v), broadcast(-INFINITY)),
                               largest);
    return max_lane(largest);
}

/* Cuts at top-p: keeps the fewest logits whose probabilities add up to at least p, and sets all
 * others to -infinity. */
static void keep_top_p(float *logits, int V, float top, double p, const ChoiceScratch *c) {
    const double target = p * exp_weights(logits, V, top, c->weights);
    /* A few tokens are usually enough, so at first only the `limit` largest logits are sorted. */
    for (long limit = 64;; limit *= 8) {
        float threshold = -INFINITY;
        if (limit < V) {
            memcpy(c->weights, logits, V * sizeof(float));
            threshold = kth_largest(c->weights, V, limit);
        }
        long n = 0;
        for (int v = 0; v < V; v++)
            if (logits[v] >= threshold) c->candidates[n++] = (Candidate){logits[v], v};
        qsort(c->candidates, n, sizeof(Candidate), by_falling_logit);
        double cumulative = 0.0;
        long kept = 0;
        while (kept < n && (kept == 0 || cumulative < target)) {
            const v16 e = v16_exp(broadcast(c->candidates[kept++].logit - top));
            cumulative += e[0];
        }
        if (kept == n && limit < V) continue;
        for (int v = 0; v < V; v++) c->weights[v] = -INFINITY;
        for (long i = 0; i < kept; i++) c->weights[c->candidates[i].token] = c->candidates[i].logit;
        memcpy(logits, c->weights, V * sizeof(float));
        return;
    }
}

/* The entry of a token that would make the text invalid, in a table of UTF-8 states. Its name in
 * Python is INVALID. */
enum { NOT_UTF8 = 255 };

/* Chooses a token, 0 to V - 1: the first one whose cumulative probability exceeds `uniform`, a
 * number in [0, 1). If the temperature is below 1e-6, chooses the likeliest token. seen: a byte for
 * each token, 1 if the token gets the penalty; NULL if there is no penalty. after: a byte for each
 * token, NOT_UTF8 if the token is forbidden; NULL if all tokens are allowed. */
static int choose_token(const float *raw_logits, int V, const SamplingParams *params,
                        double uniform, const uint8_t *seen, const uint8_t *after,
                        const ChoiceScratch *c) {
    float *logits = c->logits;
    memcpy(logits, raw_logits, V * sizeof(float));
    if (params->penalty != 1.0) {
        const float penalty = (float)params->penalty;
        for (int v = 0; v < V; v++)
            if (seen[v]) logits[v] = logits[v] > 0 ? logits[v] / penalty : logits[v] * penalty;
    }
    if (after)
        for (int v = 0; v < V; v++)
            if (after[v] == NOT_UTF8) logits[v] = -INFINITY;
    if (params->temperature < 1e-6) {
        const float top = largest_logit(logits, V);
        for (int v = 0; v < V; v++)
            if (logits[v] == top) return v;
        return 0; /* all logits are NaN */
    }
    const v16 temperature = broadcast((float)params->temperature);
    for (int v = 0; v < V; v += LANES) store(logits + v, load(logits + v) / temperature);
    if (params->top_k && params->top_k < V) {
        memcpy(c->weights, logits, V * sizeof(float));
        const float threshold = kth_largest(c->weights, V, params->top_k);
        for (int v = 0; v < V; v++)
            if (logits[v] < threshold) logits[v] = -INFINITY;
    }
    const float top = largest_logit(logits, V);
    if (params->top_p < 1.0) keep_top_p(logits, V, top, params->top_p, c);
    double total = exp_weights(logits, V, top, c->weights);
    if (params->min_p > 0.0) { /* the likeliest token has weight 1 */
        total = 0.0;
        for (int v = 0; v < V; v++) {
            if (c->weights[v] < params->min_p) c->weights[v] = 0.0f;
            total += c->weights[v];
        }
    }
    const double target = uniform * total;
    double cumulative = 0.0;
    int last = 0;
    for (int v = 0; v < V; v++) {
        if (c->weights[v] <= 0) continue;
        cumulative += c->weights[v];
        last = v;
        if (cumulative > target) break;
    }
    return last;
}

/* Chooses a token that the array `after` allows. The first choice ignores the array. If the first
 * choice is a forbidden token, a second choice takes only allowed tokens. The random number of the
 * second choice is the lower 27 of the 53 bits of `uniform`. So the array changes the text of a
 * seed only if a first choice is a forbidden token. */
static int choose_valid_token(const float *raw_logits, int V, const SamplingParams *params,
                              double uniform, const uint8_t *seen, const uint8_t *after,
                              const ChoiceScratch *c) {
    const int token = choose_token(raw_logits, V, params, uniform, seen, NULL, c);
    if (!after || after[token] != NOT_UTF8) return token;
    const double shifted = uniform * (1 << 26);
    return choose_token(raw_logits, V, params, shifted - floor(shifted), seen, after, c);
}

#endif
