/* The server of bench/http_delay.py, written in C on libuv: what pyasync is
 * compared with.
 *
 *   http_delay PORT DELAY_SECONDS [BACKLOG]
 *
 * On data it waits DELAY_SECONDS, then, unless the connection closed meanwhile,
 * writes a fixed response and closes. SIGINT or SIGTERM closes the listener;
 * the connections that are open finish, and the exit status is 0. A second
 * signal ends it at once.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <uv.h>

typedef struct {
  uv_tcp_t tcp;
  uv_timer_t timer;
  uv_write_t write;
  int handles; /* how many of the two handles are not closed yet */
} connection_t;

static const char response[] =
    "HTTP/1.1 200 OK\r\n"
    "Date: Wed, 03 Oct 2012 23:43:10 GMT\r\n"
    "Content-Type: text/plain\r\n"
    "Content-Length: 9\r\n"
    "\r\n"
    "omglolwtf";

static uint64_t delay_ms;
static uv_tcp_t listener;
static uv_signal_t signals[2];

/* Every connection reads into this buffer: what a request says is not kept. */
static char request[65536];

static void check(int status, const char* what) {
  if (status < 0) {
    fprintf(stderr, "%s: %s\n", what, uv_strerror(status));
    exit(1);
  }
}

static void on_close(uv_handle_t* handle) {
  connection_t* connection = handle->data;
  if (--connection->handles == 0)
    free(connection);
}

static void close_connection(connection_t* connection) {
  if (uv_is_closing((uv_handle_t*) &connection->tcp))
    return;
  uv_close((uv_handle_t*) &connection->tcp, on_close);
  uv_close((uv_handle_t*) &connection->timer, on_close);
}

static void on_write(uv_write_t* write, int status) {
  close_connection(write->handle->data);
}

static void respond(uv_timer_t* timer) {
  connection_t* connection = timer->data;
  uv_stream_t* stream = (uv_stream_t*) &connection->tcp;
  uv_buf_t buf = uv_buf_init((char*) response, sizeof response - 1);
  if (uv_write(&connection->write, stream, &buf, 1, on_write) != 0)
    close_connection(connection);
}

static void on_alloc(uv_handle_t* handle, size_t size, uv_buf_t* buf) {
  *buf = uv_buf_init(request, sizeof request);
}

static void on_read(uv_stream_t* stream, ssize_t size, const uv_buf_t* buf) {
  connection_t* connection = stream->data;
  if (size < 0) {
    close_connection(connection);
  } else if (size > 0 && !uv_is_active((uv_handle_t*) &connection->timer)) {
    if (delay_ms == 0)
      respond(&connection->timer);
    else
      uv_timer_start(&connection->timer, respond, delay_ms, 0);
  }
}

static void on_connection(uv_stream_t* server, int status) {
  connection_t* connection;
  if (status < 0) {
    fprintf(stderr, "accept: %s\n", uv_strerror(status));
    return;
  }
  connection = malloc(sizeof *connection);
  if (connection == NULL)
    abort();
  uv_tcp_init(server->loop, &connection->tcp);
  uv_timer_init(server->loop, &connection->timer);
  connection->tcp.data = connection->timer.data = connection;
  connection->handles = 2;
  if (uv_accept(server, (uv_stream_t*) &connection->tcp) != 0 ||
      uv_read_start((uv_stream_t*) &connection->tcp, on_alloc, on_read) != 0)
    close_connection(connection);
}

static void on_signal(uv_signal_t* handle, int signum) {
  uv_close((uv_handle_t*) &listener, NULL);
  uv_close((uv_handle_t*) &signals[0], NULL);
  uv_close((uv_handle_t*) &signals[1], NULL);
}

static void raise_open_files_limit(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

static int bound_port(void) {
  struct sockaddr_in address;
  int size = sizeof address;
  check(uv_tcp_getsockname(&listener, (struct sockaddr*) &address, &size),
        "getsockname");
  return ntohs(address.sin_port);
}

int main(int argc, char** argv) {
  static const int signal_numbers[] = {SIGINT, SIGTERM};
  uv_loop_t* loop = uv_default_loop();
  struct sockaddr_in address;
  int i;

  if (argc < 3 || argc > 4) {
    fprintf(stderr, "usage: %s PORT DELAY_SECONDS [BACKLOG]\n", argv[0]);
    return 2;
  }
  raise_open_files_limit();
  delay_ms = (uint64_t) (atof(argv[2]) * 1000);

  check(uv_tcp_init(loop, &listener), "tcp");
  check(uv_ip4_addr("127.0.0.1", atoi(argv[1]), &address), "address");
  check(uv_tcp_bind(&listener, (struct sockaddr*) &address, 0), "bind");
  check(uv_listen((uv_stream_t*) &listener,
                  argc == 4 ? atoi(argv[3]) : SOMAXCONN,
                  on_connection),
        "listen");
  for (i = 0; i < 2; i++) {
    check(uv_signal_init(loop, &signals[i]), "signal");
    check(uv_signal_start(&signals[i], on_signal, signal_numbers[i]), "signal");
  }

  printf("listening on 127.0.0.1:%d\n", bound_port());
  fflush(stdout);
  uv_run(loop, UV_RUN_DEFAULT);
  return uv_loop_close(loop) == 0 ? 0 : 1;
}
