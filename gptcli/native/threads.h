/* A team of threads that runs a function. The threads divide the rounds of loops among themselves,
 * and wait for each other at barriers.
 *
 * No library uses OpenMP, because Apple's clang does not have it, and because OpenMP's threads spin
 * while they wait. If another program takes a processor, the spinning threads use up time that the
 * working threads need. Here, a waiting thread spins for 60 microseconds, or only briefly if
 * another program disturbs this one. Then it sleeps until it is woken. Threads take the rounds of a
 * loop one by one, so a thread that loses its processor delays only one round. Results must not
 * depend on which thread computes a round.
 *
 * Each library has its own team. If two threads of a program call a library at once, the second
 * call waits until the first has ended. A call that uses a single thread needs no team, so it never
 * waits. */

#ifndef GPTCLI_THREADS_H
#define GPTCLI_THREADS_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

enum {
    MOST_THREADS = 1 << 10,
    COUNT_MASK = (1 << 11) - 1, /* the bits of a job's number that hold the count of threads */
    OPEN_LOOPS = 16,            /* the most shared loops between two barriers */
    STACK_BYTES = 4 << 20,
    SPIN_NANOSECONDS = 60000, /* how long a waiting thread spins if no other program disturbs it */
    SPINS_DISTURBED = 50,     /* how often a waiting thread checks before it spins or sleeps */
};

/* A number on which threads wait. It has a cache line of its own. A barrier also counts the threads
 * that have arrived. The count shares the number's cache line, so that a barrier moves only one. */
typedef struct {
    _Atomic int value, sleepers, arrived;
    char rest[52];
} __attribute__((aligned(64))) Signal;

/* The number of the next round of a shared loop. It has a cache line of its own. */
typedef struct {
    _Atomic long next;
    char rest[56];
} __attribute__((aligned(64))) Round;

/* A thread that runs the team's function. */
typedef struct {
    int number, count;      /* its number, from 0, and how many threads run the function */
    unsigned barriers;      /* the value of the team's barrier until all threads arrive */
    unsigned loop, cleared; /* how many shared loops began so far, and before the last barrier */
    long next;              /* the next round of a loop, if this is the only thread */
} Worker;

typedef void (*TeamFunction)(void *argument, Worker *worker);

static struct {
    pthread_mutex_t mutex; /* one caller at a time */
    int threads;           /* how many threads the team has started */
    _Atomic int spin;      /* whether waiting threads spin */
    int seen_by_new;       /* the value of job when new threads start: they wait until it changes */
    long switches;         /* forced context switches of the process before the last run */
    TeamFunction function;
    void *argument;
    Signal job, barrier; /* job: a serial number and, in COUNT_MASK, the number of threads */
    Round rounds[OPEN_LOOPS];
} team = {.mutex = PTHREAD_MUTEX_INITIALIZER};

#if defined(__linux__)

