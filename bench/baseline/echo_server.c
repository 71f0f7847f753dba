/* An echo server on libuv: what pyasync's is compared with. It prints where it
 * listens, and runs until a signal ends it. */
#include <uv.h>

#include "common.h"

typedef struct {
  uv_write_t write;
  char data[];
} pending_t;

static uv_tcp_t listener;

/* Every connection reads into this buffer: what is not sent at once is copied. */
static char input[256 * 1024];

static void on_close(uv_handle_t* handle) {
  free(handle);
}

static void on_write(uv_write_t* write, int status) {
  free(write);
}

static void on_alloc(uv_handle_t* handle, size_t size, uv_buf_t* buf) {
  *buf = uv_buf_init(input, sizeof input);
}

static void on_read(uv_stream_t* stream, ssize_t size, const uv_buf_t* buf) {
  uv_buf_t rest = uv_buf_init(buf->base, size > 0 ? (unsigned) size : 0);
  pending_t* pending;
  int sent;
  if (size < 0)
    uv_close((uv_handle_t*) stream, on_close);
  if (size <= 0)
    return;
  sent = uv_try_write(stream, &rest, 1);
  if (sent == size)
    return;
  if (sent < 0)
    sent = 0;
  pending = malloc(sizeof *pending + size - sent);
  if (pending == NULL)
    abort();
  memcpy(pending->data, buf->base + sent, size - sent);
  rest = uv_buf_init(pending->data, (unsigned) (size - sent));
  check(uv_write(&pending->write, stream, &rest, 1, on_write), "write");
}

static void on_connection(uv_stream_t* server, int status) {
  uv_tcp_t* connection = malloc(sizeof *connection);
  check(status, "accept");
  if (connection == NULL)
    abort();
  check(uv_tcp_init(server->loop, connection), "tcp");
  check(uv_accept(server, (uv_stream_t*) connection), "accept");
  uv_tcp_nodelay(connection, 1);
  check(uv_read_start((uv_stream_t*) connection, on_alloc, on_read), "read");
}

int main(void) {
  end_with_parent();
  listen_anywhere(&listener, on_connection);
  return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
