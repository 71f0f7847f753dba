/* A closed-loop load client for the server of bench/http_delay.py, on epoll.
 *
 *   http_load [-e] [-r RATE] [-t SECONDS] [-a ADDRESS] PORT CONNECTIONS REQUESTS
 *             SECONDS
 *
 * Keeps CONNECTIONS open, each for one request, until REQUESTS have been made
 * or SECONDS have passed (0: no such limit), lets those that are open finish,
 * and prints one JSON object. An answer is good only when its bytes are exactly
 * right and the end of the stream follows them. The exit status is 1 if any
 * request was lost.
 *
 *   -e          send nothing: the server closes each connection at once
 *   -r RATE     open the first connections at this rate, a second
 *   -t SECONDS  no event for so long: what is open is lost (60)
 *   -a ADDRESS  the first of the addresses to connect from
 *
 * bench/compare.py uses it, not bench/http_load.py: on two cores a client in
 * Python would be slower than the servers in C and on libuv that it measures,
 * and show its own limit in place of theirs. It makes six system calls a
 * request, fewer than any of the servers.
 */
#define _GNU_SOURCE
#include "common.h"

#include <sys/epoll.h>

/* The first connections are opened at this pace: all at once would overflow
 * the listener's backlog, and a refused SYN is sent again only a second later. */
#define OPENED_PER_SECOND 8000

/* Linux connects from half of the 28,232 ports of ip_local_port_range first,
 * and looks for a free one longer and longer as that half fills. */
#define CONNECTIONS_PER_ADDRESS 10000

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
static in_addr_t first_source = INADDR_LOOPBACK;
static int epoll_fd, empty, stalled_ms = 60000;
static double opened_per_second = OPENED_PER_SECOND;
static double* started_at; /* by descriptor, seconds */
static long connections, max_requests, started, open_now, lost;

static void bind_source_address(int fd) {
  int on = 1;
  struct sockaddr_in source = {.sin_family = AF_INET};
  long addresses = 1 + connections / CONNECTIONS_PER_ADDRESS;
  source.sin_addr.s_addr = htonl(first_source + started % addresses);
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
  if (connections > CONNECTIONS_PER_ADDRESS || first_source != INADDR_LOOPBACK)
    bind_source_address(fd);
  started++;
  if (connect(fd, (struct sockaddr*) &server, sizeof server) != 0 &&
      errno != EINPROGRESS)
    die("connect");
  if (!empty && send(fd, request, sizeof request - 1, MSG_NOSIGNAL) < 0)
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

static void finish_request(int fd) {
  char answer[sizeof response]; /* one byte more than is right */
  ssize_t size = recv(fd, answer, sizeof answer, 0);
  if (empty ? size == 0
            : size == sizeof response - 1 &&
                  memcmp(answer, response, size) == 0)
    count_latency(now() - started_at[fd]);
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
  double ramp = elapsed * opened_per_second + 1;
  long wanted = ramp < connections ? (long) ramp : connections;
  if (max_seconds > 0 && elapsed >= max_seconds)
    return stalled_ms;
  while (open_now < wanted && (max_requests == 0 || started < max_requests))
    start_request();
  return wanted < connections ? 1 + (int) (1000 / opened_per_second)
                              : stalled_ms;
}

static void print_result(double seconds) {
  printf("{\"replies\": %zu, \"lost\": %ld, \"seconds\": %.6f, "
         "\"requests_per_second\": %.1f, ",
         latency_count, lost, seconds, latency_count / seconds);
  print_latencies();
}

static int parse_options(int argc, char** argv) {
  struct in_addr address;
  int option;
  while ((option = getopt(argc, argv, "er:t:a:")) != -1) {
    if (option == 'e')
      empty = 1;
    else if (option == 'r')
      opened_per_second = atof(optarg);
    else if (option == 't')
      stalled_ms = (int) (atof(optarg) * 1000);
    else if (option == 'a' && inet_aton(optarg, &address))
      first_source = ntohl(address.s_addr);
    else
      return 0;
  }
  return argc - optind == 4 && opened_per_second > 0 && stalled_ms > 0;
}

int main(int argc, char** argv) {
  static struct epoll_event events[MAX_EVENTS];
  double began, max_seconds;
  int count, i, timeout;

  if (!parse_options(argc, argv)) {
    fprintf(stderr,
            "usage: %s [-e] [-r RATE] [-t SECONDS] [-a ADDRESS] PORT "
            "CONNECTIONS REQUESTS SECONDS\n",
            argv[0]);
    return 2;
  }
  end_with_parent();
  argv += optind;
  server = loopback(argv[0]);
  connections = atol(argv[1]);
  max_requests = atol(argv[2]);
  max_seconds = atof(argv[3]);
  if (connections < 1 || (max_requests <= 0 && max_seconds <= 0)) {
    fprintf(stderr, "CONNECTIONS and a limit must be positive\n");
    return 2;
  }
  started_at = calloc(raise_open_files_limit(), sizeof *started_at);
  epoll_fd = epoll_create1(0);
  if (started_at == NULL || epoll_fd < 0)
    die("set-up");

  began = now();
  for (;;) {
    timeout = start_requests(now() - began, max_seconds);
    if (open_now == 0 && timeout == stalled_ms)
      break;
    count = epoll_wait(epoll_fd, events, MAX_EVENTS, timeout);
    if (count < 0 && errno != EINTR)
      die("epoll_wait");
    if (count == 0 && timeout == stalled_ms) {
      lost += open_now;
      break;
    }
    for (i = 0; i < count; i++)
      handle_event(&events[i]);
  }
  print_result(now() - began);
  return lost == 0 ? 0 : 1;
}
