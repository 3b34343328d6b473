/*
 * relay: joins a tap device to a UNIX stream socket with QEMU's framing (4 bytes of length before each frame).
 *
 *     relay TAP SOCKET [--loss PERMILLE] [--duplicate PERMILLE] [--reorder PERMILLE] [--delay MS] [--seed N]
 *
 * Thus the kernel's own TCP/IP stack, in a network namespace, is a guest: what it does with a lost segment or a zero
 * window is beyond doubt, and it costs less CPU than QEMU, so that what is measured is the program at the socket.
 *
 * The tap has no offloads (no vnet header), as QEMU's stream netdev has none. Each direction has a thread. Without
 * impairments it reads all that is there, up to BATCH bytes, and passes it on at once; what waits for a slow program
 * waits in the tap's queue: make that long (txqueuelen).
 *
 * Impairments stand in for tc-netem(8), which not every kernel has. They concern both directions, each with random
 * numbers of its own from the seed: which frames of a direction are hit depends on their order in it and on nothing
 * else. A frame that is not lost waits in a queue that is ordered by due time, and a second thread delivers it: after
 * `--delay`, and if it is chosen for reordering, up to REORDER_MS later, so that others overtake it.
 *
 * It says "ready" when frames can pass, ends with a message when the program closes the socket, and on SIGTERM;
 * either way it says on stderr what it counted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    PREFIX = 4,                     /* of a frame: its length, big-endian */
    MAX_FRAME = 14 + 65535,
    BATCH = 512 * 1024,
    SOCKET_BUFFER = 4 * 1024 * 1024,
    REORDER_MS = 5,
    QUEUE_BYTES = 64 * 1024 * 1024, /* what may wait to be due; more is dropped, as by netem's limit */
};

struct waiting { /* a frame with its prefix, not due yet */
    TAILQ_ENTRY(waiting) entry;
    uint64_t due_ns;
    size_t size;
    unsigned char bytes[];
};

