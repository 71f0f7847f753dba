/* The load on the servers of the benchmarks, from one process on epoll.
 *
 * After the measurement it stays, with its connections, until its standard
 * input ends, so that the server's CPU time can be read before they are closed.
 *
 * bench/http_load.py, in Python, would be slower than the servers in C and on
 * libuv, and show its own limit in place of theirs. A request takes this client
 * six system calls, fewer than any server; a message on a kept connection two
 * and its share of an epoll_wait, as many as a server. Of datagrams it takes
 * many with one call, which no server does.
 */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

static const char usage[] =
    "usage: load [OPTIONS] http|accept|echo|udp PORT CONNECTIONS\n"
    "  http        a request on each connection, then another connection\n"
    "  accept      the same, but that nothing is sent\n"
    "  echo        messages on connections that are kept\n"
    "  udp         datagrams, so many in flight: an answer, then another\n"
    "  -w SECONDS  warm up for so long (0), then say \"begin\"\n"
    "  -d SECONDS  and measure for so long\n"
    "  -n NUMBER   or until so many requests or messages have been answered\n"
    "  -s SIZE     of a message (1024)\n"
    "  -r RATE     open connections at this rate, a second (8000)\n"
    "  -t SECONDS  no event for so long: what is under way is lost (60)\n"
    "  -a ADDRESS  the first of the addresses to connect from\n"
    "It prints one JSON object. An answer is good when its bytes are exactly\n"
    "right and, of http and accept, the end of the stream follows them. The\n"
    "exit status is 1 if any was lost.\n";

/* Linux connects from half of the 28,232 ports of ip_local_port_range first,
 * and looks for a free one longer and longer as that half fills. */
#define CONNECTIONS_PER_ADDRESS 10000

#define MAX_EVENTS 512
#define MAX_DATAGRAMS 64
#define REQUEST "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

typedef struct {
  size_t sent, received; /* of the message under way */
  double began;
} connection_t;

static struct sockaddr_in server;
static in_addr_t first_source = INADDR_LOOPBACK;
static int epoll_fd, kept;
static long most;

/* By letter. A rate, since at once the first connections would overflow the
 * listener's backlog, and a refused SYN is sent again only a second later. */
static double options[128] = {['s'] = 1024, ['r'] = 8000, ['t'] = 60};

static const char *message = "", *expected = "";
static size_t message_size, expected_size;
static char* input;

static connection_t* connections; /* by descriptor */
static long opened, open_now, started, under_way, lost;

/* Seconds, of the good answers */
static double* latencies;
static size_t done, capacity;

static void count_good(double latency) {
  if (done == capacity) {
    capacity = capacity ? 2 * capacity : 65536;
    latencies = realloc(latencies, capacity * sizeof *latencies);
    if (latencies == NULL)
      die("realloc");
  }
  latencies[done++] = latency;
}

static int may_start(void) {
  return options['n'] == 0 || started < options['n'];
}

/* What of the message is not sent, since the connection is not there yet or the
 * kernel has no room, follows when epoll says so. */
static void send_rest(int fd) {
  connection_t* connection = &connections[fd];
  ssize_t count = send(fd, message + connection->sent,
                       message_size - connection->sent, MSG_NOSIGNAL);
  if (count > 0)
    connection->sent += count;
  else if (count < 0 && kept && errno != EAGAIN)
    die("send");
}

static void begin_message(int fd) {
  connections[fd] = (connection_t){.began = now()};
  started++;
  under_way++;
}

static void bind_source_address(int fd) {
  int on = 1;
  struct sockaddr_in source = {.sin_family = AF_INET};
  long addresses = 1 + most / CONNECTIONS_PER_ADDRESS;
  source.sin_addr.s_addr = htonl(first_source + opened % addresses);
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
  if (bind(fd, (struct sockaddr*) &source, sizeof source) != 0)
    die("bind");
}

/* Connects, and sends at once: on the loopback the handshake is over when
 * connect returns. Of a connection for one request the end alone is waited for,
 * and if the request is not sent, that it can be. */
