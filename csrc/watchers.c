/* Idlers and pollers. */
#define _GNU_SOURCE  /* POLLRDHUP */
#include "pyasync.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#ifndef POLLRDHUP
#define POLLRDHUP 0
#endif

typedef struct {
  uv_poll_t poll;
  int fd;      /* our duplicate of the user's */
  int events;  /* to wait for, of enum uv_poll_event */
} pa_poller;

/* Idlers */

static void on_idle(uv_idle_t *idle) {
  pa_loop *loop = pa_loop_of(idle);

  pa_awake(loop);
  pa_push(loop, PA_IDLE, pa_slot_of(idle), 0, 0);
}

int pa_idle_start(pa_loop *loop) {
  uv_idle_t *idle = pa_handle_new(loop, sizeof(*idle));

  loop->counters->crossings++;
  if (idle == NULL)
    return UV_ENOMEM;
  uv_idle_init(&loop->uv, idle);
  uv_idle_start(idle, on_idle);
  return pa_slot_new(loop, (uv_handle_t *) idle, PA_IDLER, 0);
}

/* Pollers */

static void on_polled(uv_poll_t *poll, int status, int events);

static void watch(pa_poller *poller) {
  int events = poller->events;

  /* A peer's half-close makes the descriptor readable for good. It would be
   * reported without end to those who wait for UV_WRITABLE only. */
  if (events & UV_READABLE)
    events |= UV_DISCONNECT;
  if (events == 0)
    uv_poll_stop(&poller->poll);
  else
    uv_poll_start(&poller->poll, events, on_polled);
}

/* libuv reports POLLERR as UV_EBADF, and stops the handle. But the descriptor
 * is a good one. The user's next read or write gets the error itself, and so
 * this reports the descriptor as ready, as poll(2) does. */
static int events_of_error(pa_poller *poller) {
  struct pollfd now = {poller->fd, POLLIN | POLLOUT | POLLRDHUP, 0};
  int events = poller->events;

  watch(poller);
  if ((events & UV_READABLE) && poll(&now, 1, 0) > 0 &&
      (now.revents & (POLLHUP | POLLRDHUP)))
    events |= UV_DISCONNECT;
  return events;
}

static void on_polled(uv_poll_t *poll, int status, int events) {
  pa_loop *loop = pa_loop_of(poll);

  pa_awake(loop);
  if (status < 0)
    events = events_of_error((pa_poller *) poll);
  pa_push(loop, PA_POLLED, pa_slot_of(poll), events, 0);
}

int pa_poll_start(pa_loop *loop, int fd, int events) {
  pa_poller *poller;
  int flags;
  int error;

  loop->counters->crossings++;
  /* A duplicate, because libuv keeps a table of watchers by descriptor. It
   * aborts when somebody has closed the descriptor behind its back, and it
   * knows only one watcher of each, while the user may want two pollers. */
  fd = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  if (fd < 0)
    return uv_translate_sys_error(errno);
  poller = pa_handle_new(loop, sizeof(*poller));
  if (poller == NULL) {
    close(fd);
    return UV_ENOMEM;
  }
  flags = fcntl(fd, F_GETFL);
  error = uv_poll_init(&loop->uv, &poller->poll, fd);
  if (error != 0) {
    close(fd);
    free(poller);
    return error;
  }
  /* uv_poll_init sets O_NONBLOCK. That belongs to the open file, which others
   * may share, such as the shell whose terminal it is: this takes it back. */
  fcntl(fd, F_SETFL, flags);
  poller->fd = fd;
  poller->events = events;
  watch(poller);
  return pa_slot_new(loop, (uv_handle_t *) poller, PA_POLLER, 0);
}

void pa_poll_modify(pa_loop *loop, int slot, int events) {
  pa_poller *poller = (pa_poller *) loop->slots[slot].handle;

  loop->counters->crossings++;
  poller->events = events;
  watch(poller);
}

/* The descriptor is closed after uv_close, because epoll must forget it first:
 * the user's own descriptor keeps the open file, and epoll would go on to
 * report it under our number. */
static void close_poller(pa_loop *loop, uv_handle_t *handle,
                         uv_close_cb closed) {
  (void) loop;
  uv_close(handle, closed);
  close(((pa_poller *) handle)->fd);
}

static void refused(pa_loop *loop, int slot, int error) {
  pa_push(loop, PA_POLLED, slot, error, 0);
}

const pa_kind pa_poller_kind = {.close = close_poller, .refused = refused};
