/* Streams on descriptors that the application has, such as its own standard
 * streams.
 *
 * A stream must not block, and O_NONBLOCK belongs to the open file, which other
 * processes share: the shell whose terminal it is, or the programs at both ends
 * of a pipeline. They would get EAGAIN, and most of them fail. So the file is
 * opened once more, where that is possible, and the flag is that opening's
 * alone. Elsewhere the stream has a duplicate, and the flag is put back when it
 * is closed. So is the mode of a terminal, which others share in any case. */
#define _GNU_SOURCE  /* ptsname, ttyname_r */
#include "pyasync.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#ifdef PA_LINUX
#include <linux/magic.h>
#include <sys/vfs.h>
#endif

/* A stream that shares something with other processes. */
typedef struct pa_shared {
  struct pa_shared *next;
  int fd;            /* the stream's, which is open while this is listed */
  int was_blocking;  /* its open file is shared, and blocked before */
  int is_terminal;
  dev_t terminal;
  struct termios mode;  /* of the terminal, before its first stream was opened */
} pa_shared;

/* Those of all loops. pa_lock guards this. */
static pa_shared *shared;

int pa_is_pty_master(int fd) {
#ifdef TIOCGPTN
  int number;

  return ioctl(fd, TIOCGPTN, &number) == 0;
#else
  return ptsname(fd) != NULL;
#endif
}

/* Opening again */

#ifdef PA_LINUX
/* A pipe(2), and no FIFO with a name: of that a reader that is opened after the
 * last writer has gone would never be told of the end (fs/pipe.c, f_version). */
static int is_anonymous_pipe(int fd) {
  struct statfs system;

  return fstatfs(fd, &system) == 0 && system.f_type == PIPEFS_MAGIC;
}
#endif

/* Returns a descriptor of an open file of its own; or -1, where there is no
 * such path, or it may not be opened: by another user, for example. The master
 * of a pseudo-terminal must not come here, because to open it makes a new
 * one. */
static int open_again(int fd, int is_terminal) {
  int flags = fcntl(fd, F_GETFL) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
  char path[PATH_MAX];

#ifdef PA_LINUX
  if (!is_terminal && !is_anonymous_pipe(fd))
    return -1;
  /* Also of a terminal, whose own path may be that of another mount. */
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
#else
  if (!is_terminal || ttyname_r(fd, path, sizeof(path)) != 0)
    return -1;
#endif
  return open(path, flags);
}

/* Putting back */

