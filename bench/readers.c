/* The audience: n SSE or WebSocket connections read by one epoll loop, every event counted, every id checked.
 *
 * readers PORT CONNECTIONS MODE REQUEST_FILE [SO_RCVBUF]
 * The file holds one request or several, each ended by an empty line; connection i sends number i modulo their number.
 * Prints "ready" when each was answered: with its first event or comment; over WebSocket with its first message, in MODE
 * "count" with the 101.
 * MODE "chain": ids are `<ms>-<seq>`, and in each connection seq has to grow by one; a jump is missing, a step back
 * duplicate. MODE "count": events are counted only. Nothing is read between two commands. Commands on stdin:
 *   expect EVENTS SECONDS   wait until every connection has EVENTS more; prints one line of JSON
 *   since EVENTS SECONDS    as expect, but counted and timed from before the first connection was opened
 *   slow BYTES SECONDS      for so long, read so many bytes a second of every connection; what it brings counts for the
 *                           `rest` that has to follow; prints nothing
 *   rest EVENTS SECONDS     as expect, but counted from the beginning of the `slow` before
 *   `short` is how many connections have fewer
 *   end
 * A line that is only a carriage return ends an HTTP chunk: their number is how many writes the server made of it.
 * A member `"t":<CLOCK_MONOTONIC ns, perhaps + EPOCH_NS>` in the data gives the delay of the delivery, kept in buckets of 5 %.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common.h"

#define PREFIX 320 /* of a line that is split between two reads; enough for the ids and the start of the data */
enum { LINES, SWITCHING, FRAMES }; /* SSE or the head of an answer; the head of a 101; what follows it */
struct reader {
    int fd;
    unsigned long seq, events, before;
    int split; /* bytes of the line or message in progress that were kept */
    int ready; /* was answered */
    int closed;
    int state;
    int header;          /* bytes of a frame's header so far */
    unsigned long left;  /* of the frame's payload */
    unsigned char head[10];
    char kept[PREFIX];
};
static struct reader *readers;
static int connections, chain, ready_count, closed_count, receive_buffer;
static unsigned long events, missing, duplicate, reads, chunks;
static char buffer[1 << 18], *requests, **request;
static int request_count;

static void delay(const char *line, size_t length) {
    const char *stamp = memmem(line, length, "\"t\":", 4);
    if (!stamp || (size_t)(line + length - stamp) < 24) return;
    count_delay(now_ns() - atoll(stamp + 4) % EPOCH_NS);
}

static void check_id(struct reader *reader, const char *line, size_t length) {
    const char *dash = memchr(line, '-', length);
    if (!dash) return;
    unsigned long seq = 0, next = reader->seq + 1;
    for (const char *digit = dash + 1; digit < line + length && *digit >= '0' && *digit <= '9'; digit++)
        seq = seq * 10 + (*digit - '0');
    if (seq > next && reader->seq) missing += seq - next;
    if (seq < next && reader->events) duplicate++;
    reader->seq = seq;
}

static void answered(struct reader *reader) {
    ready_count += !reader->ready;
    reader->ready = 1;
}

/* A line without its line feed. Chunk headers are lines of their own, and mean nothing here. */
static void take_line(struct reader *reader, const char *line, size_t length) {
    if (!length) return;
    if (line[0] == ':' || !memcmp(line, "event: stream.open", length < 18 ? length : 18)) answered(reader);
    if (length > 12 && !memcmp(line, "HTTP/1.1 101", 12)) {
        reader->state = SWITCHING;
        if (!chain) answered(reader);
    } else if (length == 1 && line[0] == '\r') {
        if (reader->state == SWITCHING) reader->state = FRAMES;
        else chunks++;
    } else if (length > 4 && !memcmp(line, "id: ", 4)) {
        if (chain) check_id(reader, line, length);
    } else if (length > 6 && !memcmp(line, "data: ", 6)) {
        if (memmem(line, length < 40 ? length : 40, "\"control\"", 9)) return;
        reader->events++;
        events++;
        delay(line, length);
    }
}