static void open_connection(void) {
  struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET};
  int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0 || fd >= most + 1024)
    die("socket");
  begin_message(fd);
  if (most > CONNECTIONS_PER_ADDRESS || first_source != INADDR_LOOPBACK)
    bind_source_address(fd);
  opened++;
  open_now++;
  if (kept)
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(fd, (struct sockaddr*) &server, sizeof server) != 0 &&
      errno != EINPROGRESS)
    die("connect");
  if (message_size > 0)
    send_rest(fd);
  if (kept)
    event.events = EPOLLIN | EPOLLOUT | EPOLLET;
  else if (connections[fd].sent < message_size)
    event.events |= EPOLLOUT;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
    die("epoll_ctl");
}

static void end_connection(int fd) {
  ssize_t size = recv(fd, input, expected_size + 1, 0);
  if (size == (ssize_t) expected_size && memcmp(input, expected, size) == 0)
    count_good(now() - connections[fd].began);
  else
    lost++;
  close(fd);
  open_now--;
  under_way--;
}

/* Edge-triggered: what is there must be read until there is no more. */
static void read_message(int fd) {
  connection_t* connection = &connections[fd];
  ssize_t count, asked;
  do {
    asked = expected_size - connection->received;
    count = recv(fd, input, asked, 0);
    if (count < 0 && errno == EAGAIN)
      return;
    if (count <= 0 ||
        memcmp(input, expected + connection->received, count) != 0) {
      fprintf(stderr, "%s\n", count > 0 ? "a wrong answer" : "no answer");
      exit(1);
    }
    connection->received += count;
  } while (count == asked && connection->received < expected_size);
  if (connection->received < expected_size)
    return;
  count_good(now() - connection->began);
  under_way--;
  if (may_start()) {
    begin_message(fd);
    send_rest(fd);
  }
}

static void on_event(const struct epoll_event* event) {
  int fd = event->data.fd;
  if (connections[fd].sent < message_size)
    send_rest(fd);
  if (kept)
    read_message(fd);
  else if (event->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
    end_connection(fd);
}

/* Run until the time is over or the number is reached, and what is under way
 * has ended; on kept connections, where it never does, only the former. */
static void run(double seconds) {
  static struct epoll_event events[MAX_EVENTS];
  double first = now(), began = first, rate = options['r'], time, ramp;
  int i, count, over, opening;
  for (;;) {
    time = now();
    ramp = (time - first) * rate + 1;
    opening = open_now < most && ramp < most;
    if (kept && open_now < most)
      began = time; /* it counts when all connections are there */
    over = !may_start() || (seconds > 0 && time >= began + seconds);
    while (!over && open_now < most && open_now < ramp && may_start())
      open_connection();
    if (over && (under_way == 0 || (kept && options['n'] == 0)))
      return;
    count = epoll_wait(epoll_fd, events, MAX_EVENTS,
                       1000 * (opening && !over ? 1 / rate : options['t']) + 1);
    if (count < 0 && errno != EINTR)
      die("epoll_wait");
    if (count == 0 && (over || !opening)) {
      fprintf(stderr, "no answer for %g s\n", options['t']);
      lost += under_way;
      return;
    }
    for (i = 0; i < count; i++)
      on_event(&events[i]);
  }
}

/* All the datagrams fit into the kernel's buffers. */
static void run_udp(double seconds) {
  static struct mmsghdr in[MAX_DATAGRAMS], out[MAX_DATAGRAMS];
  static struct iovec buffer, answer;
  static int fd, count;
  double began = now();
  int i, silent = 0;
  if (fd == 0) {
    struct timeval patience = {.tv_usec = 200000};
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr*) &server, sizeof server) != 0)
      die("connect");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    buffer = (struct iovec){(char*) message, message_size};
    answer = (struct iovec){input, message_size};
    for (i = 0; i < MAX_DATAGRAMS; i++) {
      out[i].msg_hdr = (struct msghdr){.msg_iov = &buffer, .msg_iovlen = 1};
      in[i].msg_hdr = (struct msghdr){.msg_iov = &answer, .msg_iovlen = 1};
    }
    count = most;
  }
  while (now() < began + seconds) {
    if (sendmmsg(fd, out, count, 0) < 0)
      die("sendmmsg");
    count = recvmmsg(fd, in, most, MSG_WAITFORONE, NULL);
    if (count < 0 && errno != EAGAIN)
      die("recvmmsg");
    if (count > 0) {
      silent = 0;
      done += count;
    } else { /* whatever was on its way is lost */
      lost += most;
      count = most;
      if (++silent == 50) {
        fprintf(stderr, "no answer for 10 s\n");
        exit(1);
      }
    }
  }
}

