/* Watches of paths. libuv (inotify) watches what a path led to when the watch
 * was started: here the watch follows the path. When it leads to something
 * else, that is watched; when it leads nowhere, the nearest directory on the
 * way that there is, until it leads somewhere again. */
#include "pyasync.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct {
  uv_fs_event_t handle;
  struct stat found;  /* where the path led when the watch was started */
  int away;           /* it leads nowhere: a directory before it is watched */
  size_t length;
  char path[];
} pa_fs_monitor;

/* How often a path may change while its watch is started, before the watch
 * stays where it is until the next event. */
#define TRIES 16

static void on_event(uv_fs_event_t *handle, const char *name, int events,
                     int status);

static int is_missing(int error) {
  return error == UV_ENOENT || error == UV_ENOTDIR;
}

static int leads_elsewhere(pa_fs_monitor *monitor) {
  struct stat now;

  return stat(monitor->path, &now) != 0 ||
         now.st_dev != monitor->found.st_dev ||
         now.st_ino != monitor->found.st_ino;
}

/* Both use the first length bytes of the path. */
static int start_at(pa_fs_monitor *monitor, size_t length) {
  char cut = monitor->path[length];
  int error;

  monitor->path[length] = '\0';
  error = uv_fs_event_start(&monitor->handle, on_event, monitor->path, 0);
  monitor->path[length] = cut;
  return error;
}

static int stat_at(pa_fs_monitor *monitor, size_t length, struct stat *found) {
  char cut = monitor->path[length];
  int error;

  monitor->path[length] = '\0';
  error = stat(monitor->path, found) == 0 ? 0 : -errno;
  monitor->path[length] = cut;
  return error;
}

/* The length of the directory that holds what the first length bytes name. */
static size_t parent(const pa_fs_monitor *monitor, size_t length) {
  while (length > 1 && monitor->path[length - 1] != '/')
    length--;
  while (length > 1 && monitor->path[length - 1] == '/')
    length--;
  return length;
}

/* Watches what the path leads to, or a directory before it. */
static int watch(pa_fs_monitor *monitor) {
  struct stat ignored;
  size_t length;
  size_t child;
  int error;
  int tries;

  for (tries = 0; tries < TRIES; tries++) {
    uv_fs_event_stop(&monitor->handle);
    child = length = monitor->length;
    error = start_at(monitor, length);
    while (is_missing(error) && length > 1) {
      child = length;
      length = parent(monitor, length);
      error = start_at(monitor, length);
    }
    if (error != 0)
      return error;
    monitor->away = length < monitor->length;
    if (!monitor->away) {
      error = stat_at(monitor, length, &monitor->found);
      if (!is_missing(error))
        return error;
    } else if (stat_at(monitor, child, &ignored) != 0) {
      return 0;
    }
    /* It has come, or gone, between two calls. */
  }
  return 0;
}

static void push(pa_fs_monitor *monitor, const char *name, int events) {
  pa_loop *loop = pa_loop_of(&monitor->handle);
  size_t size = strlen(name) + 1;

  if (loop->text_used + size > loop->text_capacity) {
    loop->text_capacity = 2 * (loop->text_capacity + size) + 1024;
    loop->text = pa_grow(loop->text, loop->text_capacity);
  }
  memcpy(loop->text + loop->text_used, name, size);
  pa_push(loop, PA_FS_CHANGED, pa_slot_of(&monitor->handle), events,
          (int64_t) loop->text_used);
  loop->text_used += size;
}

static void on_event(uv_fs_event_t *handle, const char *name, int events,
                     int status) {
  pa_fs_monitor *monitor = (pa_fs_monitor *) handle;
  const char *own = strrchr(monitor->path, '/') + 1;
  struct stat before = monitor->found;
  int was_away = monitor->away;
  int error = status;

  pa_awake(pa_loop_of(handle));
  /* The inode's number says little after a removal: it may be given out again
   * at once. And of a file that somebody has open no removal is told. */
  if (error == 0 &&
      (was_away || (events & UV_RENAME) || leads_elsewhere(monitor)))
    error = watch(monitor);

  if (error != 0) {
    uv_fs_event_stop(handle);
    push(monitor, own, error);
  } else if (monitor->away) {
    if (!was_away)
      push(monitor, own, UV_RENAME);
  } else if (was_away || before.st_dev != monitor->found.st_dev ||
             before.st_ino != monitor->found.st_ino) {
    push(monitor, own, UV_RENAME | UV_CHANGE);
  } else if (!S_ISDIR(before.st_mode)) {
    /* libuv's name may be another one of the same file. */
    push(monitor, own, events & UV_RENAME ? UV_RENAME | UV_CHANGE : events);
  } else {
    push(monitor, name == NULL ? own : name, events);
  }
}

static void free_failed(uv_handle_t *handle) {
  free(handle);
}

int pa_fs_event_start(pa_loop *loop, const char *path) {
  size_t length = strlen(path);
  pa_fs_monitor *monitor = pa_grow(NULL, sizeof(*monitor) + length + 1);
  int error;

  loop->counters->crossings++;
  memcpy(monitor->path, path, length + 1);
  monitor->length = length;
  monitor->away = 0;
  uv_fs_event_init(&loop->uv, &monitor->handle);
  error = start_at(monitor, length);
  if (error == 0)
    error = stat_at(monitor, length, &monitor->found);
  if (error != 0) {
    uv_close((uv_handle_t *) &monitor->handle, free_failed);
    return error;
  }
  return pa_slot_new(loop, (uv_handle_t *) &monitor->handle, PA_FS_MONITOR, 0);
}

const char *pa_text(pa_loop *loop) {
  loop->counters->crossings++;
  return loop->text;
}
