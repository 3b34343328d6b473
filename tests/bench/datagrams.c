/*
 * datagrams: the two ends of what is measured of UDP.
 *
 *     datagrams receive up|down ADDRESS PORT BYTES TRAIN
 *     datagrams send up|down ADDRESS PORT BYTES TRAIN MBITS WARM_UP SECONDS
 *                                                         as fast as it goes, if MBITS is 0
 *     datagrams answer ADDRESS PORT                       bytes or queries, until it is killed
 *     datagrams rr ADDRESS PORT SECONDS                   one byte there, one byte back, one after the other
 *     datagrams dns ADDRESS PORT RATE COUNT               queries, each from a socket of its own
 *
 * An end prints what it measured as one line of JSON; one that fails says why, and its status is 1. ADDRESS and PORT
 * are always the remote end's. That one says "ready" when it can be reached.
 *
 * Whatever way the datagrams go, the guest speaks first: it is the sender (up), or a receiver that says hello until
 * something comes (down). Nothing but datagrams passes through what is measured: each end prints its own count. A
 * datagram brings its number, and when the measurement begins and ends: both ends have the same clock, as they are on
 * the same machine. What arrives between is the rate, whenever it was sent. What has a number is what was sent
 * between: the lost ones are those that did not arrive even afterwards, until it is quiet. The receiver's buffer is so
 * large that it should lose nothing itself; if it does, that is counted. TRAIN is how many datagrams are handed to the
 * kernel at once (UDP_SEGMENT), as those who send much do; if it is more than 1, they are taken joined, too (UDP_GRO).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_BYTES = 65507,
    BATCH = 32,
    BUFFER_BYTES = 256 * 1024 * 1024,
    HELLO_MS = 50,
    QUIET_MS = 200,
    SILENCE_MS = 3000,
    MAX_NUMBERS = 1 << 26,
    WARM_UP = 20,
    AGAIN_MS = 200,
    QUERY_BYTES = 40, /* 12 of header, 24 of name, 4 of type and class: RFC 1035 section 4.1 */
    ANSWER_BYTES = 120, /* the query, and 5 addresses of 16 bytes */
    ADDRESS_RECORDS = 5,
    DIGITS_AT = 13,
    DIGITS = 10,
    QUERY_TIMEOUT_MS = 1000,
    EVENTS = 256,
};

static const uint64_t MS = 1000000, S = 1000000000, NO_NUMBER = UINT64_MAX;
static const uint64_t LATE_NS = 300000; /* a paced sender that is later than this does not make up for it: no bursts */

struct header {
    uint64_t number, from_ns, until_ns;
};

static char buffers[BATCH][MAX_BYTES + 1];

__attribute__((noreturn)) static void fail(const char *what)
{
    fprintf(stderr, "datagrams: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static int checked(int result, const char *what)
{
    if (result < 0)
        fail(what);
    return result;
}

static void *allocated(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        fail("memory");
    return memory;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * S + (uint64_t)now.tv_nsec;
}

static int new_socket(char **address, int is_remote)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_DGRAM}, *found;
    if (getaddrinfo(address[0], address[1], &hints, &found))
        fail("address");
    int fd = checked(socket(found->ai_family, SOCK_DGRAM, 0), "socket");
    if (is_remote)
        checked(bind(fd, found->ai_addr, found->ai_addrlen), "bind");
    else
        checked(connect(fd, found->ai_addr, found->ai_addrlen), "connect");
    freeaddrinfo(found);
    return fd;
}

static void say_ready(void)
{
    puts("ready");
    fflush(stdout);
}

static int is_readable(int fd, int timeout_ms)
{
    return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, timeout_ms) > 0;
}

/* ---- One way ---- */

static void set_buffer(int fd)
{
    int bytes = BUFFER_BYTES, one = 1; /* FORCE goes beyond net.core.rmem_max */
    checked(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes), "buffer");
    checked(setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof one), "buffer");
}

static void say_hello(int fd)
{
    for (int waited_ms = 0; waited_ms < SILENCE_MS; waited_ms += HELLO_MS) {
        if (send(fd, "h", 1, 0) < 0 && errno != ECONNREFUSED)
            fail("hello");
        if (is_readable(fd, HELLO_MS))
            return;
    }
    errno = 0;
    fail("no answer to hello");
}

