/* Monitors of files and directories.
 *
 * The system watches an inode; a monitor watches a path. When the path leads to
 * another file, the monitor starts anew with that. While it leads to none, the
 * monitor waits: it watches the nearest directory above, until the next part of
 * the path appears there.
 *
 * On Linux this reads inotify(7) by itself. libuv goes on reading until there is
 * nothing more to read, and so does not return from an iteration while others
 * change files fast enough; and it keeps to itself that events were lost. */
#include "pyasync.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef PA_LINUX
#include <sys/inotify.h>
#endif

typedef struct pa_monitor {
#ifdef PA_LINUX
  uv_timer_t handle;        /* never fires: it keeps the loop running */
  int wd;                   /* watch descriptor; -1: nothing is watched */
  struct pa_monitor *next;  /* in a list of pa_loop.monitors */
#else
  uv_fs_event_t handle;
  int is_directory;
#endif
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

/* start and stop: the system watches the file at monitor->path, or nothing. */
static int start(pa_loop *loop, pa_monitor *monitor);
static void stop(pa_loop *loop, pa_monitor *monitor);

/* Watches the file or directory at the first length bytes of the path. */
static int watch(pa_loop *loop, pa_monitor *monitor, size_t length) {
  char after = monitor->path[length];
  struct stat found;
  int error;

  monitor->path[length] = '\0';
  /* Before start. If the file is replaced in between, the next event finds
   * another inode than this one, and watches anew. In the other order the
   * monitor would take the inode of the new file, and go on to watch the
   * old. */
  if (stat(monitor->path, &found) != 0)
    memset(&found, 0, sizeof(found));
  error = start(loop, monitor);
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
static int watch_anew(pa_loop *loop, pa_monitor *monitor) {
  int attempt;

  for (attempt = 0; attempt < ATTEMPTS; attempt++) {
    size_t length = monitor->length;
    size_t missing = 0;
    int error;

    stop(loop, monitor);
    while ((error = watch(loop, monitor, length)) != 0) {
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

/* Whether the records from the index first on have one of a change of this
 * entry, and of nothing else since that has happened to it: another change adds
 * nothing. */
static int is_reported(const pa_loop *loop, int first, int slot,
                       const char *name) {
  int index;

  for (index = loop->events.count - 1; index >= first; index--) {
    const pa_event *event = &loop->events.items[index];

    if (event->kind == PA_FS_CHANGED && event->slot == slot &&
        event->data >= 0 && strcmp(loop->text + event->data, name) == 0)
      return event->value == UV_CHANGE;
  }
  return 0;
}

/* Returns the offset of the text; or, without memory, -1: then the change is
 * reported as lost. */
static int64_t keep_text(pa_loop *loop, const char *text) {
  size_t size = strlen(text) + 1;
  size_t offset = loop->text_used;

  if (offset + size > loop->text_capacity) {
    char *grown = realloc(loop->text, 2 * (offset + size));

    if (grown == NULL)
      return -1;
    loop->text = grown;
    loop->text_capacity = 2 * (offset + size);
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

/* Something has happened to the watched file (name NULL) or to an entry of the
 * watched directory. first is the index of the first record of the same
 * read. */
static void changed(pa_loop *loop, pa_monitor *monitor, int first,
                    const char *name, int events) {
  int slot = pa_slot_of(monitor);

  if (name == NULL) {
    push_own(loop, monitor, events);
  } else if (is_waiting(monitor)) {
    if (is_awaited(monitor, name))
      push_own(loop, monitor, events);
  } else if (events != UV_CHANGE || !is_reported(loop, first, slot, name)) {
    int64_t text = keep_text(loop, name);

    if (text >= 0)
      pa_push(loop, PA_FS_CHANGED, slot, events, text);
    else
      push_own(loop, monitor, PA_FS_OVERFLOW);
  }
}

#ifdef PA_LINUX

#define CHANGES (IN_ATTRIB | IN_MODIFY)
#define RENAMES (IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF | \
                 IN_MOVED_FROM | IN_MOVED_TO)

/* What one iteration takes, in bytes: the kernel keeps the rest, and merges
 * events with the one before them. It is room for 64 events at least, and some
 * 500 with short names; so few that is_reported may look through all. */
#define TAKEN ((size_t) 16 << 10)

static pa_monitor **list_of(pa_loop *loop, int wd) {
  return &loop->monitors[(unsigned) wd % PA_MONITOR_LISTS];
}

static void on_inotify(uv_poll_t *poll, int status, int events);

/* One descriptor for all monitors of a loop, because the system has few of them
 * for a user (fs.inotify.max_user_instances). */
static int open_inotify(pa_loop *loop) {
  int error = 0;

  if (loop->inotify_fd < 0) {
    loop->inotify_fd =
        pa_above_standard_streams(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    if (loop->inotify_fd < 0)
      return uv_translate_sys_error(errno);
    error = uv_poll_init(&loop->uv, &loop->inotify_poll, loop->inotify_fd);
    if (error != 0) {
      close(loop->inotify_fd);
      loop->inotify_fd = -1;
      return error;
    }
    uv_unref((uv_handle_t *) &loop->inotify_poll);
  }
  if (!uv_is_active((uv_handle_t *) &loop->inotify_poll)) {
    uv_poll_start(&loop->inotify_poll, UV_READABLE, on_inotify);
    error = pa_epoll_add(loop, &loop->inotify_poll.io_watcher);
    if (error != 0)
      uv_poll_stop(&loop->inotify_poll);
  }
  return error;
}

static int start(pa_loop *loop, pa_monitor *monitor) {
  pa_monitor **list;
  int error = open_inotify(loop);
  int wd;

  if (error != 0)
    return error;
  /* The kernel gives monitors of the same inode the same descriptor. */
  wd = inotify_add_watch(loop->inotify_fd, monitor->path, CHANGES | RENAMES);
  if (wd < 0)
    return uv_translate_sys_error(errno);
  list = list_of(loop, wd);
  monitor->wd = wd;
  monitor->next = *list;
  *list = monitor;
  return 0;
}

static void stop(pa_loop *loop, pa_monitor *monitor) {
  pa_monitor **link;
  int shared = 0;

  if (monitor->wd < 0)
    return;
  link = list_of(loop, monitor->wd);
  while (*link != NULL) {
    if (*link == monitor) {
      *link = monitor->next;
    } else {
      shared |= (*link)->wd == monitor->wd;
      link = &(*link)->next;
    }
  }
  /* The kernel has removed it by itself if the file is gone: EINVAL. */
  if (!shared)
    inotify_rm_watch(loop->inotify_fd, monitor->wd);
  monitor->wd = -1;
}

static int flags_of(uint32_t mask) {
  int events = 0;

  if (mask & CHANGES)
    events |= UV_CHANGE;
  if (mask & (RENAMES | IN_IGNORED | IN_UNMOUNT))
    events |= UV_RENAME;
  return events;
}

/* Nobody knows whose events were lost. */
static void overflowed(pa_loop *loop) {
  pa_monitor *monitor;
  int list;

  for (list = 0; list < PA_MONITOR_LISTS; list++)
    for (monitor = loop->monitors[list]; monitor != NULL;
         monitor = monitor->next)
      push_own(loop, monitor, PA_FS_OVERFLOW);
}

static void take(pa_loop *loop, const struct inotify_event *event, int first) {
  const char *name = event->len == 0 ? NULL : event->name;
  int events = flags_of(event->mask);
  pa_monitor *monitor;

  if (event->mask & IN_Q_OVERFLOW) {
    overflowed(loop);
    return;
  }
  for (monitor = *list_of(loop, event->wd); monitor != NULL;
       monitor = monitor->next)
    if (monitor->wd == event->wd)
      changed(loop, monitor, first, name, events);
}

static void on_inotify(uv_poll_t *poll, int status, int events) {
  /* The kernel aligns each event in it. */
  char taken[TAKEN] __attribute__((aligned(8)));
  pa_loop *loop = pa_loop_of(poll);
  int first = loop->events.count;
  ssize_t size;
  ssize_t at;

  (void) status;
  (void) events;
  pa_awake(loop);
  /* libuv polls again in an iteration where many descriptors are ready. */
  if (loop->inotify_read == loop->counters->iterations)
    return;
  loop->inotify_read = loop->counters->iterations;
  size = read(loop->inotify_fd, taken, sizeof(taken));
  for (at = 0; at < size;) {
    const struct inotify_event *event =
        (const struct inotify_event *) (const void *) (taken + at);

    take(loop, event, first);
    at += (ssize_t) (sizeof(*event) + event->len);
  }
}

static void init(pa_loop *loop, pa_monitor *monitor) {
  monitor->wd = -1;
  uv_timer_init(&loop->uv, &monitor->handle);
}

static void on_timer(uv_timer_t *timer) {
  (void) timer;
}

static void begin(pa_monitor *monitor) {
  uv_timer_start(&monitor->handle, on_timer, UINT64_MAX, 0);
}

#else

static int is_last_part(const char *name, const char *path, size_t length) {
  size_t size = strlen(name);

  while (length > 1 && path[length - 1] == '/')
    length--;
  return size <= length && memcmp(path + length - size, name, size) == 0 &&
         (size == length || path[length - size - 1] == '/');
}

static void on_event(uv_fs_event_t *handle, const char *name, int events,
                     int status) {
  pa_monitor *monitor = (pa_monitor *) handle;
  pa_loop *loop = pa_loop_of(handle);
  /* An event of what is watched itself, and not of an entry in it. libuv gives
   * such an event the last part of the path as its name, and a file has no
   * entries. An entry with the name of its directory is taken for that. */
  int own = name == NULL || *name == '\0' || !monitor->is_directory ||
            is_last_part(name, monitor->path, monitor->watched);

  pa_awake(loop);
  if (status != 0)
    events = UV_RENAME;
  changed(loop, monitor, 0, own || status != 0 ? NULL : name, events);
}

static int start(pa_loop *loop, pa_monitor *monitor) {
  struct stat found;

  (void) loop;
  monitor->is_directory =
      stat(monitor->path, &found) == 0 && S_ISDIR(found.st_mode);
  return uv_fs_event_start(&monitor->handle, on_event, monitor->path, 0);
}

static void stop(pa_loop *loop, pa_monitor *monitor) {
  (void) loop;
  uv_fs_event_stop(&monitor->handle);
}

static void init(pa_loop *loop, pa_monitor *monitor) {
  uv_fs_event_init(&loop->uv, &monitor->handle);
}

static void begin(pa_monitor *monitor) {
  (void) monitor;
}

#endif

static void close_monitor(pa_loop *loop, uv_handle_t *handle,
                          uv_close_cb closed) {
  stop(loop, (pa_monitor *) handle);
  uv_close(handle, closed);
}

const pa_kind pa_monitor_kind = {.close = close_monitor};

int pa_fs_watch(pa_loop *loop, const char *path) {
  size_t length = strlen(path);
  pa_monitor *monitor = pa_handle_new(loop, sizeof(*monitor) + length + 1);
  int error;

  loop->counters->crossings++;
  if (monitor == NULL)
    return UV_ENOMEM;
  memcpy(monitor->path, path, length + 1);
  monitor->length = length;
  monitor->iteration = 0;
  init(loop, monitor);
  error = watch(loop, monitor, length);
  if (error != 0) {
    uv_close((uv_handle_t *) &monitor->handle, pa_free_unstarted);
    return error;
  }
  begin(monitor);
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
  error = watch_anew(loop, monitor);
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
