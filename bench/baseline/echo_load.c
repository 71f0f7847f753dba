/* A client for echo servers, on epoll.
 *
 *   echo_load PORT CONNECTIONS SIZE WARM_UP_SECONDS SECONDS
 *
 * Each connection sends a message of SIZE bytes, waits until all of it has come
 * back, and sends the next. It prints "begin" when WARM_UP_SECONDS have passed
 * since every connection had its first answer, and SECONDS later one JSON
 * object. Then it keeps the connections until its standard input ends, so that
 * the server's CPU time can be read before they are closed.
 *
 * A message costs it two system calls and its share of an epoll_wait, as many
 * as the servers: on two processors it is as fast as a server in C, which is
 * why the figure to compare is the server's CPU time per message.
 */
#define _GNU_SOURCE
#include "common.h"

#include <fcntl.h>
#include <sys/epoll.h>

#define MAX_EVENTS 512
#define STALLED_MS 20000

typedef struct {
  int fd;
  long sent, received; /* of the message under way */
  double began;
  int answered;
} connection_t;

static char *message, *input;
static long size, answered, messages;
static int measuring;

static void send_rest(connection_t* connection) {
  ssize_t count = send(connection->fd, message + connection->sent,
                       size - connection->sent, MSG_NOSIGNAL);
  if (count < 0 && errno != EAGAIN)
    die("send");
  connection->sent += count > 0 ? count : 0;
}

static void begin_message(connection_t* connection) {
  connection->sent = connection->received = 0;
  connection->began = now();
  send_rest(connection);
}

static void end_message(connection_t* connection) {
  if (!connection->answered) {
    connection->answered = 1;
    answered++;
  }
  if (measuring) {
    messages++;
    count_latency(now() - connection->began);
  }
  begin_message(connection);
}

/* Edge-triggered: what is there must be read until there is no more. */
static void on_event(connection_t* connection) {
  ssize_t count, asked;
  if (connection->sent < size)
    send_rest(connection);
  do {
    asked = size - connection->received;
    count = recv(connection->fd, input, asked, 0);
    if (count < 0 && errno == EAGAIN)
      return;
    if (count <= 0 ||
        memcmp(input, message + connection->received, count) != 0) {
      fprintf(stderr, "%s\n", count > 0 ? "a wrong answer" : "no answer");
      exit(1);
    }
    connection->received += count;
  } while (count == asked && connection->received < size);
  if (connection->received == size)
    end_message(connection);
}

static void open_connection(connection_t* connection, int epoll_fd,
                            const struct sockaddr_in* server) {
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
  int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0 || connect(fd, (struct sockaddr*) server, sizeof *server) != 0)
    die("connect");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  connection->fd = fd;
  event.data.ptr = connection;
  begin_message(connection);
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
    die("epoll_ctl");
}

int main(int argc, char** argv) {
  static struct epoll_event events[MAX_EVENTS];
  struct sockaddr_in server;
  connection_t* connections;
  double warm_up, seconds, warm = 0, began = 0, time;
  long i, number;
  int count, epoll_fd = epoll_create1(0);

  if (argc != 6 || (number = atol(argv[2])) < 1 || (size = atol(argv[3])) < 1) {
    fprintf(stderr, "usage: %s PORT CONNECTIONS SIZE WARM_UP_SECONDS SECONDS\n",
            argv[0]);
    return 2;
  }
  end_with_parent();
  raise_open_files_limit();
  server = loopback(argv[1]);
  warm_up = atof(argv[4]);
  seconds = atof(argv[5]);
  connections = calloc(number, sizeof *connections);
  message = malloc(size);
  input = malloc(size);
  if (epoll_fd < 0 || connections == NULL || message == NULL || input == NULL)
    die("set-up");
  for (i = 0; i < size; i++)
    message[i] = (char) (i * 31 + i / 251);
  for (i = 0; i < number; i++)
    open_connection(&connections[i], epoll_fd, &server);

  for (;;) {
    time = now();
    if (warm == 0 && answered == number)
      warm = time;
    if (!measuring && warm != 0 && time >= warm + warm_up) {
      puts("begin");
      fflush(stdout);
      began = now();
      measuring = 1;
    }
    if (measuring && time >= began + seconds)
      break;
    count = epoll_wait(epoll_fd, events, MAX_EVENTS, STALLED_MS);
    if (count < 0 && errno != EINTR)
      die("epoll_wait");
    if (count == 0) {
      fprintf(stderr, "no answer for %d s\n", STALLED_MS / 1000);
      return 1;
    }
    for (i = 0; i < count; i++)
      on_event(events[i].data.ptr);
  }
  time = now() - began;
  printf("{\"messages\": %ld, \"seconds\": %.6f, \"per_second\": %.1f, ",
         messages, time, messages / time);
  print_latencies();
  while (getchar() != EOF) {
  }
  return 0;
}