static void wait_for_hello(int fd)
{
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    errno = 0;
    if (!is_readable(fd, SILENCE_MS))
        fail("no hello");
    checked((int)recvfrom(fd, buffers[0], MAX_BYTES, 0, (struct sockaddr *)&peer, &size), "hello");
    checked(connect(fd, (struct sockaddr *)&peer, size), "connect");
}

struct counts { /* `arrived` is of those that have a number, each once; `bytes` is of all */
    uint64_t arrived, twice, bytes, measured_bytes, overflowed;
    struct header last;
};

static void count(struct counts *counts, unsigned char *seen, const char *datagram, size_t size, uint64_t now)
{
    memcpy(&counts->last, datagram, sizeof counts->last);
    counts->bytes += size;
    if (now >= counts->last.from_ns && now < counts->last.until_ns)
        counts->measured_bytes += size;
    uint64_t number = counts->last.number;
    if (number >= MAX_NUMBERS)
        return;
    unsigned char bit = (unsigned char)(1 << number % 8);
    counts->twice += (seen[number / 8] & bit) != 0;
    counts->arrived += (seen[number / 8] & bit) == 0;
    seen[number / 8] |= bit;
}

static size_t note_control(struct counts *counts, struct msghdr *message, size_t size) /* that of a joined datagram */
{
    int joined;
    for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
        uint32_t overflowed;
        if (control->cmsg_level == SOL_SOCKET && control->cmsg_type == SO_RXQ_OVFL) { /* nothing, if nothing was lost */
            memcpy(&overflowed, CMSG_DATA(control), sizeof overflowed);
            counts->overflowed = overflowed;
        } else if (control->cmsg_level == SOL_UDP && control->cmsg_type == UDP_GRO) {
            memcpy(&joined, CMSG_DATA(control), sizeof joined);
            size = (size_t)joined;
        }
    }
    return size;
}

static void set_udp_option(int fd, int option, int value)
{
    checked(setsockopt(fd, SOL_UDP, option, &value, sizeof value), "UDP option");
}

static void receive(int is_remote, char **address, size_t wanted, int train)
{
    static char control[BATCH][CMSG_SPACE(sizeof(uint32_t)) + CMSG_SPACE(sizeof(int))];
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH];
    struct counts counts = {0};
    unsigned char *seen = allocated(MAX_NUMBERS / 8, 1);
    int fd = new_socket(address, is_remote);
    set_buffer(fd);
    if (train > 1)
        set_udp_option(fd, UDP_GRO, 1);
    if (is_remote)
        say_ready();
    else
        say_hello(fd);
    while (is_readable(fd, counts.bytes && now_ns() > counts.last.until_ns ? QUIET_MS : SILENCE_MS)) {
        for (int index = 0; index < BATCH; index++) {
            parts[index] = (struct iovec){buffers[index], sizeof buffers[index]};
            messages[index].msg_hdr = (struct msghdr){.msg_iov = &parts[index],
                                                      .msg_iovlen = 1,
                                                      .msg_control = control[index],
                                                      .msg_controllen = sizeof control[index]};
        }
        int got = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
        uint64_t now = now_ns();
        for (int index = 0; index < got; index++) {
            size_t got_bytes = messages[index].msg_len;
            if (note_control(&counts, &messages[index].msg_hdr, got_bytes) == wanted)
                for (size_t at = 0; at + wanted <= got_bytes; at += wanted)
                    count(&counts, seen, buffers[index] + at, wanted, now);
        }
    }
    errno = 0;
    if (!counts.bytes)
        fail("nothing arrived");
    printf("{\"arrived\": %lu, \"twice\": %lu, \"bytes\": %lu, \"measured_bytes\": %lu, \"overflowed\": %lu, "
           "\"seconds\": %.6f}\n",
           counts.arrived, counts.twice, counts.bytes, counts.measured_bytes, counts.overflowed,
           (double)(counts.last.until_ns - counts.last.from_ns) / (double)S);
}

