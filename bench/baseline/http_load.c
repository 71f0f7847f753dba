/* A closed-loop load client for the server of bench/http_delay.py, on epoll.
 *
 *   http_load PORT CONNECTIONS REQUESTS SECONDS
 *
 * Keeps CONNECTIONS open, each for one request, until REQUESTS have been made
 * or SECONDS have passed (0: no such limit), lets those that are open finish,
 * and prints one JSON object. An answer is good only when its bytes are exactly
 * right and the end of the stream follows them. The exit status is 1 if any
 * request was lost.
 *
 * bench/compare.py uses it, not bench/http_load.py: on two cores a client in
 * Python would be slower than the servers in C and on libuv that it measures,
 * and show its own limit in place of theirs. It makes six system calls a
 * request, fewer than any of the servers.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* The first connections are opened at this pace: all at once would overflow
 * the listener's backlog, and a refused SYN is sent again only a second later. */
#define OPENED_PER_MS 8

/* Linux connects from half of the 28,232 ports of ip_local_port_range first,
 * and looks for a free one longer and longer as that half fills. */
#define CONNECTIONS_PER_ADDRESS 10000

#define STALLED_MS 60000 /* no event for so long: what is open is lost */
#define MAX_EVENTS 512

static const char request[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
static const char response[] =
    "HTTP/1.1 200 OK\r\n"
    "Date: Wed, 03 Oct 2012 23:43:10 GMT\r\n"
    "Content-Type: text/plain\r\n"
    "Content-Length: 9\r\n"
    "\r\n"
    "omglolwtf";

static struct sockaddr_in server;
static int epoll_fd;
static double* started_at;    /* by descriptor, seconds */
static double* latencies;     /* one for each good answer, seconds */
static size_t latency_capacity;
static long connections, max_requests, started, open_now, replies, lost;

static void die(const char* what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

static int raise_open_files_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
    die("getrlimit");
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return (int) limit.rlim_cur;
}

static void bind_source_address(int fd) {
  int on = 1;
  struct sockaddr_in source = {.sin_family = AF_INET};
  long addresses = 1 + connections / CONNECTIONS_PER_ADDRESS;
  source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + started % addresses);
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
  if (bind(fd, (struct sockaddr*) &source, sizeof source) != 0)
    die("bind");
}

/* Connects, and sends the request at once: on the loopback the handshake is
 * over when connect returns. Only the end of the stream is waited for. */
static void start_request(void) {
  struct epoll_event event = {.events = EPOLLRDHUP};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0)
    die("socket");
  started_at[fd] = now();
  if (connections > CONNECTIONS_PER_ADDRESS)
    bind_source_address(fd);
  started++;
  if (connect(fd, (struct sockaddr*) &server, sizeof server) != 0 &&
      errno != EINPROGRESS)
    die("connect");
  if (send(fd, request, sizeof request - 1, MSG_NOSIGNAL) < 0)
    event.events |= EPOLLOUT; /* still connecting, or failed: epoll will say */
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
    die("epoll_ctl");
  open_now++;
}

static void send_late_request(int fd) {
  struct epoll_event event = {.events = EPOLLRDHUP, .data.fd = fd};
  if (send(fd, request, sizeof request - 1, MSG_NOSIGNAL) < 0)
    event.events |= EPOLLOUT;
  if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) != 0)
    die("epoll_ctl");
}

static void count_reply(double latency) {
  if ((size_t) replies == latency_capacity) {
    latency_capacity = latency_capacity ? 2 * latency_capacity : 65536;
    latencies = realloc(latencies, latency_capacity * sizeof *latencies);
    if (latencies == NULL)
      die("realloc");
  }
  latencies[replies++] = latency;
}

static void finish_request(int fd) {
  char answer[sizeof response]; /* one byte more than is right */
  ssize_t size = recv(fd, answer, sizeof answer, 0);
  if (size == sizeof response - 1 && memcmp(answer, response, size) == 0)
    count_reply(now() - started_at[fd]);
  else
    lost++;
  close(fd);
  open_now--;
}

static void handle_event(const struct epoll_event* event) {
  if (event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
    finish_request(event->data.fd);
  else
    send_late_request(event->data.fd);
}

/* Opens what is missing. Returns how long epoll may wait. */
static int start_requests(double elapsed, double max_seconds) {
  double ramp = (elapsed * 1000 + 1) * OPENED_PER_MS;
  long wanted = ramp < connections ? (long) ramp : connections;
  if (max_seconds > 0 && elapsed >= max_seconds)
    return STALLED_MS;
  while (open_now < wanted && (max_requests == 0 || started < max_requests))
    start_request();
  return wanted < connections ? 1 : STALLED_MS;
}

static int by_value(const void* left, const void* right) {
  double difference = *(const double*) left - *(const double*) right;
  return (difference > 0) - (difference < 0);
}

static double percentile_ms(double percent) {
  return replies == 0 ? 0 : latencies[(long) ((replies - 1) * percent / 100)] * 1e3;
}

static void print_result(double seconds) {
  qsort(latencies, replies, sizeof *latencies, by_value);
  printf("{\"replies\": %ld, \"lost\": %ld, \"seconds\": %.6f, "
         "\"requests_per_second\": %.1f, \"latency_ms\": {\"min\": %.3f, "
         "\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"max\": %.3f}}\n",
         replies, lost, seconds, replies / seconds, percentile_ms(0),
         percentile_ms(50), percentile_ms(90), percentile_ms(99),
         percentile_ms(100));
}

int main(int argc, char** argv) {
  static struct epoll_event events[MAX_EVENTS];
  double began, max_seconds;
  int count, i, timeout;

  if (argc != 5) {
    fprintf(stderr, "usage: %s PORT CONNECTIONS REQUESTS SECONDS\n", argv[0]);
    return 2;
  }
  server.sin_family = AF_INET;
  server.sin_port = htons((uint16_t) atoi(argv[1]));
  server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  connections = atol(argv[2]);
  max_requests = atol(argv[3]);
  max_seconds = atof(argv[4]);
  if (connections < 1 || (max_requests <= 0 && max_seconds <= 0)) {
    fprintf(stderr, "%s: CONNECTIONS and a limit must be positive\n", argv[0]);
    return 2;
  }
  started_at = calloc(raise_open_files_limit(), sizeof *started_at);
  epoll_fd = epoll_create1(0);
  if (started_at == NULL || epoll_fd < 0)
    die("set-up");

  began = now();
  for (;;) {
    timeout = start_requests(now() - began, max_seconds);
    if (open_now == 0)
      break;
    count = epoll_wait(epoll_fd, events, MAX_EVENTS, timeout);
    if (count < 0 && errno != EINTR)
      die("epoll_wait");
    if (count == 0 && timeout == STALLED_MS) {
      lost += open_now;
      break;
    }
    for (i = 0; i < count; i++)
      handle_event(&events[i]);
  }
  print_result(now() - began);
  return lost == 0 ? 0 : 1;
}
