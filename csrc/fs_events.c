/* Monitors of files and directories.
 *
 * libuv watches an inode (inotify(7)); a monitor watches a path. When the path
 * leads to another file, the monitor starts anew with that. While it leads to
 * none, the monitor waits: it watches the nearest directory above, until the
 * next part of the path appears there. */
#include "pyasync.h"

#include <string.h>
#include <sys/stat.h>

typedef struct {
  uv_fs_event_t handle;
  dev_t device;        /* with inode: the file that is watched; see watch */
  ino_t inode;
  uint64_t iteration;  /* in which push_own last pushed a record */
  int record;          /* the index of that */
  size_t length;       /* of path */
  size_t watched;      /* the length of the part of the path that is watched; it
                          is less than length while the monitor waits */
  char path[];
} pa_monitor;

/* watch_anew gives up then: a file may come and go as fast as it is looked
 * for. */
#define ATTEMPTS 10

/* is_reported looks at so many of the last records, because a few files that
 * are written without end must not fill the batch and keep Python from all
 * else. */
#define LOOK_BACK 16

static void on_event(uv_fs_event_t *handle, const char *name, int events,
                     int status);

/* Watches the file or directory at the first length bytes of the path. */
static int watch(pa_monitor *monitor, size_t length) {
  char after = monitor->path[length];
  struct stat found;
  int error;

  monitor->path[length] = '\0';
  /* Before uv_fs_event_start. If the file is replaced in between, the next
   * event finds another inode than this one, and watches anew. In the other
   * order the monitor would take the inode of the new file, and go on to watch
   * the old. */
  if (stat(monitor->path, &found) != 0)
    memset(&found, 0, sizeof(found));
  error = uv_fs_event_start(&monitor->handle, on_event, monitor->path, 0);
  monitor->path[length] = after;
  monitor->device = found.st_dev;
  monitor->inode = found.st_ino;
  monitor->watched = length;
  return error;
}

static int exists(pa_monitor *monitor, size_t length) {
  char after = monitor->path[length];
  struct stat found;
  int result;

  monitor->path[length] = '\0';
  result = stat(monitor->path, &found) == 0;
  monitor->path[length] = after;
  return result;
}

/* Returns the length of the directory part of the path; 0: it has none. */
static size_t parent(const char *path, size_t length) {
  while (length > 0 && path[length - 1] == '/')
    length--;
  while (length > 0 && path[length - 1] != '/')
    length--;
  while (length > 1 && path[length - 1] == '/')
    length--;
  return length;
}

/* Watches the path or, while it leads to no file, the nearest directory
 * above. */
static int watch_anew(pa_monitor *monitor) {
  int attempt;

  for (attempt = 0; attempt < ATTEMPTS; attempt++) {
    size_t length = monitor->length;
    size_t missing = 0;
    int error;

    uv_fs_event_stop(&monitor->handle);
    while ((error = watch(monitor, length)) != 0) {
      if (error == UV_ENOSPC || error == UV_ENOMEM)
        return error;
      missing = length;
      length = parent(monitor->path, length);
      if (length == 0)
        return error;
    }
    /* The missing part may have appeared before its directory was watched: no
     * event will tell then. */
    if (missing == 0 || !exists(monitor, missing))
      break;
  }
  return 0;
}

static int is_waiting(const pa_monitor *monitor) {
  return monitor->watched != monitor->length;
}

/* Whether name is the part of the path that the monitor waits for. */
static int is_awaited(const pa_monitor *monitor, const char *name) {
  const char *next = monitor->path + monitor->watched;
  size_t size = strlen(name);

  while (*next == '/')
    next++;
  return strncmp(next, name, size) == 0 &&
         (next[size] == '/' || next[size] == '\0');
}

/* Whether the batch has a record already of a change of this entry, and of
 * nothing else since that has happened to it: another change adds nothing. */
static int is_reported(const pa_loop *loop, int slot, const char *name) {
  const pa_event *first = loop->events.items;
  const pa_event *event = first + loop->events.count;
  int left;

  for (left = LOOK_BACK; left > 0 && event > first; left--) {
    event--;
    if (event->kind == PA_FS_CHANGED && event->slot == slot &&
        event->data >= 0 && strcmp(loop->text + event->data, name) == 0)
      return event->value == UV_CHANGE;
  }
  return 0;
}

