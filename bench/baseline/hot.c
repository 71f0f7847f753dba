/* Preloaded into a server by bench/hot.py, it stands for the kernel: what is left to measure is the
 * work of the server itself. It has the calls that libuv and pyasync make for a connection. The
 * descriptors are real ones, so that whatever else is asked about them has an answer. When the
 * server has had as many events as it shall have, this prints their CPU time, and ends the process.
 * A loop that only waits for its timers does not wait: the clock is put forward. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "common.h"

#define FILES 4096
#define REQUEST "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))
#define FORWARD(name, ...)                  \
  do {                                      \
    static __typeof__(&name) real;          \
    if (real == NULL)                       \
      real = REAL(name);                    \
    return real(__VA_ARGS__);               \
  } while (0)

/* A descriptor of the server: what it is, what may be read, and where it waits. */
static struct {
  enum { OTHER, SPARE, OPEN } kind;
  enum { NOTHING, DATA, END } unread;
  int epoll; /* -1: none */
  struct epoll_event waits;
} files[FILES];

static int first, last; /* the connections' descriptors, from first to last; before: 0 */
static int listener = -1; /* the descriptor that waits for connections, maybe a duplicate */
static int open_now, connections, keep, size;
static struct sockaddr_in peer; /* what is said to be a client's address */
static socklen_t peer_length = sizeof peer;
static long count, warm_up, events;
static double began, skipped; /* seconds */

__attribute__((constructor)) static void begin(void) {
  connections = atoi(getenv("HOT_CONNECTIONS"));
  size = atoi(getenv("HOT_SIZE")); /* of a message; 0: a connection a request */
  events = atol(getenv("HOT_EVENTS"));
  warm_up = events / 4;
  keep = size > 0;
}

static void one_more(void) {
  double cpu;
  if (++count == warm_up)
    began = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
  if (count < warm_up + events)
    return;
  cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - began;
  dprintf(1, "{\"cpu_seconds\": %.12f}\n", cpu / events);
  _exit(0);
}

static int ours(int fd) {
  return fd >= 0 && fd < FILES && files[fd].kind == OPEN;
}

/* The first listener's connections are duplicates of one. */
int listen(int fd, int backlog) {
  int client, server, i;

  if (REAL(listen)(fd, backlog) != 0)
    return -1;
  if (last > 0 || connections == 0)
    return 0;
  getsockname(fd, (struct sockaddr*) &peer, &peer_length);
  client = socket(peer.sin_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(client, (struct sockaddr*) &peer, peer_length) != 0)
    die("connect");
  server = REAL(accept4)(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  for (i = 0; i < connections; i++) {
    last = dup(server);
    if (last < 0 || last >= FILES)
      die("dup");
    if (i == 0)
      first = last;
    files[last].kind = SPARE;
  }
  return 0;
}

int accept4(int fd, struct sockaddr* address, socklen_t* length, int flags) {
  static int next;

  if (fd != listener)
    FORWARD(accept4, fd, address, length, flags);
  if (open_now == connections) {
    errno = EAGAIN;
    return -1;
  }
  do
    next = next < first || next >= last ? first : next + 1;
  while (files[next].kind != SPARE);
  open_now++;
  files[next].kind = OPEN;
  files[next].epoll = -1;
  files[next].unread = keep ? NOTHING : DATA;
  if (address != NULL)
    memcpy(address, &peer, *length = peer_length);
  return next;
}

int close(int fd) {
  if (!ours(fd))
    FORWARD(close, fd);
  files[fd].kind = SPARE;
  open_now--;
  if (!keep)
    one_more();
  return 0;
}

static int listens(int fd) { /* maybe as a duplicate */
  int yes = 0;
  socklen_t length = sizeof yes;
  return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &length) == 0 && yes;
}

/* As libuv closes; and without io_uring, by which it would tell the kernel what it waits for. */
long syscall(long number, ...) {
  va_list arguments;
  long words[6];
  int i;

  va_start(arguments, number);
  for (i = 0; i < 6; i++)
    words[i] = va_arg(arguments, long);
  va_end(arguments);
  if (number == SYS_close)
    return close((int) words[0]);
  if (number == SYS_io_uring_setup) {
    errno = ENOSYS;
    return -1;
  }
  FORWARD(syscall, number, words[0], words[1], words[2], words[3], words[4], words[5]);
}