/* A whole message, or as much of it as was kept. */
static void take_message(struct reader *reader, const char *text, size_t length) {
    answered(reader);
    if ((reader->head[0] & 15) != 1 || memmem(text, length < 20 ? length : 20, "\"control\"", 9)) return;
    if (chain) check_id(reader, text, length);
    reader->events++;
    events++;
    delay(text, length);
}

/* True when the header is whole: `left` is the payload's length then. A server's frames are not masked. */
static int take_header(struct reader *reader, unsigned char byte) {
    reader->head[reader->header++] = byte;
    if (reader->header < 2) return 0;
    int size = reader->head[1] & 127, extra = size == 126 ? 2 : size == 127 ? 8 : 0;
    if (reader->header < 2 + extra) return 0;
    reader->left = extra ? 0 : size;
    for (int i = 0; i < extra; i++) reader->left = reader->left << 8 | reader->head[2 + i];
    return 1;
}

static void take_frames(struct reader *reader, const char *bytes, size_t left) {
    while (left) {
        if (!reader->left) {
            left--;
            if (!take_header(reader, *bytes++)) continue;
            reader->header = reader->split = 0;
            if (!reader->left) take_message(reader, reader->kept, 0);
            continue;
        }
        size_t part = left < reader->left ? left : reader->left;
        if (!reader->split && part == reader->left) {
            take_message(reader, bytes, part);
        } else {
            size_t room = PREFIX - reader->split, keep = part < room ? part : room;
            memcpy(reader->kept + reader->split, bytes, keep);
            reader->split += keep;
            if (part == reader->left) take_message(reader, reader->kept, reader->split);
        }
        reader->left -= part;
        bytes += part;
        left -= part;
    }
}

static void take(struct reader *reader, char *bytes, size_t left) {
    while (left) {
        if (reader->state == FRAMES) {
            take_frames(reader, bytes, left);
            return;
        }
        char *end = memchr(bytes, '\n', left);
        size_t length = end ? (size_t)(end - bytes) : left;
        if (reader->split || !end) {
            size_t room = PREFIX - reader->split, part = length < room ? length : room;
            memcpy(reader->kept + reader->split, bytes, part);
            reader->split += part;
            if (end) take_line(reader, reader->kept, reader->split);
            if (end) reader->split = 0;
        } else {
            take_line(reader, bytes, length);
        }
        if (!end) return;
        left -= length + 1;
        bytes = end + 1;
    }
}

/* The requests of a file: each ends with an empty line. */
static void load_requests(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file || fseek(file, 0, SEEK_END)) die(path);
    long size = ftell(file);
    rewind(file);
    if (size <= 0 || !(requests = calloc(1, size + 1)) || fread(requests, 1, size, file) != (size_t)size) die(path);
    fclose(file);
    for (char *at = requests, *end; (end = strstr(at, "\r\n\r\n")); at = end + 4) {
        if (!(request = realloc(request, (request_count + 2) * sizeof *request))) die(path);
        request[request_count++] = at;
        request[request_count] = end + 4;
    }
    if (!request_count) die("no request");
}

