/* Servers and clients.
 *
 * A server is a uv_poll_t and accept4, and not uv_listen, because that hides
 * the errors of accept: out of descriptors it closes waiting connections with
 * the help of a spare one, or calls back without end. And after one uv_accept
 * that fails the listener never calls back again. */
#define _GNU_SOURCE  /* accept4 */
#include "pyasync.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* At once: between socket() and fcntl() another thread may fork. */
#if !defined(SOCK_CLOEXEC) || defined(PA_PORTABLE)
#undef SOCK_CLOEXEC
#define SOCK_CLOEXEC 0
#endif

/* A server accepts so many connections in an iteration at most: what is open
 * already has its turn then. */
#define ACCEPT_BATCH 64

typedef struct {
  uv_poll_t poll;
  int fd;         /* uv_close does not close a poll handle's descriptor */
  int kind;       /* of its connections */
  int64_t limit;  /* connections still to be accepted; -1: any number */
  int paused;     /* by Python, which then counts connections on */
} pa_listener;

/* Servers */

static int accept_fd(int listening, struct sockaddr_storage *peer) {
  socklen_t size = sizeof(*peer);

  peer->ss_family = AF_UNSPEC;
#if defined(PA_LINUX) || defined(__FreeBSD__) || defined(__OpenBSD__) || \
    defined(__NetBSD__)
  return accept4(listening, (struct sockaddr *) peer, &size,
                 SOCK_NONBLOCK | SOCK_CLOEXEC);
#else
  int fd = accept(listening, (struct sockaddr *) peer, &size);

  if (fd >= 0)
    fcntl(fd, F_SETFD, FD_CLOEXEC);  /* uv_tcp_open makes it non-blocking */
  return fd;
#endif
}

/* Whether it is an error of the connection, and not of the listening socket:
 * accept(2) asks to treat those like EAGAIN. After all others, most of all when
 * descriptors or memory have run out, the server pauses, because the connection
 * still waits, and the poll would report it at once and without end. */
static int is_passing(int error) {
  switch (error) {
    case EINTR:
    case ECONNABORTED:
    case EPROTO:
    case EPERM:
    case ENOPROTOOPT:
    case ENETDOWN:
    case ENETUNREACH:
    case EHOSTDOWN:
    case EHOSTUNREACH:
#ifdef ENONET
    case ENONET:
#endif
    case EOPNOTSUPP:
      return 1;
    default:
      return 0;
  }
}

/* Makes fd a stream. Returns its slot, or an error; fd is closed then. */
static int open_stream(pa_loop *loop, int fd, int kind, int flags,
                       const struct sockaddr_storage *peer) {
  union {
    uv_handle_t handle;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
  } *stream;
  int slot;
  int error;

  fd = pa_above_standard_streams(fd);
  if (fd < 0)
    return uv_translate_sys_error(errno);
  /* Exactly the size of its kind: handles are most of a connection's memory. */
  stream = pa_handle_new(
      loop, uv_handle_size(kind == PA_TCP ? UV_TCP : UV_NAMED_PIPE));
  if (stream == NULL) {
    close(fd);
    return UV_ENOMEM;
  }
  if (kind == PA_TCP) {
    uv_tcp_init(&loop->uv, &stream->tcp);
    error = uv_tcp_open(&stream->tcp, fd);
  } else {
    uv_pipe_init(&loop->uv, &stream->pipe, 0);
    error = uv_pipe_open(&stream->pipe, fd);
  }
  if (error != 0) {
    close(fd);
    uv_close(&stream->handle, pa_free_unstarted);
    return error;
  }
  pa_keep_peer(&stream->handle, (const struct sockaddr *) peer);
  slot = pa_slot_new(loop, &stream->handle, kind, flags);
  pa_stream_opened(loop, slot);
  return slot;
}

