/* Child processes. Each is reaped: by its loop, or after the loop's end by the
 * next loop that begins or ends, or the next child that is started. */
#include "pyasync.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* A child that a loop has left running at its end. */
typedef struct abandoned {
  struct abandoned *next;
  pid_t pid;
} abandoned;

static abandoned *first_abandoned;  /* pa_lock guards the list */

/* Returns whether the child is reaped: now, or by somebody else before. */
static int reap(pid_t pid) {
  pid_t result;

  do
    result = waitpid(pid, NULL, WNOHANG);
  while (result < 0 && errno == EINTR);
  return result != 0;
}

/* The lock is held. */
static void abandon(pid_t pid) {
  abandoned *child;

  if (reap(pid))
    return;
  child = pa_grow(NULL, sizeof(*child));
  child->pid = pid;
  child->next = first_abandoned;
  first_abandoned = child;
}

void pa_reap_abandoned(void) {
  abandoned **link = &first_abandoned;

  pa_lock();
  while (*link != NULL) {
    abandoned *child = *link;

    if (reap(child->pid)) {
      *link = child->next;
      free(child);
    } else {
      link = &child->next;
    }
  }
  pa_unlock();
}

void pa_forget_abandoned(void) {
  while (first_abandoned != NULL) {
    abandoned *child = first_abandoned;

    first_abandoned = child->next;
    free(child);
  }
}

static void on_exited(uv_process_t *process, int64_t status, int signum) {
  pa_loop *loop = pa_loop_of(process);

  pa_awake(loop);
  pa_push(loop, PA_EXITED, pa_slot_of(process), status, signum);
  /* Now, and not when Python walks the record: libuv has reaped the child, and
   * its pid may be another process's, which must get no signal. */
  pa_handle_close(loop, (uv_handle_t *) process);
}

/* A child that still runs keeps its handle, because libuv reaps only children
 * that have one, and on_exited closes it; but it keeps no loop running. libuv
 * stops to handle SIGCHLD when it closes the last active handle of a process:
 * hence the lock, and the calls around uv_close. */
static void close_process(pa_loop *loop, uv_handle_t *handle,
                          uv_close_cb closed) {
  struct sigaction before;

  if (uv_is_active(handle) && !loop->closing) {
    uv_unref(handle);
    return;
  }
  pa_lock();
  if (uv_is_active(handle))
    abandon(((uv_process_t *) handle)->pid);
  pa_sigchld_before(&before);
  uv_close(handle, closed);
  pa_sigchld_after(loop, &before);
  pa_unlock();
}

const pa_kind pa_process_kind = {.close = close_process};

/* In the child libuv (1.44) makes the standard streams blocking. O_NONBLOCK
 * belongs to the open file, which the child shares with us: a socket of a loop
 * would block from then on, and with it the loop. This takes it back, but for
 * our own standard streams. */
static void restore_flags(const int *stdio, const int *flags) {
  int index;

  for (index = 0; index < 3; index++)
    if (stdio[index] > STDERR_FILENO && (flags[index] & O_NONBLOCK))
      fcntl(stdio[index], F_SETFL, flags[index]);
}

int pa_spawn(pa_loop *loop, const char *path, char **args, char **env,
             const char *directory, const int *stdio, int flags, uint32_t uid,
             uint32_t gid) {
  uv_process_t *process = pa_grow(NULL, sizeof(*process));
  uv_process_options_t options;
  uv_stdio_container_t containers[3];
  int status_flags[3];
  struct sigaction before;
  int index;
  int error;

  loop->counters->crossings++;
  pa_reap_abandoned();
  for (index = 0; index < 3; index++) {
    containers[index].flags = stdio[index] < 0 ? UV_IGNORE : UV_INHERIT_FD;
    containers[index].data.fd = stdio[index];
    status_flags[index] = stdio[index] < 0 ? 0 : fcntl(stdio[index], F_GETFL);
  }
  memset(&options, 0, sizeof(options));
  options.exit_cb = on_exited;
  options.file = path;
  options.args = args;
  options.env = env;
  options.cwd = directory;
  options.flags = (flags & PA_SETUID ? UV_PROCESS_SETUID : 0) |
                  (flags & PA_SETGID ? UV_PROCESS_SETGID : 0) |
                  (flags & PA_DETACHED ? UV_PROCESS_DETACHED : 0);
  options.stdio_count = 3;
  options.stdio = containers;
  options.uid = (uv_uid_t) uid;
  options.gid = (uv_gid_t) gid;

  pa_lock();
  pa_sigchld_before(&before);
  error = uv_spawn(&loop->uv, process, &options);
  pa_sigchld_after(loop, &before);
  pa_unlock();
  restore_flags(stdio, status_flags);
  if (error != 0) {
    /* uv_spawn has put the handle into libuv's lists all the same. */
    close_process(loop, (uv_handle_t *) process, pa_free_unstarted);
    return error;
  }
  return pa_slot_new(loop, (uv_handle_t *) process, PA_PROCESS, 0);
}

int pa_process_pid(pa_loop *loop, int slot) {
  loop->counters->crossings++;
  return uv_process_get_pid((uv_process_t *) loop->slots[slot].handle);
}

int pa_process_kill(pa_loop *loop, int slot, int signum) {
  uv_handle_t *handle = loop->slots[slot].handle;

  loop->counters->crossings++;
  if (handle == NULL || uv_is_closing(handle))
    return UV_ESRCH;
  return uv_process_kill((uv_process_t *) handle, signum);
}