static void sleep_while(Signal *s, int old) {
    syscall(SYS_futex, &s->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
}

static void wake_all(Signal *s) {
    syscall(SYS_futex, &s->value, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

#else

static pthread_mutex_t sleep_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t sleep_condition = PTHREAD_COND_INITIALIZER;

static void sleep_while(Signal *s, int old) {
    pthread_mutex_lock(&sleep_mutex);
    while (atomic_load(&s->value) == old) pthread_cond_wait(&sleep_condition, &sleep_mutex);
    pthread_mutex_unlock(&sleep_mutex);
}

static void wake_all(Signal *s) {
    (void)s;
    pthread_mutex_lock(&sleep_mutex);
    pthread_cond_broadcast(&sleep_condition);
    pthread_mutex_unlock(&sleep_mutex);
}

#endif

static inline void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static long nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1000000000L * t.tv_sec + t.tv_nsec;
}

/* Waits until the signal's value is no longer `old`. */
static void wait_while(Signal *s, int old) {
    for (int i = 0; i < SPINS_DISTURBED; i++) {
        if (atomic_load_explicit(&s->value, memory_order_acquire) != old) return;
        pause_briefly();
    }
    if (atomic_load_explicit(&team.spin, memory_order_relaxed))
        for (const long end = nanoseconds() + SPIN_NANOSECONDS; nanoseconds() < end;)
            for (int i = 0; i < 16; i++) {
                if (atomic_load_explicit(&s->value, memory_order_acquire) != old) return;
                pause_briefly();
            }
    atomic_fetch_add(&s->sleepers, 1);
    while (atomic_load(&s->value) == old) sleep_while(s, old);
    atomic_fetch_sub(&s->sleepers, 1);
}

static void set_signal(Signal *s, int value) {
    atomic_store(&s->value, value);
    if (atomic_load(&s->sleepers) > 0) wake_all(s);
}

/* Waits until all threads of the team have called this function. The last thread to arrive resets
 * the round counters of the loops since the previous barrier, so that later loops can use them. */
static void team_barrier(Worker *w) {
    if (w->count == 1) return;
    const unsigned old = w->barriers++;
    if (atomic_fetch_add_explicit(&team.barrier.arrived, 1, memory_order_acq_rel) + 1 < w->count) {
        w->cleared = w->loop;
        wait_while(&team.barrier, (int)old);
        return;
    }
    while (w->cleared != w->loop)
        atomic_store_explicit(&team.rounds[++w->cleared % OPEN_LOOPS].next, 0,
                              memory_order_relaxed);
    atomic_store_explicit(&team.barrier.arrived, 0, memory_order_relaxed);
    set_signal(&team.barrier, (int)w->barriers);
}

static inline long next_round(Worker *w) {
    if (w->count == 1) return w->next++;
    return atomic_fetch_add_explicit(&team.rounds[w->loop % OPEN_LOOPS].next, 1,
                                     memory_order_relaxed);
}

static inline long first_round(Worker *w) {
    w->loop++;
    w->next = 0;
    return next_round(w);
}

/* The loop for (long i = 0; i < n; i++), with its rounds divided among the threads. All threads of
 * the team must reach the loop. No thread waits at the end of the loop: call team_barrier if later
 * code needs the results.
 */
#define SHARED_FOR(w, i, n) for (long i = first_round(w); i < (n); i = next_round(w))

/* The function of a thread of the team: waits for a job, runs it, reports its end, and repeats. */
static void *team_thread(void *number) {
    const int own = (int)(size_t)number;
    int job = team.seen_by_new;
    for (;;) {
        wait_while(&team.job, job);
        job = atomic_load(&team.job.value);
        if (own >= (job & COUNT_MASK)) continue;
        Worker worker = {own, job & COUNT_MASK, (unsigned)atomic_load(&team.barrier.value), 0, 0,
                         0};
        team.function(team.argument, &worker);
        team_barrier(&worker); /* the caller waits here for the shares of all threads */
    }
    return NULL;
}

/* Resets the team in a process made by fork, which has only one thread. Another thread may have
 * been using the team during the fork. */
static void forget_threads(void) {
    memset(&team, 0, sizeof team);
    pthread_mutex_init(&team.mutex, NULL);
#if !defined(__linux__)
    pthread_mutex_init(&sleep_mutex, NULL);
    pthread_cond_init(&sleep_condition, NULL);
#endif
}

/* Runs when the library is loaded. */
__attribute__((constructor)) static void prepare_for_fork(void) {
    pthread_atfork(NULL, NULL, forget_threads);
}

/* Starts threads until the team has `wanted` threads, or as many as the system allows. */
static void start_threads(int wanted) {
    team.seen_by_new = atomic_load(&team.job.value);
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the program's own threads get signals */
    for (; team.threads < wanted; team.threads++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, team_thread, (void *)(size_t)(team.threads + 1)))
            break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* Runs function(argument, worker) in `threads` threads, or in MOST_THREADS if `threads` is larger.
 * If the system refuses to start some of the threads, the others run the function. Returns when all
 * have ended. A call with one thread does not use the team, so several callers can make such calls
 * at the same time. */
static void team_run(int threads, TeamFunction function, void *argument) {
    Worker worker = {0, 1, 0, 0, 0, 0};
    if (threads <= 1) {
        function(argument, &worker);
        return;
    }
    pthread_mutex_lock(&team.mutex);
    threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    if (team.threads < threads - 1) start_threads(threads - 1);
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    team.spin = used.ru_nivcsw - team.switches < 3;
    team.switches = used.ru_nivcsw;
    worker.count = team.threads + 1 < threads ? team.threads + 1 : threads;
    team.function = function;
    team.argument = argument;
    worker.barriers = (unsigned)atomic_load(&team.barrier.value);
    if (worker.count > 1) {
        const unsigned job = (unsigned)atomic_load(&team.job.value) | COUNT_MASK;
        set_signal(&team.job, (int)(job + 1 + worker.count));
    }
    function(argument, &worker);
    team_barrier(&worker);
    pthread_mutex_unlock(&team.mutex);
}

#endif