int epoll_ctl(int epoll, int op, int fd, struct epoll_event* event) {
  if (!ours(fd) && fd != listener && last > 0 && listens(fd))
    listener = fd;
  if (!ours(fd) && fd != listener)
    FORWARD(epoll_ctl, epoll, op, fd, event);
  files[fd].epoll = op == EPOLL_CTL_DEL ? -1 : epoll;
  if (op != EPOLL_CTL_DEL)
    files[fd].waits = *event;
  return 0;
}

static int ready(int epoll, int fd, struct epoll_event* found) {
  if (files[fd].epoll != epoll || !(files[fd].waits.events & EPOLLIN))
    return 0;
  *found = files[fd].waits;
  found->events = EPOLLIN;
  return 1;
}

int epoll_wait(int epoll, struct epoll_event* found, int most, int timeout) {
  int fd, number = 0;

  if (listener >= 0 && open_now < connections)
    number += ready(epoll, listener, found);
  for (fd = first; listener >= 0 && fd <= last && number < most; fd++) {
    if (files[fd].kind != OPEN)
      continue;
    if (keep)
      files[fd].unread = DATA;
    if (files[fd].unread != NOTHING)
      number += ready(epoll, fd, found + number);
  }
  if (number == 0 && timeout < 0)
    FORWARD(epoll_wait, epoll, found, most, timeout);
  if (number == 0)
    skipped += timeout / 1e3;
  return number;
}

int epoll_pwait(int epoll, struct epoll_event* found, int most, int timeout, const sigset_t* mask) {
  return epoll_wait(epoll, found, most, timeout);
}

int clock_gettime(clockid_t clock, struct timespec* time) {
  static __typeof__(&clock_gettime) real;
  int status;

  if (real == NULL)
    real = REAL(clock_gettime);
  status = real(clock, time);
  if (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE) {
    long ahead = time->tv_nsec + (long) (skipped * 1e9);
    time->tv_sec += ahead / 1000000000;
    time->tv_nsec = ahead % 1000000000;
  }
  return status;
}

ssize_t read(int fd, void* data, size_t most) {
  int unread;

  if (!ours(fd))
    FORWARD(read, fd, data, most);
  unread = files[fd].unread;
  files[fd].unread = NOTHING;
  if (unread == NOTHING) {
    errno = EAGAIN;
    return -1;
  }
  if (unread == END)
    return 0;
  if (!keep)
    return (ssize_t) strlen(strcpy(data, REQUEST));
  one_more();
  return most < (size_t) size ? (ssize_t) most : size;
}

/* The client takes everything at once; it closes when it has its answer. */
static ssize_t take(int fd, size_t length) {
  if (!keep)
    files[fd].unread = END;
  return (ssize_t) length;
}

ssize_t write(int fd, const void* data, size_t length) {
  if (!ours(fd))
    FORWARD(write, fd, data, length);
  return take(fd, length);
}

ssize_t writev(int fd, const struct iovec* parts, int number) {
  size_t length = 0;
  int i;

  if (!ours(fd))
    FORWARD(writev, fd, parts, number);
  for (i = 0; i < number; i++)
    length += parts[i].iov_len;
  return take(fd, length);
}

int shutdown(int fd, int how) {
  if (!ours(fd))
    FORWARD(shutdown, fd, how);
  return 0;
}

int setsockopt(int fd, int level, int name, const void* value, socklen_t length) {
  if (!ours(fd))
    FORWARD(setsockopt, fd, level, name, value, length);
  return 0;
}

/* FIONBIO, which needs no answer, and FIONREAD. */
int ioctl(int fd, unsigned long request, ...) {
  va_list arguments;
  void* argument;

  va_start(arguments, request);
  argument = va_arg(arguments, void*);
  va_end(arguments);
  if (!ours(fd))
    FORWARD(ioctl, fd, request, argument);
  if (request != FIONBIO)
    *(int*) argument = 0;
  return 0;
}