static void set_blocking(int fd, int on) {
  int flags = fcntl(fd, F_GETFL);

  fcntl(fd, F_SETFL, on ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

/* A terminal may have several paths, such as /dev/tty. */
static dev_t terminal_of(int fd) {
  struct stat status;
#ifdef TIOCGDEV
  unsigned device;

  if (ioctl(fd, TIOCGDEV, &device) == 0)
    return device;
#endif
  return fstat(fd, &status) == 0 ? status.st_rdev : 0;
}

static int same_mode(const struct termios *one, const struct termios *other) {
  return one->c_iflag == other->c_iflag && one->c_oflag == other->c_oflag &&
         one->c_cflag == other->c_cflag && one->c_lflag == other->c_lflag &&
         memcmp(one->c_cc, other->c_cc, sizeof(one->c_cc)) == 0;
}

/* In the background the terminal is another program's, and so is its mode: the
 * shell saves and restores it. SIGTTOU would stop us where we get there after
 * the check. */
static void put_mode_back(const pa_shared *entry) {
  struct termios now;
  pid_t foreground;
  sigset_t ttou;
  sigset_t before;

  if (tcgetattr(entry->fd, &now) != 0 || same_mode(&now, &entry->mode))
    return;
  foreground = tcgetpgrp(entry->fd);  /* -1: it is not our session's */
  if (foreground >= 0 && foreground != getpgrp())
    return;
  sigemptyset(&ttou);
  sigaddset(&ttou, SIGTTOU);
  pthread_sigmask(SIG_BLOCK, &ttou, &before);
  tcsetattr(entry->fd, TCSANOW, &entry->mode);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Another stream may have the same open file: it still must not block. It has
 * found O_NONBLOCK set, and now it is the one that puts the flag back. */
static void put_flag_back(const pa_shared *entry) {
  pa_shared *other;

  set_blocking(entry->fd, 1);
  for (other = shared; other != NULL; other = other->next)
    if (other != entry && !(fcntl(other->fd, F_GETFL) & O_NONBLOCK)) {
      set_blocking(other->fd, 0);
      other->was_blocking = 1;
    }
}

static pa_shared *find_terminal(const pa_shared *entry) {
  pa_shared *other = shared;

  while (other != NULL && (other == entry || !other->is_terminal ||
                           other->terminal != entry->terminal))
    other = other->next;
  return other;
}

static void put_back(const pa_shared *entry) {
  if (entry->is_terminal && find_terminal(entry) == NULL)
    put_mode_back(entry);
  if (entry->was_blocking)
    put_flag_back(entry);
}

void pa_close_shared(pa_loop *loop, uv_handle_t *handle, uv_close_cb closed) {
  pa_shared **link = &shared;
  uv_os_fd_t fd;

  (void) loop;
  pa_lock();
  if (uv_fileno(handle, &fd) == 0) {
    while (*link != NULL && (*link)->fd != fd)
      link = &(*link)->next;
    if (*link != NULL) {
      pa_shared *entry = *link;

      put_back(entry);
      *link = entry->next;
      free(entry);
    }
  }
  pa_unlock();
  uv_close(handle, closed);
}

/* exit(3), while a loop has not ended: it is another thread's. */
static void put_all_back(void) {
  pa_lock();
  while (shared != NULL) {
    pa_shared *entry = shared;

    put_back(entry);
    shared = entry->next;
    free(entry);
  }
  pa_unlock();
}

void pa_forget_shared(void) {
  while (shared != NULL) {
    pa_shared *entry = shared;

    shared = entry->next;
    free(entry);
  }
}

void pa_unblock_shared(void) {
  pa_shared *entry;

  pa_lock();
  for (entry = shared; entry != NULL; entry = entry->next)
    set_blocking(entry->fd, 0);
  pa_unlock();
}

/* Beginning */

/* The mode may have been changed since the terminal's first stream was
 * opened. */
static void remember_mode(pa_shared *entry) {
  const pa_shared *other;

  entry->terminal = terminal_of(entry->fd);
  other = find_terminal(entry);
  if (other != NULL)
    entry->mode = other->mode;
  else if (tcgetattr(entry->fd, &entry->mode) != 0)
    entry->is_terminal = 0;
}

static void add_shared(pa_shared *entry) {
  static int registered;

  if (!registered)
    registered = atexit(put_all_back) == 0;
  if (entry->is_terminal)
    remember_mode(entry);
  entry->next = shared;
  shared = entry;
}

/* Opens the stream of an entry, and lists the entry or frees it. The lock is
 * held from the look at O_NONBLOCK on: another loop might close a stream of the
 * same open file in between, and put back the flag, which both have seen. */
static int open_stream(pa_loop *loop, int fd, int shares, pa_shared *entry,
                       int read) {
  int slot;

  entry->was_blocking = shares && !(fcntl(fd, F_GETFL) & O_NONBLOCK);
  slot = pa_open(loop, entry->fd, PA_STDIO, read);
  if (slot < 0 && entry->was_blocking)
    set_blocking(fd, 1);
  if (slot >= 0 && (shares || entry->is_terminal))
    add_shared(entry);
  else
    free(entry);
  return slot;
}

int pa_open_descriptor(pa_loop *loop, int fd, int read) {
  int is_master = pa_is_pty_master(fd);
  pa_shared *entry;
  int shares;
  int slot;

  slot = pa_open_standard_streams();
  if (slot != 0)
    return slot;
  entry = calloc(1, sizeof(*entry));
  if (entry == NULL)
    return UV_ENOMEM;
  entry->is_terminal = !is_master && isatty(fd);
  entry->fd = is_master ? -1 : open_again(fd, entry->is_terminal);
  shares = entry->fd < 0;
  if (shares)
    entry->fd = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  if (entry->fd < 0) {
    slot = uv_translate_sys_error(errno);
    free(entry);
    return slot;
  }
  pa_lock();
  slot = open_stream(loop, fd, shares, entry, read);
  pa_unlock();
  return slot;
}
