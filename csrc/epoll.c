/* Registering descriptors with epoll, in place of libuv: uv_run does it too,
 * but aborts when the system refuses (epoll_ctl(2): ENOSPC, ENOMEM). The calls
 * are the same, and as many. */
#include "pyasync.h"

#ifdef PA_LINUX
#include <errno.h>
#include <sys/epoll.h>

/* What libuv's lists are made of, in all its versions. */
typedef struct pa_link {
  struct pa_link *next;
  struct pa_link *previous;
} pa_link;

static void take_out(pa_link *link) {
  link->previous->next = link->next;
  link->next->previous = link->previous;
  link->next = link->previous = link;
}

/* The loop's own watchers were added when they began. They are left to libuv,
 * which finds them there, because it may want more events than pevents says. */
static int is_own(const pa_loop *loop, const uv__io_t *watcher) {
  return watcher == &loop->uv.async_io_watcher ||
         watcher == &loop->uv.signal_io_watcher ||
         watcher == &loop->inotify_poll.io_watcher ||
         watcher == &loop->signal_poll.io_watcher;
}

static int add(pa_loop *loop, const uv__io_t *watcher) {
  int epoll = uv_backend_fd(&loop->uv);
  struct epoll_event event = {.events = watcher->pevents};

  event.data.fd = watcher->fd;
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, watcher->fd, &event) == 0)
    return 0;
  /* Its reading was stopped, and is started again. */
  if (errno == EEXIST &&
      epoll_ctl(epoll, EPOLL_CTL_MOD, watcher->fd, &event) == 0)
    return 0;
  return uv_translate_sys_error(errno);
}

int pa_epoll_add(pa_loop *loop, uv__io_t *watcher) {
  int error = add(loop, watcher);

  if (error != 0)
    take_out((pa_link *) (void *) &watcher->watcher_queue);
  return error;
}

/* Returns whether a handle of a kind that can be refused has the descriptor. */
static int refuse(pa_loop *loop, int fd, int error) {
  int slot;

  for (slot = 0; slot < loop->slot_count; slot++) {
    const uv_handle_t *handle = loop->slots[slot].handle;
    uv_os_fd_t own;

    if (handle != NULL && !uv_is_closing(handle) &&
        pa_kinds[loop->slots[slot].kind]->refused != NULL &&
        uv_fileno(handle, &own) == 0 && own == fd) {
      pa_kinds[loop->slots[slot].kind]->refused(loop, slot, error);
      return 1;
    }
  }
  return 0;
}

void pa_epoll_register(pa_loop *loop) {
  pa_link *head = (pa_link *) (void *) &loop->uv.watcher_queue;
  pa_link *link = head->next;

  while (link != head) {
    uv__io_t *watcher = CONTAINER_OF(link, uv__io_t, watcher_queue);
    pa_link *next = link->next;
    int error;

    /* It is registered if it has events already: a change cannot be refused. */
    if (watcher->events == 0 && !is_own(loop, watcher)) {
      error = add(loop, watcher);
      if (error == 0)
        watcher->events = watcher->pevents;
      /* After refuse, because uv_read_stop puts it back while the handle has
       * something to be written. */
      if (error == 0 || refuse(loop, watcher->fd, error))
        take_out(link);
    }
    link = next;
  }
}
#else
int pa_epoll_add(pa_loop *loop, uv__io_t *watcher) {
  (void) loop;
  (void) watcher;
  return 0;
}

void pa_epoll_register(pa_loop *loop) {
  (void) loop;
}
#endif