static int by_value(const void* left, const void* right) {
  double difference = *(const double*) left - *(const double*) right;
  return (difference > 0) - (difference < 0);
}

static double percentile_ms(double percent) {
  size_t index = (done - 1) * percent / 100;
  return latencies && done ? latencies[index] * 1e3 : 0;
}

static void print_result(double seconds) {
  if (latencies)
    qsort(latencies, done, sizeof *latencies, by_value);
  printf("{\"done\": %zu, \"lost\": %ld, \"seconds\": %.6f, "
         "\"per_second\": %.1f, \"latency_ms\": {\"min\": %.3f, \"p50\": %.3f, "
         "\"p90\": %.3f, \"p99\": %.3f, \"max\": %.3f}}\n",
         done, lost, seconds, done / seconds, percentile_ms(0),
         percentile_ms(50), percentile_ms(90), percentile_ms(99),
         percentile_ms(100));
  fflush(stdout);
}

static void make_message(void) {
  size_t i, size = options['s'];
  char* bytes = allocate(size);
  for (i = 0; i < size; i++)
    bytes[i] = (char) (i * 31 + i / 251);
  message = expected = bytes;
  message_size = expected_size = size;
}

static void exit_with_usage(void) {
  fputs(usage, stderr);
  exit(2);
}

int main(int argc, char** argv) {
  struct in_addr address;
  void (*load)(double) = run;
  const char* kind;
  double began;
  int option;

  while ((option = getopt(argc, argv, "w:d:n:s:r:t:a:")) != -1) {
    if (option == '?' || (option == 'a' && !inet_aton(optarg, &address)))
      exit_with_usage();
    if (option == 'a')
      first_source = ntohl(address.s_addr);
    else
      options[option] = atof(optarg);
  }
  argv += optind;
  if (argc - optind != 3 || (most = atol(argv[2])) < 1 || options['s'] < 1 ||
      (options['d'] <= 0 && options['n'] <= 0) || options['r'] <= 0 ||
      options['t'] <= 0)
    exit_with_usage();
  kind = argv[0];
  if (strcmp(kind, "http") == 0) {
    message = REQUEST;
    message_size = sizeof REQUEST - 1;
    expected = RESPONSE;
    expected_size = sizeof RESPONSE - 1;
  } else if (strcmp(kind, "echo") == 0) {
    kept = 1;
    make_message();
  } else if (strcmp(kind, "udp") == 0 && most <= MAX_DATAGRAMS &&
             options['d'] > 0) {
    load = run_udp;
    make_message();
  } else if (strcmp(kind, "accept") != 0) {
    exit_with_usage();
  }
  prctl(PR_SET_PDEATHSIG, SIGTERM); /* who is killed must not leave its load */
  server = loopback(argv[1]);
  connections = allocate((most + 1024) * sizeof *connections);
  input = allocate(expected_size + 1);
  epoll_fd = epoll_create1(0);
  if (epoll_fd < 0)
    die("epoll_create1");

  if (options['w'] > 0)
    load(options['w']);
  done = 0;
  started = under_way; /* these will be counted */
  puts("begin");
  fflush(stdout);
  began = now();
  load(options['d']);
  print_result(now() - began);
  while (getchar() != EOF) {
  }
  return lost == 0 ? 0 : 1;
}