static void open_reader(struct reader *reader, int port, int number) {
    const char *text = request[number % request_count];
    ssize_t length = request[number % request_count + 1] - text;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    reader->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (receive_buffer) setsockopt(reader->fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    if (reader->fd < 0 || connect(reader->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    if (write(reader->fd, text, length) != length) die("request");
    fcntl(reader->fd, F_SETFL, O_NONBLOCK);
}

/* One turn: read what is there. When nothing is, sleep, but not in epoll_wait: a reader that waits there is woken by the
 * writer, inside of its write(), and whoever writes slowly enough to let it wait pays that for every single record. Real
 * clients are on other machines. */
static void turn(int poller) {
    struct epoll_event happened[512];
    const struct timespec pause = {.tv_nsec = 1000000};
    int n = epoll_wait(poller, happened, 512, 0);
    if (n <= 0) nanosleep(&pause, NULL);
    for (int i = 0; i < n; i++) {
        struct reader *reader = &readers[happened[i].data.u32];
        ssize_t got = read(reader->fd, buffer, sizeof buffer);
        reads++;
        if (got > 0) take(reader, buffer, got);
        else if (got == 0 || errno != EAGAIN) {
            epoll_ctl(poller, EPOLL_CTL_DEL, reader->fd, NULL);
            reader->closed = 1;
            closed_count++;
        }
    }
}

/* Readers on a bad line: every tenth of a second a tenth of what they may. */
static void read_slowly(unsigned long each, double seconds) {
    const struct timespec pause = {.tv_nsec = 100000000};
    size_t part = each / 10 < sizeof buffer ? each / 10 : sizeof buffer;
    for (long long end = now_ns() + (long long)(seconds * 1e9); now_ns() < end; nanosleep(&pause, NULL))
        for (int i = 0; i < connections; i++) {
            ssize_t got = read(readers[i].fd, buffer, part);
            if (got > 0) take(&readers[i], buffer, got);
        }
}

static void report(double seconds, unsigned long each) {
    int low = 0;
    for (int i = 0; i < connections; i++) low += readers[i].events - readers[i].before < each;
    printf("{\"events\":%lu,\"missing\":%lu,\"duplicate\":%lu,\"closed\":%d,\"short\":%d,\"reads\":%lu,\"chunks\":%lu,\"seconds\":%.6f,\"cpu\":%.6f,",
           events, missing, duplicate, closed_count, low, reads, chunks, seconds, cpu_seconds());
    print_buckets();
    printf("}\n");
}

/* Who was closed gets no more: nobody waits for those. */
static int is_short(unsigned long each) {
    for (int i = 0; i < connections; i++)
        if (!readers[i].closed && readers[i].events - readers[i].before < each) return 1;
    return 0;
}

static void expect(int poller, unsigned long each, double seconds, long long from) {
    unsigned long total = each * connections;
    while ((now_ns() - from) / 1e9 < seconds && ((!closed_count && events < total) || is_short(each)))
        turn(poller);
    long long end = now_ns();
    turn(poller); /* one event too many is worth seeing */
    report((end - from) / 1e9, each);
}

static void begin(void) {
    events = missing = duplicate = reads = chunks = 0;
    memset(buckets, 0, sizeof buckets);
    for (int i = 0; i < connections; i++) readers[i].before = readers[i].events;
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6) return 2;
    receive_buffer = argc == 6 ? atoi(argv[5]) : 0;
    connections = atoi(argv[2]);
    chain = !strcmp(argv[3], "chain");
    int poller = epoll_create1(0);
    if (poller < 0 || !(readers = calloc(connections, sizeof *readers))) die("start");
    load_requests(argv[4]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    long long started = now_ns();
    for (int i = 0; i < connections; i++) {
        struct epoll_event want = {.events = EPOLLIN, .data.u32 = i};
        open_reader(&readers[i], atoi(argv[1]), i);
        epoll_ctl(poller, EPOLL_CTL_ADD, readers[i].fd, &want);
        if (i % 50 == 49) turn(poller);
    }
    while (ready_count < connections && closed_count == 0 && now_ns() - started < 180000000000LL) turn(poller);
    printf("%s %d %d\n", ready_count == connections ? "ready" : "failed", ready_count, closed_count);
    char line[256], command[16];
    while (fgets(line, sizeof line, stdin)) {
        unsigned long each;
        double seconds;
        if (sscanf(line, "%15s %lu %lf", command, &each, &seconds) != 3) break;
        int since = !strcmp(command, "since"), slow = !strcmp(command, "slow");
        if (!since && strcmp(command, "rest")) begin();
        if (slow) read_slowly(each, seconds);
        else expect(poller, each, seconds, since ? started : now_ns());
    }
    return 0;
}
