/* What the C programs of the benchmarks share: time, and a histogram that `bench.harness.Histogram` reads. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define BUCKETS 400
#define GROWTH 1.05 /* bucket n: from GROWTH^n to GROWTH^(n+1) microseconds */
#define EPOCH_NS 1000000000000000000LL /* may be added to a time, so that all of them have nineteen digits */

static unsigned long buckets[BUCKETS];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void count_delay(long long ns) {
    double us = ns / 1000.0;
    int bucket = us <= 1 ? 0 : (int)(log(us) / log(GROWTH));
    buckets[bucket >= BUCKETS ? BUCKETS - 1 : bucket]++;
}

static void print_buckets(void) {
    int last = BUCKETS;
    while (last > 0 && !buckets[last - 1]) last--;
    printf("\"buckets\":[");
    for (int i = 0; i < last; i++) printf(i ? ",%lu" : "%lu", buckets[i]);
    printf("]");
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}