static void sleep_until(uint64_t due_ns)
{
    struct timespec due = {.tv_sec = (time_t)(due_ns / S), .tv_nsec = (long)(due_ns % S)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
}

static void send_all(int is_remote, char **address, size_t size, int train, double megabits, double warm_up_s,
                     double seconds)
{
    int fd = new_socket(address, is_remote);
    if (train < 1 || (size_t)train * size > MAX_BYTES)
        fail("train");
    if (train > 1)
        set_udp_option(fd, UDP_SEGMENT, (int)size);
    if (is_remote) {
        say_ready();
        wait_for_hello(fd);
    }
    prctl(PR_SET_TIMERSLACK, 1); /* ns */
    uint64_t interval_ns = megabits > 0 ? (uint64_t)((double)size * train * 8 * 1e3 / megabits) : 0;
    uint64_t now = now_ns(), due_ns = now, from_ns = now + (uint64_t)(warm_up_s * (double)S), sent = 0;
    struct header header = {.from_ns = from_ns, .until_ns = from_ns + (uint64_t)(seconds * (double)S)};
    for (; (now = now_ns()) < header.until_ns; due_ns += interval_ns) {
        if (due_ns > now)
            sleep_until(due_ns);
        else if (now - due_ns > LATE_NS)
            due_ns = now - LATE_NS;
        for (int index = 0; index < train; index++) {
            header.number = now >= from_ns ? sent++ : NO_NUMBER;
            memcpy(buffers[0] + (size_t)index * size, &header, sizeof header);
        }
        if (send(fd, buffers[0], (size_t)train * size, 0) < 0 && errno != ECONNREFUSED && errno != ENOBUFS) /* those are losses */
            fail("send");
    }
    printf("{\"sent\": %lu, \"seconds\": %.6f}\n", sent, seconds);
}

/* ---- There and back ---- */

static void answer(char **address)
{
    static const unsigned char record[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1};
    char *datagram = buffers[0];
    struct sockaddr_storage peer;
    int fd = new_socket(address, 1);
    set_buffer(fd);
    say_ready();
    for (;;) {
        socklen_t size = sizeof peer;
        ssize_t got = recvfrom(fd, datagram, MAX_BYTES, 0, (struct sockaddr *)&peer, &size);
        if (got == QUERY_BYTES) {
            memcpy(datagram + 2, (unsigned char[]){0x81, 0x80, 0, 1, 0, ADDRESS_RECORDS}, 6);
            for (; got < ANSWER_BYTES; got += (ssize_t)sizeof record)
                memcpy(datagram + got, record, sizeof record);
        }
        if (got > 0)
            sendto(fd, datagram, (size_t)got, 0, (struct sockaddr *)&peer, size);
    }
}

static int is_answered(int fd, unsigned char number) /* false: lost, or too late */
{
    uint64_t until = now_ns() + AGAIN_MS * MS;
    checked((int)send(fd, &number, 1, 0), "send");
    for (unsigned char got; now_ns() < until;)
        if (is_readable(fd, AGAIN_MS)) {
            checked((int)recv(fd, &got, 1, 0), "receive");
            if (got == number)
                return 1;
        }
    return 0;
}

static void request_response(char **address, double seconds)
{
    unsigned long done = 0, lost = 0;
    unsigned char number = 0;
    int fd = new_socket(address, 0);
    for (int index = 0; index < WARM_UP; index++)
        is_answered(fd, number++);
    uint64_t start = now_ns(), end_at = start + (uint64_t)(seconds * (double)S);
    while (now_ns() < end_at)
        *(is_answered(fd, number++) ? &done : &lost) += 1;
    printf("{\"count\": %lu, \"lost\": %lu, \"seconds\": %.6f}\n", done, lost, (double)(now_ns() - start) / (double)S);
}

struct query {
    int fd; /* -1: answered, or given up */
    uint64_t asked_ns;
    char bytes[QUERY_BYTES];
};

static void ask(struct query *query, uint32_t number, char **address, int epoll)
{
    static const char form[] = "..\1\0\0\1\0\0\0\0\0\0\12..........\7example\3com\0\0\1\0\1"; /* one question, type A */
    _Static_assert(sizeof form == QUERY_BYTES + 1, "the query's length");
    char digits[DIGITS + 1];
    snprintf(digits, sizeof digits, "%0*u", DIGITS, number);
    memcpy(query->bytes, form, QUERY_BYTES);
    memcpy(query->bytes, &number, 2);
    memcpy(query->bytes + DIGITS_AT, digits, DIGITS);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = query};
    query->asked_ns = now_ns();
    query->fd = new_socket(address, 0);
    checked(epoll_ctl(epoll, EPOLL_CTL_ADD, query->fd, &event), "epoll");
    checked((int)send(query->fd, query->bytes, QUERY_BYTES, 0), "send");
}

