/* A load generator that is never the limit: the calls of a publisher, made ready before, sent at a fixed rate.
 *
 * sender SOCKET CALLS_FILE
 * The file holds calls one after the other, each with a line before it: its length, and where in it are the ten digits of
 * the call's number and the nineteen digits of the time. They are sent in turns over one connection to Redis' unix
 * socket. The command `run RATE CALLS` on stdin sends so many, RATE a second, waits for the answers and prints one line of
 * JSON: failed calls, how late a call left at worst, seconds, share of a core, and from due to acknowledged in buckets.
 * An open loop: no call waits for an answer, and each carries the time at which it was due.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common.h"

#define ROOM (1 << 22)     /* of calls that Redis has not taken yet */
#define PATIENCE_NS 30e9   /* for the last answers */
#define TURN_NS 1000000
#define NUMBER 10 /* digits */
#define TIME 19

struct call {
    char *text;
    int length, number_at, time_at;
    unsigned long number;
};
static struct call *calls;
static int call_count, redis;
static char out[ROOM], in[1 << 16], line[256];
static size_t out_from, out_to, line_length;
static unsigned long answered, failed, elements, stale; /* stale: calls of a run before that are not answered yet */
static double interval_ns;
static long long began;

static void load_calls(const char *path) {
    FILE *file = fopen(path, "r");
    struct call call = {0};
    if (!file) die(path);
    while (fscanf(file, "%d %d %d", &call.length, &call.number_at, &call.time_at) == 3) {
        if (fgetc(file) != '\n' || !(call.text = malloc(call.length))) die(path);
        if (fread(call.text, 1, call.length, file) != (size_t)call.length) die(path);
        call.number = 1000000000;
        if (!(calls = realloc(calls, (call_count + 1) * sizeof call))) die(path);
        calls[call_count++] = call;
    }
    fclose(file);
    if (!call_count) die("no calls");
}

static void open_redis(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    redis = socket(AF_UNIX, SOCK_STREAM, 0);
    if (redis < 0 || connect(redis, (struct sockaddr *)&address, sizeof address)) die("connect");
    fcntl(redis, F_SETFL, O_NONBLOCK);
}

static long long due(unsigned long n) { return began + (long long)(n * interval_ns); }

/* True if there was room for it. */
static int add_call(unsigned long n) {
    struct call *call = &calls[n % call_count];
    char digits[TIME + 1];
    if (out_from == out_to) out_from = out_to = 0;
    if (out_to + call->length > ROOM) return 0;
    snprintf(digits, sizeof digits, "%0*lu", NUMBER, ++call->number);
    memcpy(call->text + call->number_at, digits, NUMBER);
    snprintf(digits, sizeof digits, "%lld", EPOCH_NS + due(n));
    memcpy(call->text + call->time_at, digits, TIME);
    memcpy(out + out_to, call->text, call->length);
    out_to += call->length;
    return 1;
}

static void write_calls(void) {
    while (out_from < out_to) {
        ssize_t wrote = write(redis, out + out_from, out_to - out_from);
        if (wrote > 0) out_from += wrote;
        else if (errno == EAGAIN) return;
        else if (errno != EINTR) die("write");
    }
}

/* A line of an answer: `*5`, then `$2`, `ok`, and three or four more, each after its `$`; or `-` and an error's text. None
 * of them holds a line break. */
static void take_line(void) {
    static int first, text;
    int whole = 0;
    if (!elements) {
        if (line[0] == '*') elements = atol(line + 1), first = 1;
        else whole = 1, failed++;
    } else if (!text && line[0] == '$' && line[1] != '-') {
        text = 1;
    } else {
        failed += first && strcmp(line, "ok");
        first = text = 0;
        whole = !--elements;
    }
    if (whole && stale) stale--;
    else if (whole) count_delay(now_ns() - due(answered++));
}

static void read_answers(void) {
    ssize_t got;
    while ((got = read(redis, in, sizeof in)) > 0)
        for (ssize_t i = 0; i < got; i++) {
            if (in[i] == '\n') {
                line[line_length] = 0;
                take_line();
                line_length = 0;
            } else if (in[i] != '\r' && line_length < sizeof line - 1) {
                line[line_length++] = in[i];
            }
        }
    if (got == 0 || (errno != EAGAIN && errno != EINTR)) die("Redis is gone");
}

static void run(double rate, unsigned long count) {
    const struct timespec pause = {.tv_nsec = TURN_NS};
    double cpu = cpu_seconds();
    long long late = 0, now = now_ns();
    unsigned long sent = 0;
    answered = failed = 0;
    memset(buckets, 0, sizeof buckets);
    interval_ns = 1e9 / rate;
    began = now;
    while (answered < count && (sent < count || now < due(count) + PATIENCE_NS)) {
        while (sent < count && due(sent) <= now && add_call(sent)) {
            if (now - due(sent) > late) late = now - due(sent);
            sent++;
        }
        write_calls();
        read_answers();
        if (answered < count) nanosleep(&pause, NULL);
        now = now_ns();
    }
    stale += sent - answered;
    double seconds = (now - began) / 1e9;
    printf("{\"failed\":%lu,\"late_ms\":%.3f,\"seconds\":%.6f,\"core\":%.6f,", failed + count - answered, late / 1e6, seconds,
           (cpu_seconds() - cpu) / seconds);
    print_buckets();
    printf("}\n");
}

int main(int argc, char **argv) {
    char command[256];
    double rate;
    unsigned long count;
    if (argc != 3) return 2;
    load_calls(argv[2]);
    open_redis(argv[1]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(command, sizeof command, stdin) && sscanf(command, "run %lf %lu", &rate, &count) == 2) run(rate, count);
    return 0;
}