static void accept_failed(pa_loop *loop, pa_listener *listener, int error) {
  loop->counters->accept_errors++;
  uv_poll_stop(&listener->poll);
  pa_push(loop, PA_ACCEPT_ERROR, pa_slot_of(listener), error, 0);
}

/* For a Python that wants it at once, without a crossing. Returns where the
 * arena holds the address until the next iteration, or -1. */
static int64_t keep_address(pa_loop *loop, const struct sockaddr_storage *peer) {
  size_t start = loop->arena_used;

  if (peer->ss_family != AF_INET && peer->ss_family != AF_INET6)
    return -1;
  if (start > ADDRESSES_END)
    return -1;
  pa_use_arena(loop, start + pa_pack_address(loop->arena + start,
                                             (const struct sockaddr *) peer));
  return (int64_t) start;
}

static void on_acceptable(uv_poll_t *poll, int status, int events) {
  pa_loop *loop = pa_loop_of(poll);
  pa_listener *listener = (pa_listener *) poll;
  int count;

  (void) events;
  pa_awake(loop);
  if (status < 0) {
    accept_failed(loop, listener, status);
    return;
  }
  for (count = 0; count < ACCEPT_BATCH && listener->limit != 0; count++) {
    struct sockaddr_storage peer;
    int fd = accept_fd(listener->fd, &peer);

    if (fd >= 0) {
      int slot = open_stream(loop, fd, listener->kind, PA_INCOMING, &peer);

      if (slot < 0) {
        accept_failed(loop, listener, slot);
        return;
      }
      if (listener->limit > 0)
        listener->limit--;
      pa_push(loop, PA_ACCEPTED, slot, pa_slot_of(listener),
              keep_address(loop, &peer));
      pa_stream_read_first(loop, slot);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      return;
    } else if (!is_passing(errno)) {
      accept_failed(loop, listener, uv_translate_sys_error(errno));
      return;
    }
  }
  if (listener->limit == 0)
    uv_poll_stop(poll);
}

void pa_server_accept(uv_handle_t *handle, int64_t more) {
  pa_listener *listener = (pa_listener *) handle;

  if (more < 0)
    listener->paused = more == PA_PAUSE_ACCEPTING;
  else if (listener->limit >= 0)
    listener->limit += more;
  if (listener->paused) {
    uv_poll_stop(&listener->poll);
    return;
  }
  /* Not again where it polls: uv_poll_start makes epoll forget the descriptor
   * first. */
  if (listener->limit != 0 && !uv_is_active(handle))
    uv_poll_start(&listener->poll, UV_READABLE, on_acceptable);
}

static void close_server(pa_loop *loop, uv_handle_t *handle,
                         uv_close_cb closed) {
  (void) loop;
  uv_close(handle, closed);
  /* Now, and not in the close callback, because the address is to be free at
   * once; and not before, because epoll must forget the descriptor first. */
  close(((pa_listener *) handle)->fd);
}

static void refused(pa_loop *loop, int slot, int error) {
  accept_failed(loop, (pa_listener *) loop->slots[slot].handle, error);
}

const pa_kind pa_server_kind = {.close = close_server, .refused = refused};

int pa_listen(pa_loop *loop, int fd, int kind, int limit) {
  pa_listener *listener = pa_handle_new(loop, sizeof(*listener));
  int error;

  loop->counters->crossings++;
  if (listener == NULL)
    return UV_ENOMEM;
  error = uv_poll_init(&loop->uv, &listener->poll, fd);
  if (error != 0) {
    free(listener);
    return error;
  }
  listener->fd = fd;
  listener->kind = kind == PA_PIPE_SERVER ? PA_PIPE : PA_TCP;
  listener->limit = limit;
  listener->paused = 0;
  pa_slot_new(loop, (uv_handle_t *) &listener->poll, kind, 0);
  pa_server_accept((uv_handle_t *) &listener->poll, 0);
  return pa_slot_of(&listener->poll);
}

/* Clients */

