/* A UDP echo server on libuv. It prints where it listens, and runs until a
 * signal ends it. */
#include <uv.h>

#include "common.h"

static char input[65536];

static void on_alloc(uv_handle_t* handle, size_t size, uv_buf_t* buf) {
  *buf = uv_buf_init(input, sizeof input);
}

static void on_receive(uv_udp_t* socket, ssize_t size, const uv_buf_t* buf,
                       const struct sockaddr* address, unsigned flags) {
  uv_buf_t answer = uv_buf_init(buf->base, size > 0 ? (unsigned) size : 0);
  if (size > 0) /* what the kernel has no room for is lost, as UDP may */
    uv_udp_try_send(socket, &answer, 1, address);
}

int main(void) {
  uv_udp_t socket;
  struct sockaddr_in address = loopback("0");
  int size = sizeof address;
  end_with_parent();
  check(uv_udp_init(uv_default_loop(), &socket), "udp");
  check(uv_udp_bind(&socket, (struct sockaddr*) &address, 0), "bind");
  check(uv_udp_recv_start(&socket, on_alloc, on_receive), "receive");
  check(uv_udp_getsockname(&socket, (struct sockaddr*) &address, &size),
        "getsockname");
  printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
  fflush(stdout);
  return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
