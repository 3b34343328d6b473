/*
 * load: the two ends of the connections that are measured, other than bulk transfers, which are iperf3's.
 *
 *     load serve ADDRESS PORT                        says "ready", then serves until it is killed
 *     load rr ADDRESS PORT SECONDS                   one byte there, one byte back, over one connection
 *     load crr ADDRESS PORT SECONDS                  connect, one byte there, one byte back, end, one after the other
 *     load hold ADDRESS PORT COUNT                   opens connections, says "ready", keeps them until end of input
 *     load share up|down ADDRESS PORT COUNT BYTES    BYTES through COUNT connections, opened before, all at once
 *
 * A client prints what it measured as one line of JSON; one that fails says why, and its status is 1.
 *
 * The first byte of a connection tells the server what it is for: 'c' is answered, and the server closes; 'e' and
 * whatever follows is echoed; 'd' and two numbers (of 8 bytes each, as on this machine) asks for so many bytes, which
 * start when so many connections have asked; 'u' and two numbers, how many bytes how many connections have together,
 * announces an upload, whose end is answered; 'q' asks for how fairly the uploads progressed. That is seen in the
 * middle, when half of all bytes have arrived: what the slowest connection's receiver had by then, and what the
 * median one's. (At the end everybody has everything.)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 64 * 1024, EVENTS = 256, MAX_DESCRIPTORS = 1 << 16, SILENCE_S = 20, WARM_UP = 50, HEADER = 17 };

struct connection {
    int fd;
    unsigned char header[HEADER];
    size_t header_bytes;
    uint64_t number, group, received, sent;
};

struct shares { /* of the connections' receivers, in the middle */
    uint64_t total, received, slowest, median;
    int taken;
};

static char chunk[CHUNK];
static struct connection *connections[MAX_DESCRIPTORS]; /* by descriptor */
static int descriptors;                                 /* none of them is greater or equal */

__attribute__((noreturn)) static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "the connection ended too early");
    exit(1);
}

static int checked(int result, const char *what)
{
    if (result < 0)
        fail(what);
    return result;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int new_socket(char **address, int is_server)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *found;
    if (getaddrinfo(address[0], address[1], &hints, &found))
        fail("address");
    int one = 1, fd = checked(socket(found->ai_family, SOCK_STREAM, 0), "socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (is_server) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        checked(bind(fd, found->ai_addr, found->ai_addrlen), "bind");
        checked(listen(fd, 4096), "listen");
    } else {
        struct timeval silence = {.tv_sec = SILENCE_S};
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &silence, sizeof silence); /* for connect, too */
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof silence);
        checked(connect(fd, found->ai_addr, found->ai_addrlen), "connect");
    }
    freeaddrinfo(found);
    return fd;
}

static void watch(int epoll, struct connection *connection, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};
    checked(epoll_ctl(epoll, operation, connection->fd, &event), "epoll");
}

static struct connection *add(int fd)
{
    if (fd >= MAX_DESCRIPTORS || !(connections[fd] = calloc(1, sizeof **connections)))
        fail("too many connections");
    connections[fd]->fd = fd;
    if (fd >= descriptors)
        descriptors = fd + 1;
    return connections[fd];
}

static int ascending(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return (left > right) - (left < right);
}

static void count_share(struct shares *shares, uint64_t bytes, unsigned char kind)
{
    static uint64_t received[MAX_DESCRIPTORS];
    shares->received += bytes;
    if (shares->taken || shares->received < shares->total / 2)
        return;
    size_t count = 0;
    for (int fd = 0; fd < descriptors; fd++)
        if (connections[fd] && connections[fd]->header[0] == kind)
            received[count++] = connections[fd]->received;
    qsort(received, count, sizeof *received, ascending);
    shares->taken = 1;
    shares->slowest = received[0];
    shares->median = received[count / 2];
}

/* ---- The server ---- */

static void end(struct connection *connection)
{
    connections[connection->fd] = NULL;
    close(connection->fd);
    free(connection);
}

static int asked_for_download(int fd)
{
    return connections[fd] && connections[fd]->header[0] == 'd' && connections[fd]->header_bytes == HEADER;
}

static void start_downloads(int epoll, uint64_t group) /* when all have asked: none is ahead from the start */
{
    uint64_t count = 0;
    for (int fd = 0; fd < descriptors; fd++)
        count += (uint64_t)asked_for_download(fd);
    for (int fd = 0; fd < descriptors && count == group; fd++)
        if (asked_for_download(fd))
            watch(epoll, connections[fd], EPOLL_CTL_MOD, EPOLLOUT);
}