int pa_open(pa_loop *loop, int fd, int kind, int read) {
  struct sockaddr_storage peer = {.ss_family = AF_UNSPEC};
  socklen_t size = sizeof(peer);
  int flags = 0;
  int slot;

  loop->counters->crossings++;
  /* A pipe(2) or a terminal is never reset, and its unread input is not ours to
   * discard: the next program may read it. FIONREAD of a pipe's writing end
   * tells how much its reader has not read yet. */
  if (getpeername(fd, (struct sockaddr *) &peer, &size) != 0 &&
      errno == ENOTSOCK)
    flags = PA_NO_LINGER;
  slot = open_stream(loop, fd, kind, flags, &peer);
  if (slot >= 0 && read)
    pa_stream_read_start(loop->slots[slot].handle);
  return slot;
}

int pa_adopt(pa_loop *loop, int fd) {
  int slot = pa_open(loop, fd, PA_TCP, 1);

  if (slot >= 0)
    pa_push(loop, PA_CONNECTED, slot, 0, 0);
  return slot;
}

/* Not made by libuv, because its number must not be a standard stream's: to see
 * that before would cost three system calls. */
static int new_socket(int family) {
  int fd =
      pa_above_standard_streams(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));

  if (fd < 0)
    return uv_translate_sys_error(errno);
  if (SOCK_CLOEXEC == 0)
    fcntl(fd, F_SETFD, FD_CLOEXEC);
  return fd;
}

/* Returns a socket that is bound to the address, or an error. */
static int bound_socket(const struct sockaddr_storage *address) {
  int fd = new_socket(address->ss_family);

  if (fd < 0)
    return fd;
  /* Or bind would refuse a port that an earlier connection still has in
   * TIME_WAIT, though it may be free towards this peer. Where it is not,
   * connect says so (EADDRNOTAVAIL). */
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
#ifdef IP_BIND_ADDRESS_NO_PORT
  /* Lets connect choose the port, in place of bind: connect needs one that is
   * free towards that peer, and bind one that is free towards all, of which
   * there are fewer (ip(7)). It has no effect on a port that is given. */
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
#endif
  if (bind(fd, (const struct sockaddr *) address, pa_address_size(address)) !=
      0) {
    int error = uv_translate_sys_error(errno);

    close(fd);
    return error;
  }
  return fd;
}

int pa_tcp_connect(pa_loop *loop, const char *address,
                   const char *local_address, int may_retry) {
  struct sockaddr_storage remote;
  struct sockaddr_storage local;
  uv_connect_t *request;
  uv_tcp_t *tcp;
  int fd;
  int slot;
  int error;

  loop->counters->crossings++;
  pa_unpack_address(address, &remote);
  if (local_address == NULL) {
    fd = new_socket(remote.ss_family);
  } else {
    pa_unpack_address(local_address, &local);
    fd = bound_socket(&local);
  }
  if (fd < 0 && (local_address != NULL || may_retry))
    return fd;

  tcp = pa_handle_new(loop, sizeof(*tcp));
  request = malloc(sizeof(*request));
  if (tcp == NULL || request == NULL) {
    free(tcp);
    free(request);
    if (fd >= 0)
      close(fd);
    return UV_ENOMEM;
  }
  uv_tcp_init(&loop->uv, tcp);
  pa_keep_peer((uv_handle_t *) tcp, (const struct sockaddr *) &remote);
  slot = pa_slot_new(loop, (uv_handle_t *) tcp, PA_TCP, PA_CONNECTING);
  uv_tcp_nodelay(tcp, 1);  /* there is no socket yet: libuv remembers it */
  error = fd < 0 ? fd : uv_tcp_open(tcp, fd);
  if (error == 0)
    error = uv_tcp_connect(request, tcp, (const struct sockaddr *) &remote,
                           pa_stream_connected);
  else if (fd >= 0)
    close(fd);
  if (error != 0) {
    free(request);
    pa_push(loop, PA_CONNECTED, slot, error, 0);
  }
  return slot;
}
