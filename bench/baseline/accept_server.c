/* A server on libuv that closes each connection when it has accepted it. It
 * prints where it listens, and runs until a signal ends it. */
#include <uv.h>

#include "common.h"

static uv_tcp_t listener;

static void on_close(uv_handle_t* handle) {
  free(handle);
}

static void on_connection(uv_stream_t* server, int status) {
  uv_tcp_t* connection = malloc(sizeof *connection);
  check(status, "accept");
  if (connection == NULL)
    abort();
  check(uv_tcp_init(server->loop, connection), "tcp");
  check(uv_accept(server, (uv_stream_t*) connection), "accept");
  uv_close((uv_handle_t*) connection, on_close);
}

int main(void) {
  end_with_parent();
  listen_anywhere(&listener, on_connection);
  return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
