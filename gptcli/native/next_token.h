/* Logits -> token, as gptcli.sampling.next_token does it. */

#ifndef GPTCLI_CHOOSE_H
#define GPTCLI_CHOOSE_H

#include <stdlib.h>

#include "lanes.h"

typedef struct {
    double temperature, top_p, min_p, penalty; /* top_p 1, min_p 0, penalty 1: nothing */
    int32_t top_k;                             /* 0: all */
} How;

typedef struct {
    float logit;
    int32_t token;
} Candidate;

/* Memory for the choice among V tokens, V padded to 16. */
typedef struct {
    float *logits, *weights;
    Candidate *candidates;
} Choosing;

/* The k-th largest of n numbers, k from 1 on; they are moved about. */
static float kth_largest(float *x, long n, long k) {
    long low = 0, high = n - 1, goal = k - 1;
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
        if (goal <= j)
            high = j;
        else if (goal >= i)
            low = i;
        else
            break;
    }
    return x[goal];
}

static int likelier(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token - y->token;
}

/* weights = e^(logits - top); their sum. */
static double weigh(const float *logits, int V, float top, float *weights) {
    const v16 shift = all(top);
    double total = 0.0;
    for (int v = 0; v < V; v += LANES) {
        v16 e = exp_of(load(logits + v) - shift);
        e = either(LANE + v < V, e, all(0.0f));
        store(weights + v, e);
        for (int i = 0; i < LANES; i++) total += e[i];
    }
    return total;
}

static float top_of(const float *logits, int V) {
    v16 most = all(-INFINITY);
    for (int v = 0; v < V; v += LANES)
        most = larger(either(LANE + v < V, load(logits + v), all(-INFINITY)), most);
    return largest_of(most);
}

/* -infinity for all but the fewest tokens whose probabilities reach p. */
static void keep_top_p(float *logits, int V, float top, double p, const Choosing *c) {
    const double goal = p * weigh(logits, V, top, c->weights);
    for (long most = 64;; most *= 8) { /* few tokens as a rule: only the largest are sorted */
        float least = -INFINITY;
        if (most < V) {
            memcpy(c->weights, logits, V * sizeof(float));
            least = kth_largest(c->weights, V, most);
        }
        long n = 0;
        for (int v = 0; v < V; v++)
            if (logits[v] >= least) c->candidates[n++] = (Candidate){logits[v], v};
        qsort(c->candidates, n, sizeof(Candidate), likelier);
        double before = 0.0;
        long kept = 0;
        while (kept < n && (kept == 0 || before < goal)) {
            const v16 e = exp_of(all(c->candidates[kept++].logit - top));
            before += e[0];
        }
        if (kept == n && most < V) continue;
        for (int v = 0; v < V; v++) c->weights[v] = -INFINITY;
        for (long i = 0; i < kept; i++) c->weights[c->candidates[i].token] = c->candidates[i].logit;
        memcpy(logits, c->weights, V * sizeof(float));
        return;
    }
}

/* One of V tokens; `uniform` from 0 to below 1 decides. seen: V bytes, or NULL. */
static int choose(const float *given, int V, const How *how, double uniform, const uint8_t *seen,
                  const Choosing *c) {
    float *logits = c->logits;
    memcpy(logits, given, V * sizeof(float));
    if (how->penalty != 1.0) {
        const float penalty = (float)how->penalty;
        for (int v = 0; v < V; v++)
            if (seen[v]) logits[v] = logits[v] > 0 ? logits[v] / penalty : logits[v] * penalty;
    }
    if (how->temperature < 1e-6) {
        const float top = top_of(logits, V);
        for (int v = 0; v < V; v++)
            if (logits[v] == top) return v;
        return 0; /* not numbers */
    }
    const v16 over = all((float)how->temperature);
    for (int v = 0; v < V; v += LANES) store(logits + v, load(logits + v) / over);
    if (how->top_k && how->top_k < V) {
        memcpy(c->weights, logits, V * sizeof(float));
        const float least = kth_largest(c->weights, V, how->top_k);
        for (int v = 0; v < V; v++)
            if (logits[v] < least) logits[v] = -INFINITY;
    }
    const float top = top_of(logits, V);
    if (how->top_p < 1.0) keep_top_p(logits, V, top, how->top_p, c);
    double total = weigh(logits, V, top, c->weights);
    if (how->min_p > 0.0) { /* the likeliest weighs 1 */
        total = 0.0;
        for (int v = 0; v < V; v++) {
            if (c->weights[v] < how->min_p) c->weights[v] = 0.0f;
            total += c->weights[v];
        }
    }
    const double point = uniform * total;
    double passed = 0.0;
    int last = 0;
    for (int v = 0; v < V; v++) {
        if (c->weights[v] <= 0) continue;
        passed += c->weights[v];
        last = v;
        if (passed > point) break;
    }
    return last;
}

#endif
