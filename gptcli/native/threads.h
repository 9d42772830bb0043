/* A team of threads that runs a function. Threads share the rounds of loops, and wait at barriers.
 *
 * OpenMP is not used here, because Apple's clang does not have it, and because OpenMP's threads
 * spin while they wait. If another program takes a processor, the spinning threads use up time that
 * the working threads need. Here, a waiting thread spins for 60 microseconds if no other program
 * disturbs this one (else only briefly), and then sleeps until it is woken. Threads take the rounds
 * of a loop one by one, so a thread that loses its processor delays only one round. Results must
 * not depend on which thread computes a round. */

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
    SPIN_NANOSECONDS = 60000, /* how long a waiting thread spins if undisturbed */
    SPINS_DISTURBED = 50,     /* how often it checks the signal before that, also if disturbed */
};

/* A number on which threads wait. It has a cache line of its own. */
typedef struct {
    _Atomic int value, sleepers;
    char rest[56];
} __attribute__((aligned(64))) Signal;

/* The number of the next round of a shared loop. It has a cache line of its own. */
typedef struct {
    _Atomic long next;
    char rest[56];
} __attribute__((aligned(64))) Round;

/* A thread that runs the team's function. */
typedef struct {
    int number;    /* from 0 */
    unsigned loop; /* how many shared loops it has begun */
} Worker;

typedef void (*TeamFunction)(void *argument, Worker *worker);

static struct {
    pthread_mutex_t mutex; /* one caller at a time */
    int threads;           /* threads that exist, without the callers */
    int count;             /* threads that run the function, with the caller */
    int spin;              /* whether waiting threads spin */
    int seen_by_new;       /* the value of job when threads start; they wait for another value */
    long switches;         /* forced context switches of the process before the last run */
    TeamFunction function;
    void *argument;
    Signal job, barrier; /* job: a serial number and, in COUNT_MASK, the number of threads */
    _Atomic int arrived;
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
    if (team.spin)
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

/* Waits until all threads of the team have called this. */
static void team_barrier(void) {
    if (team.count == 1) {
        for (int i = 0; i < OPEN_LOOPS; i++) atomic_store(&team.rounds[i].next, 0);
        return;
    }
    const int old = atomic_load(&team.barrier.value);
    if (atomic_fetch_add(&team.arrived, 1) + 1 < team.count) {
        wait_while(&team.barrier, old);
        return;
    }
    atomic_store(&team.arrived, 0);
    for (int i = 0; i < OPEN_LOOPS; i++) atomic_store(&team.rounds[i].next, 0);
    set_signal(&team.barrier, old + 1);
}

static inline long next_round(const Worker *w) {
    return atomic_fetch_add_explicit(&team.rounds[w->loop % OPEN_LOOPS].next, 1,
                                     memory_order_relaxed);
}

static inline long first_round(Worker *w) {
    w->loop++;
    return next_round(w);
}

/* The loop for (long i = 0; i < n; i++), whose rounds the threads share. All threads of the team
 * must reach the loop. They do not wait at its end: call team_barrier if later code needs the
 * results.
 */
#define SHARED_FOR(w, i, n) for (long i = first_round(w); i < (n); i = next_round(w))

/* The function of a thread of the team: waits for a job, runs it, reports its end, and repeats. */
static void *team_thread(void *number) {
    Worker worker = {(int)(size_t)number, 0};
    int job = team.seen_by_new;
    for (;;) {
        wait_while(&team.job, job);
        job = atomic_load(&team.job.value);
        if (worker.number >= (job & COUNT_MASK)) continue;
        worker.loop = 0;
        team.function(team.argument, &worker);
        team_barrier(); /* tells the caller that all threads have ended */
    }
    return NULL;
}

/* Resets the team in a process made by fork, which has only one thread. */
static void forget_threads(void) {
    team.threads = 0;
    team.arrived = 0;
    memset(&team.job, 0, sizeof team.job);
    memset(&team.barrier, 0, sizeof team.barrier);
    pthread_mutex_init(&team.mutex, NULL);
}

/* Starts threads until the team has `wanted` threads, or as many as the system allows. */
static void start_threads(int wanted) {
    static int registered;
    if (!registered) pthread_atfork(NULL, NULL, forget_threads), registered = 1;
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

/* Runs function(argument, worker) in `threads` threads, at most MOST_THREADS, or in fewer if the
 * system allows no more. Returns when all have ended. */
static void team_run(int threads, TeamFunction function, void *argument) {
    pthread_mutex_lock(&team.mutex);
    threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    if (team.threads < threads - 1) start_threads(threads - 1);
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    team.spin = used.ru_nivcsw - team.switches < 3;
    team.switches = used.ru_nivcsw;
    team.count = team.threads + 1 < threads ? team.threads + 1 : threads;
    team.function = function;
    team.argument = argument;
    Worker worker = {0, 0};
    if (team.count > 1) {
        const unsigned job = (unsigned)atomic_load(&team.job.value) | COUNT_MASK;
        set_signal(&team.job, (int)(job + 1 + team.count));
    }
    function(argument, &worker);
    team_barrier();
    pthread_mutex_unlock(&team.mutex);
}

#endif
