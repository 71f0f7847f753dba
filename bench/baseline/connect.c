/* Makes connections with libuv, so many at a time, to a server that closes each
 * at once.
 *
 *   connect PORT CONNECTIONS SECONDS
 *
 * Prints how many were made a second, and the CPU seconds for each.
 */
#include <uv.h>

#include "common.h"

typedef struct {
  uv_tcp_t tcp;
  uv_connect_t request;
} connection_t;

static struct sockaddr_in server;
static char input[4096];
static long made;
static double deadline;

static void start_connection(void);

static void on_close(uv_handle_t* handle) {
  free(handle->data);
  made++;
  if (now() < deadline)
    start_connection();
}

static void on_alloc(uv_handle_t* handle, size_t size, uv_buf_t* buf) {
  *buf = uv_buf_init(input, sizeof input);
}

static void on_read(uv_stream_t* stream, ssize_t size, const uv_buf_t* buf) {
  if (size != UV_EOF)
    check(size < 0 ? (int) size : UV_EINVAL, "read");
  uv_close((uv_handle_t*) stream, on_close);
}

static void on_connect(uv_connect_t* request, int status) {
  check(status, "connect");
  check(uv_read_start(request->handle, on_alloc, on_read), "read");
}

static void start_connection(void) {
  connection_t* connection = malloc(sizeof *connection);
  if (connection == NULL)
    abort();
  check(uv_tcp_init(uv_default_loop(), &connection->tcp), "tcp");
  connection->tcp.data = connection;
  check(uv_tcp_connect(&connection->request, &connection->tcp,
                       (struct sockaddr*) &server, on_connect),
        "connect");
}

int main(int argc, char** argv) {
  double began = now(), cpu = cpu_seconds();
  int i;
  if (argc != 4) {
    fprintf(stderr, "usage: %s PORT CONNECTIONS SECONDS\n", argv[0]);
    return 2;
  }
  raise_open_files_limit();
  server = loopback(argv[1]);
  deadline = began + atof(argv[3]);
  for (i = 0; i < atoi(argv[2]); i++)
    start_connection();
  uv_run(uv_default_loop(), UV_RUN_DEFAULT);
  printf("{\"per_second\": %.1f, \"cpu_seconds\": %.9f}\n",
         made / (now() - began), (cpu_seconds() - cpu) / made);
  return 0;
}