static int64_t keep_text(pa_loop *loop, const char *text) {
  size_t size = strlen(text) + 1;
  size_t offset = loop->text_used;

  if (offset + size > loop->text_capacity) {
    loop->text_capacity = 2 * (offset + size);
    loop->text = pa_grow(loop->text, loop->text_capacity);
  }
  memcpy(loop->text + offset, text, size);
  loop->text_used += size;
  return (int64_t) offset;
}

/* Pushes the record that makes Python call pa_fs_look: one in a batch, because
 * one look finds what all events of the iteration have left. */
static void push_own(pa_loop *loop, pa_monitor *monitor, int events) {
  if (monitor->iteration == loop->counters->iterations) {
    loop->events.items[monitor->record].value |= events;
    return;
  }
  monitor->iteration = loop->counters->iterations;
  monitor->record = loop->events.count;
  pa_push(loop, PA_FS_CHANGED, pa_slot_of(monitor), events, -1);
}

static void on_event(uv_fs_event_t *handle, const char *name, int events,
                     int status) {
  pa_monitor *monitor = (pa_monitor *) handle;
  pa_loop *loop = pa_loop_of(handle);
  /* An event of the watched file itself, and not of an entry in a directory.
   * Its name is no help: libuv takes it from handle->path, and shares that
   * among all handles of the inode, also those that came by another path. So a
   * name inside handle->path is the sign of such an event. */
  int own = name == NULL || (name >= handle->path &&
                             name <= handle->path + strlen(handle->path));

  pa_awake(loop);
#ifdef __linux__
  /* libuv takes all bits but IN_ATTRIB and IN_MODIFY for a rename, IN_ISDIR
   * too: both together say that a directory's attributes have changed. */
  if (events == (UV_RENAME | UV_CHANGE))
    events = UV_CHANGE;
#endif
  if (own || status != 0)
    push_own(loop, monitor, status != 0 ? UV_RENAME : events);
  else if (is_waiting(monitor)) {
    if (is_awaited(monitor, name))
      push_own(loop, monitor, events);
  } else if (events != UV_CHANGE ||
             !is_reported(loop, pa_slot_of(handle), name))
    pa_push(loop, PA_FS_CHANGED, pa_slot_of(handle), events,
            keep_text(loop, name));
}

int pa_fs_watch(pa_loop *loop, const char *path) {
  size_t length = strlen(path);
  pa_monitor *monitor = pa_grow(NULL, sizeof(*monitor) + length + 1);
  int error;

  loop->counters->crossings++;
  memcpy(monitor->path, path, length + 1);
  monitor->length = length;
  monitor->iteration = 0;
  uv_fs_event_init(&loop->uv, &monitor->handle);
  error = watch(monitor, length);
#ifdef __linux__
  /* The first monitor of the loop has made libuv poll inotify(7). */
  if (error == 0 && loop->uv.inotify_read_watcher.events == 0)
    error = pa_epoll_add(loop, &loop->uv.inotify_read_watcher);
#endif
  if (error != 0) {
    uv_close((uv_handle_t *) &monitor->handle, pa_free_unstarted);
    return error;
  }
  return pa_slot_new(loop, (uv_handle_t *) monitor, PA_FS_MONITOR, 0);
}

/* When a file is replaced that somebody has open, its inode is not deleted. The
 * only event is then one of its attributes, as it has a link less. */
static int is_replaced(const pa_monitor *monitor) {
  struct stat found;

  return stat(monitor->path, &found) != 0 ||
         found.st_dev != monitor->device || found.st_ino != monitor->inode;
}

int pa_fs_look(pa_loop *loop, int slot, int events) {
  pa_monitor *monitor = (pa_monitor *) loop->slots[slot].handle;
  int waited = is_waiting(monitor);
  int error;

  loop->counters->crossings++;
  if (!waited && !(events & UV_RENAME) && !is_replaced(monitor))
    return events;
  error = watch_anew(monitor);
  if (error != 0)
    return error;
  if (!is_waiting(monitor))
    return UV_RENAME | UV_CHANGE;
  return waited ? 0 : UV_RENAME;
}

const char *pa_text(pa_loop *loop) {
  loop->counters->crossings++;
  return loop->text;
}
