/* The floor under every fan-out: one process that writes the same bytes to n sockets, and does nothing else.
 *
 * writeloop PAYLOAD_FILE SNDBUF
 * Prints "port <n>". Accepts every connection, reads its request and answers with HEAD, or with SWITCH if it asks for a
 * WebSocket. Commands on stdin:
 *   run RECORDS INTERVAL_US   write the payload to every socket, RECORDS times; prints "ran <records> <cpu_us>"
 *   end
 * INTERVAL_US 0: as fast as the sockets take it. A full socket is waited for, and the waiting is part of the price.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 20000
#define LONGEST (1 << 20)
static const char HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                           "8\r\n: hello\n\r\n";
static const char SWITCH[] = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n";
static int sockets[MOST], connected;
static char payload[LONGEST], request[65536];
static ssize_t size;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void write_all(int fd, const char *bytes, ssize_t left) {
    while (left > 0) {
        ssize_t wrote = write(fd, bytes, left);
        if (wrote > 0) {
            bytes += wrote;
            left -= wrote;
        } else if (wrote < 0 && errno == EAGAIN) {
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            poll(&wait, 1, 1000);
        } else if (errno != EINTR) {
            return; /* the reader is gone */
        }
    }
}

static void take(int listening, int sndbuf) {
    int fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK), one = 1;
    if (fd < 0) return;
    if (connected == MOST) {
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (sndbuf) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &sndbuf, sizeof sndbuf);
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    poll(&wait, 1, 5000);
    ssize_t got = read(fd, request, sizeof request - 1);
    if (got <= 0) {
        close(fd);
        return;
    }
    request[got] = 0;
    if (strstr(request, "Upgrade: websocket")) write_all(fd, SWITCH, sizeof SWITCH - 1);
    else write_all(fd, HEAD, sizeof HEAD - 1);
    sockets[connected++] = fd;
}

static long used_us(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000L + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

static void run(long records, long interval_us) {
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    long before = used_us();
    for (long record = 0; record < records; record++) {
        for (int i = 0; i < connected; i++) write_all(sockets[i], payload, size);
        if (!interval_us) continue;
        due.tv_nsec += interval_us * 1000;
        due.tv_sec += due.tv_nsec / 1000000000;
        due.tv_nsec %= 1000000000;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
    }
    printf("ran %ld %ld\n", records, used_us() - before);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int file = open(argv[1], O_RDONLY);
    if (file < 0 || (size = read(file, payload, LONGEST)) <= 0) die(argv[1]);
    close(file);
    setvbuf(stdout, NULL, _IOLBF, 0);
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listening, (struct sockaddr *)&address, length) || listen(listening, 4096)) die("listen");
    getsockname(listening, (struct sockaddr *)&address, &length);
    printf("port %d\n", ntohs(address.sin_port));
    struct pollfd waits[2] = {{.fd = 0, .events = POLLIN}, {.fd = listening, .events = POLLIN}};
    char line[256];
    for (;;) {
        if (poll(waits, 2, -1) < 0 && errno != EINTR) die("poll");
        if (waits[1].revents & POLLIN) take(listening, atoi(argv[2]));
        if (!(waits[0].revents & (POLLIN | POLLHUP))) continue;
        ssize_t got = read(0, line, sizeof line - 1);
        long records, interval_us;
        if (got <= 0) return 0;
        line[got] = 0;
        if (sscanf(line, "run %ld %ld", &records, &interval_us) == 2) run(records, interval_us);
        else return 0;
    }
}