static int takes_header(struct connection *connection, int epoll, struct shares *shares) /* false: the end */
{
    size_t wanted = connection->header_bytes && strchr("du", connection->header[0]) ? HEADER : 1;
    ssize_t got = recv(connection->fd, connection->header + connection->header_bytes,
                       wanted - connection->header_bytes, MSG_DONTWAIT);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    connection->header_bytes += (size_t)got;
    memcpy(&connection->number, connection->header + 1, sizeof connection->number);
    memcpy(&connection->group, connection->header + 9, sizeof connection->group);
    switch (connection->header[0]) {
    case 'c':
        send(connection->fd, "c", 1, MSG_NOSIGNAL);
        return 0;
    case 'e':
        return send(connection->fd, "e", 1, MSG_NOSIGNAL) == 1;
    case 'd':
        if (connection->header_bytes == HEADER)
            start_downloads(epoll, connection->group);
        return 1;
    case 'u':
        if (connection->header_bytes == HEADER && shares->total != connection->number)
            *shares = (struct shares){.total = connection->number};
        return 1;
    case 'q': {
        uint64_t answer[] = {shares->slowest, shares->median};
        send(connection->fd, answer, sizeof answer, MSG_NOSIGNAL);
        *shares = (struct shares){0};
        return 0;
    }
    }
    return 0;
}

static int serve_some(struct connection *connection, int epoll, struct shares *shares) /* false: the end */
{
    unsigned char kind = connection->header[0];
    if (connection->header_bytes < (kind == 'd' || kind == 'u' ? (size_t)HEADER : 1))
        return takes_header(connection, epoll, shares);
    if (kind == 'd') {
        uint64_t left = connection->number - connection->sent;
        ssize_t sent = send(connection->fd, chunk, left < CHUNK ? left : CHUNK, MSG_DONTWAIT | MSG_NOSIGNAL);
        connection->sent += sent > 0 ? (uint64_t)sent : 0;
        return (sent >= 0 || errno == EAGAIN) && connection->sent < connection->number;
    }
    ssize_t got = recv(connection->fd, chunk, CHUNK, MSG_DONTWAIT);
    if (got < 0)
        return errno == EAGAIN;
    if (kind == 'e')
        return got && send(connection->fd, chunk, (size_t)got, MSG_DONTWAIT | MSG_NOSIGNAL) == got;
    connection->received += (uint64_t)got;
    count_share(shares, (uint64_t)got, 'u');
    if (!got)
        send(connection->fd, ".", 1, MSG_NOSIGNAL);
    return got > 0;
}

static void serve(char **address)
{
    struct shares shares = {0};
    struct epoll_event events[EVENTS];
    int epoll = checked(epoll_create1(0), "epoll");
    struct connection *listener = add(new_socket(address, 1));
    watch(epoll, listener, EPOLL_CTL_ADD, EPOLLIN);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int index = 0; index < count; index++) {
            struct connection *connection = events[index].data.ptr;
            if (connection != listener) {
                if (!serve_some(connection, epoll, &shares))
                    end(connection);
            } else {
                struct connection *added = add(checked(accept(listener->fd, NULL, NULL), "accept"));
                int one = 1;
                setsockopt(added->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                watch(epoll, added, EPOLL_CTL_ADD, EPOLLIN);
            }
        }
    }
}

/* ---- The clients ---- */

static void exchange(int fd, char kind)
{
    char answer;
    errno = 0;
    if (send(fd, &kind, 1, MSG_NOSIGNAL) != 1 || recv(fd, &answer, 1, 0) != 1)
        fail("exchange");
}

static void request_response(char **address, double seconds)
{
    int fd = new_socket(address, 0);
    for (int index = 0; index < WARM_UP; index++)
        exchange(fd, 'e');
    double start = now_s(), end_at = start + seconds;
    unsigned long count = 0;
    for (; now_s() < end_at; count++)
        exchange(fd, 'e');
    printf("{\"count\": %lu, \"seconds\": %.6f}\n", count, now_s() - start);
}

static void connect_request_response(char **address, double seconds)
{
    double start = 0, end_at = now_s() + SILENCE_S;
    long count = -WARM_UP;
    for (char byte; now_s() < end_at; count++) {
        if (count == 0)
            end_at = (start = now_s()) + seconds;
        int fd = new_socket(address, 0);
        exchange(fd, 'c');
        if (recv(fd, &byte, 1, 0) != 0) /* the server ends first: its port waits, not one of ours */
            fail("end of connection");
        close(fd);
    }
    if (count <= 0)
        fail("too slow");
    printf("{\"count\": %ld, \"seconds\": %.6f}\n", count, now_s() - start);
}