static int takes_answer(struct query *query)
{
    char *got = buffers[0];
    ssize_t size = recv(query->fd, got, MAX_BYTES, MSG_DONTWAIT);
    return size == ANSWER_BYTES && !memcmp(got, query->bytes, 2) &&
           !memcmp(got + DIGITS_AT, query->bytes + DIGITS_AT, DIGITS);
}

static void end(struct query *query)
{
    close(query->fd);
    query->fd = -1;
}

static int ascending(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static void dns(char **address, unsigned long rate, unsigned long total)
{
    struct query *queries = allocated(total + 1, sizeof *queries);
    double *latencies_ms = allocated(total + 1, sizeof *latencies_ms);
    struct epoll_event events[EVENTS];
    size_t asked = 0, ended = 0, answered = 0; /* what was asked before `ended` has ended */
    int epoll = checked(epoll_create1(0), "epoll");
    int timer = checked(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), "timer");
    struct timespec interval = {.tv_nsec = (long)(S / rate)};
    checked(timerfd_settime(timer, 0, &(struct itimerspec){interval, interval}, NULL), "timer");
    checked(epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &(struct epoll_event){.events = EPOLLIN}), "epoll");
    while (ended < total) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int index = 0; index < ready; index++) {
            struct query *query = events[index].data.ptr;
            uint64_t due = 0;
            if (!query) {
                checked((int)read(timer, &due, sizeof due), "timer");
                for (; due && asked < total; due--, asked++)
                    ask(&queries[asked], (uint32_t)asked, address, epoll);
            } else if (takes_answer(query)) {
                latencies_ms[answered++] = (double)(now_ns() - query->asked_ns) / (double)MS;
                end(query);
            }
        }
        uint64_t too_old = now_ns() - QUERY_TIMEOUT_MS * MS;
        for (; ended < asked && (queries[ended].fd < 0 || queries[ended].asked_ns < too_old); ended++)
            if (queries[ended].fd >= 0)
                end(&queries[ended]);
    }
    qsort(latencies_ms, answered, sizeof *latencies_ms, ascending);
    printf("{\"asked\": %lu, \"answered\": %lu, \"median_ms\": %.4f, \"p99_ms\": %.4f}\n", total, answered,
           latencies_ms[answered / 2], latencies_ms[answered * 99 / 100]);
}

static int way(const char *name) /* whether up */
{
    if (strcmp(name, "up") && strcmp(name, "down"))
        fail("neither up nor down");
    return !strcmp(name, "up");
}

int main(int argc, char **argv)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    const char *mode = argc > 1 ? argv[1] : "";
    if (argc == 7 && !strcmp(mode, "receive"))
        receive(way(argv[2]), argv + 3, strtoul(argv[5], NULL, 10), atoi(argv[6]));
    else if (argc == 10 && !strcmp(mode, "send"))
        send_all(!way(argv[2]), argv + 3, strtoul(argv[5], NULL, 10), atoi(argv[6]), atof(argv[7]), atof(argv[8]),
                 atof(argv[9]));
    else if (argc == 4 && !strcmp(mode, "answer"))
        answer(argv + 2);
    else if (argc == 5 && !strcmp(mode, "rr"))
        request_response(argv + 2, atof(argv[4]));
    else if (argc == 6 && !strcmp(mode, "dns"))
        dns(argv + 2, strtoul(argv[4], NULL, 10), strtoul(argv[5], NULL, 10));
    else
        return fputs("usage: see datagrams.c\n", stderr), 2;
    return 0;
}