struct direction {
    const char *name;
    void *(*run)(void *);
    void (*deliver)(struct direction *, const unsigned char *, size_t); /* whole frames, each with its prefix */
    _Atomic uint64_t frames, bytes, refused, lost, duplicated, reordered, overflowed;
    uint64_t random;
    TAILQ_HEAD(queue, waiting) queue; /* earliest first; the lock guards it and its size */
    size_t queued_bytes;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

static int tap, sock;
static unsigned long loss, duplicate, reorder, delay_ms, seed = 1;
static int impaired;

static void *from_tap(void *), *from_socket(void *);
static void to_tap(struct direction *, const unsigned char *, size_t);
static void to_socket(struct direction *, const unsigned char *, size_t);
static struct direction up = {.name = "from tap", .run = from_tap, .deliver = to_socket};
static struct direction down = {.name = "to tap", .run = from_socket, .deliver = to_tap};

static void print_counters(const struct direction *way)
{
    fprintf(stderr, "relay: %s: %lu frames, %lu bytes, %lu refused by the device; ", way->name, way->frames, way->bytes,
            way->refused);
    fprintf(stderr, "%lu lost, %lu duplicated, %lu reordered, %lu too many\n", way->lost, way->duplicated,
            way->reordered, way->overflowed);
}

__attribute__((format(printf, 2, 3), noreturn)) static void finish(int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    flockfile(stderr); /* never unlocked: who comes second has nothing to add */
    fputs("relay: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    print_counters(&up);
    print_counters(&down);
    fflush(stderr);
    _exit(status);
}

static void *checked(void *memory)
{
    if (!memory)
        finish(1, "out of memory");
    return memory;
}

static size_t frame_size(const unsigned char *at) /* with its prefix */
{
    size_t length = (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | at[3];
    if (length == 0 || length > MAX_FRAME)
        finish(1, "the program sent a frame of %zu bytes", length);
    return PREFIX + length;
}

/* ---- Delivery: to_socket waits for room, to_tap never waits. ---- */

static void to_socket(struct direction *way, const unsigned char *frames, size_t size)
{
    (void)way;
    while (size) {
        ssize_t sent = send(sock, frames, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            finish(1, "send: %m");
        if (sent > 0) {
            frames += sent;
            size -= (size_t)sent;
        }
    }
}

static void to_tap(struct direction *way, const unsigned char *frames, size_t size)
{
    for (size_t one; size; frames += one, size -= one) {
        one = frame_size(frames);
        if (write(tap, frames + PREFIX, one - PREFIX) < 0)
            way->refused++; /* ENOBUFS, EINVAL, or EIO while the device is down: on a wire, it would be lost, too */
    }
}

/* ---- Impairments ---- */

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t next_random(struct direction *way) /* splitmix64 */
{
    uint64_t z = way->random += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void push(struct direction *way, const unsigned char *frame, size_t size, uint64_t due_ns)
{
    pthread_mutex_lock(&way->lock);
    if (way->queued_bytes + size > QUEUE_BYTES) {
        way->overflowed++;
    } else {
        struct waiting *added = checked(malloc(sizeof *added + size)), *before = TAILQ_LAST(&way->queue, queue);
        added->due_ns = due_ns;
        added->size = size;
        memcpy(added->bytes, frame, size);
        while (before && before->due_ns > due_ns)
            before = TAILQ_PREV(before, queue, entry);
        if (before)
            TAILQ_INSERT_AFTER(&way->queue, before, added, entry);
        else
            TAILQ_INSERT_HEAD(&way->queue, added, entry);
        way->queued_bytes += size;
        pthread_cond_signal(&way->changed);
    }
    pthread_mutex_unlock(&way->lock);
}

static void *deliver_when_due(void *argument)
{
    struct direction *way = argument;
    pthread_mutex_lock(&way->lock);
    for (struct waiting *first;;) {
        uint64_t due = (first = TAILQ_FIRST(&way->queue)) ? first->due_ns : UINT64_MAX;
        if (!first) {
            pthread_cond_wait(&way->changed, &way->lock);
        } else if (due > now_ns()) {
            struct timespec until = {.tv_sec = (time_t)(due / 1000000000), .tv_nsec = (long)(due % 1000000000)};
            pthread_cond_timedwait(&way->changed, &way->lock, &until);
        } else {
            TAILQ_REMOVE(&way->queue, first, entry);
            way->queued_bytes -= first->size;
            pthread_mutex_unlock(&way->lock);
            way->deliver(way, first->bytes, first->size);
            free(first);
            pthread_mutex_lock(&way->lock);
        }
    }
    return NULL;
}

static void impair(struct direction *way, const unsigned char *frame, size_t size)
{
    /* All numbers are drawn for each frame: a frame's fate does not depend on which impairments are asked for. */
    int is_lost = next_random(way) % 1000 < loss;
    int is_duplicated = next_random(way) % 1000 < duplicate;
    int is_reordered = next_random(way) % 1000 < reorder;
    uint64_t later_ns = next_random(way) % (REORDER_MS * 1000000), due_ns = now_ns() + delay_ms * 1000000;
    way->lost += (uint64_t)is_lost;
    if (is_lost)
        return;
    way->reordered += (uint64_t)is_reordered;
    way->duplicated += (uint64_t)is_duplicated;
    push(way, frame, size, due_ns + (is_reordered ? later_ns : 0));
    if (is_duplicated)
        push(way, frame, size, due_ns);
}

/* ---- Reception ---- */

static void *from_tap(void *argument)
{
    struct direction *way = argument;
    unsigned char *buffer = checked(malloc(BATCH));
    for (;;) {
        size_t filled = 0;
        while (filled + PREFIX + MAX_FRAME <= BATCH) {
            ssize_t length = read(tap, buffer + filled + PREFIX, MAX_FRAME);
            if (length < 0 && errno != EAGAIN && errno != EINTR)
                finish(1, "tap: %m");
            if (length <= 0)
                break;
            for (int byte = 0; byte < PREFIX; byte++)
                buffer[filled + (size_t)byte] = (unsigned char)(length >> 8 * (PREFIX - 1 - byte));
            way->frames++;
            way->bytes += (uint64_t)length;
            if (impaired)
                impair(way, buffer, PREFIX + (size_t)length);
            else
                filled += PREFIX + (size_t)length;
        }
        way->deliver(way, buffer, filled);
        poll(&(struct pollfd){.fd = tap, .events = POLLIN}, 1, -1);
    }
    return NULL;
}

static void *from_socket(void *argument)
{
    struct direction *way = argument;
    unsigned char *buffer = checked(malloc(BATCH));
    size_t filled = 0;
    for (;;) {
        ssize_t length = recv(sock, buffer + filled, BATCH - filled, 0);
        if (length == 0)
            finish(1, "the program closed the socket");
        if (length < 0 && errno != EINTR)
            finish(1, "receive: %m");
        filled += length > 0 ? (size_t)length : 0;
        size_t whole = 0;
        for (size_t one; filled - whole >= PREFIX; whole += one) {
            if ((one = frame_size(buffer + whole)) > filled - whole)
                break;
            way->frames++;
            way->bytes += one - PREFIX;
            if (impaired)
                impair(way, buffer + whole, one);
        }
        if (!impaired)
            way->deliver(way, buffer, whole);
        memmove(buffer, buffer + whole, filled -= whole);
    }
    return NULL;
}

/* ---- Start ---- */

static void attach(const char *tap_name, const char *path)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    strncpy(request.ifr_name, tap_name, IFNAMSIZ - 1);
    if ((tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC)) < 0 || ioctl(tap, TUNSETIFF, &request) < 0)
        finish(1, "%s: %m", tap_name);

    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int buffer = SOCKET_BUFFER; /* FORCE goes beyond net.core.[rw]mem_max, and needs CAP_NET_ADMIN; without, no harm */
    setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
    if (connect(sock, (struct sockaddr *)&address, sizeof address) < 0)
        finish(1, "%s: %m", path);
}

static void start_thread(void *(*function)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, function, argument))
        finish(1, "no threads");
}

static void start(struct direction *way, uint64_t stream)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&way->changed, &monotonic);
    pthread_mutex_init(&way->lock, NULL);
    TAILQ_INIT(&way->queue);
    way->random = seed * 2 + stream;
    if (impaired)
        start_thread(deliver_when_due, way);
    start_thread(way->run, way);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"loss", required_argument, NULL, 0},    {"duplicate", required_argument, NULL, 1},
        {"reorder", required_argument, NULL, 2}, {"delay", required_argument, NULL, 3},
        {"seed", required_argument, NULL, 4},    {0},
    };
    unsigned long *const values[] = {&loss, &duplicate, &reorder, &delay_ms, &seed};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == '?')
            return 2;
        *values[option] = strtoul(optarg, NULL, 10);
    }
    if (argc - optind != 2) {
        fputs("usage: relay TAP SOCKET [--loss PERMILLE] [--duplicate PERMILLE] [--reorder PERMILLE] [--delay MS]"
              " [--seed N]\n", stderr);
        return 2;
    }
    impaired = loss || duplicate || reorder || delay_ms;
    attach(argv[optind], argv[optind + 1]);

    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, NULL); /* before the threads, which inherit it */
    start(&up, 0);
    start(&down, 1);
    puts("ready");
    fflush(stdout);
    int number;
    sigwait(&ends, &number);
    finish(0, "ended by signal %d", number);
}