static void hold(char **address, int count)
{
    double start = now_s();
    for (int index = 0; index < count; index++)
        exchange(new_socket(address, 0), 'e');
    printf("{\"count\": %d, \"seconds\": %.6f}\nready\n", count, now_s() - start);
    fflush(stdout);
    while (read(STDIN_FILENO, chunk, CHUNK) > 0)
        ;
}

static void start_transfer(struct connection *connection, int epoll, char kind, uint64_t total, uint64_t group)
{
    connection->header[0] = (unsigned char)kind;
    uint64_t number = kind == 'u' ? total : connection->number;
    memcpy(connection->header + 1, &number, sizeof number);
    memcpy(connection->header + 9, &group, sizeof group);
    if (send(connection->fd, connection->header, HEADER, MSG_NOSIGNAL) != HEADER)
        fail("start");
    watch(epoll, connection, EPOLL_CTL_ADD, kind == 'u' ? EPOLLOUT : EPOLLIN);
}

static int transfer_some(struct connection *connection, int epoll, struct shares *shares) /* false: all is there */
{
    errno = 0;
    if (connection->header[0] == 'u' && connection->sent < connection->number) {
        uint64_t left = connection->number - connection->sent;
        ssize_t sent = send(connection->fd, chunk, left < CHUNK ? left : CHUNK, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            fail("send");
        connection->sent += sent > 0 ? (uint64_t)sent : 0;
        if (connection->sent == connection->number) {
            watch(epoll, connection, EPOLL_CTL_MOD, EPOLLIN);
            checked(shutdown(connection->fd, SHUT_WR), "end");
        }
        return 1;
    }
    ssize_t got = recv(connection->fd, chunk, CHUNK, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return 1;
    if (got <= 0)
        fail("receive");
    connection->received += (uint64_t)got;
    if (connection->header[0] == 'u')
        return 0;
    count_share(shares, (uint64_t)got, 'd');
    return connection->received < connection->number;
}

static void share(char kind, char **address, int count, uint64_t total)
{
    struct epoll_event events[EVENTS];
    struct connection **all = calloc((size_t)count, sizeof *all);
    int epoll = checked(epoll_create1(0), "epoll"), left = count;
    for (int index = 0; index < count; index++) {
        all[index] = add(new_socket(address, 0));
        all[index]->number = total / (uint64_t)count;
    }
    struct shares shares = {.total = total};
    double start = now_s();
    for (int index = 0; index < count; index++)
        start_transfer(all[index], epoll, kind, total, (uint64_t)count);
    while (left) {
        int ready = epoll_wait(epoll, events, EVENTS, SILENCE_S * 1000);
        if (ready <= 0)
            fail("nothing moves");
        for (int index = 0; index < ready; index++)
            if (!transfer_some(events[index].data.ptr, epoll, &shares)) {
                watch(epoll, events[index].data.ptr, EPOLL_CTL_DEL, 0);
                left--;
            }
    }
    double seconds = now_s() - start;
    if (kind == 'u') {
        uint64_t answer[2];
        int fd = new_socket(address, 0);
        if (send(fd, "q", 1, MSG_NOSIGNAL) != 1 || recv(fd, answer, sizeof answer, MSG_WAITALL) != sizeof answer)
            fail("shares");
        shares.slowest = answer[0];
        shares.median = answer[1];
    }
    printf("{\"count\": %d, \"bytes\": %lu, \"seconds\": %.6f, \"halfway_slowest\": %lu, \"halfway_median\": %lu}\n",
           count, total / (uint64_t)count * (uint64_t)count, seconds, shares.slowest, shares.median);
}

int main(int argc, char **argv)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    const char *mode = argc > 1 ? argv[1] : "";
    if (argc == 4 && !strcmp(mode, "serve"))
        serve(argv + 2);
    else if (argc == 5 && !strcmp(mode, "rr"))
        request_response(argv + 2, atof(argv[4]));
    else if (argc == 5 && !strcmp(mode, "crr"))
        connect_request_response(argv + 2, atof(argv[4]));
    else if (argc == 5 && !strcmp(mode, "hold"))
        hold(argv + 2, atoi(argv[4]));
    else if (argc == 7 && !strcmp(mode, "share") && (*argv[2] == 'u' || *argv[2] == 'd'))
        share(*argv[2], argv + 3, atoi(argv[5]), strtoull(argv[6], NULL, 10));
    else
        return fputs("usage: see load.c\n", stderr), 2;
    return 0;
}
