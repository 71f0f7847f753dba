/* Child processes. Each is reaped: by its loop, or after the loop's end by the
 * next loop that begins or ends, or the next child that is started.
 *
 * libuv starts them, and this file waits for them. libuv hears of exits by
 * SIGCHLD alone, and would miss one where that is blocked, or where a flood of
 * other signals has filled the pipe through which it passes. A pidfd becomes
 * readable when its process exits, whatever happens to signals; and nobody
 * else's handler for SIGCHLD is replaced. Without pidfds (before Linux 5.3, or
 * in a sandbox) a timer asks for the exit. */
#include "pyasync.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef PA_LINUX
#include <sys/syscall.h>
#endif

/* So often the timer of a child without a pidfd asks for its exit. */
#define ASK_INTERVAL_MS 20
/* What exit_cb gets where somebody else has taken the child's status. */
#define STATUS_UNKNOWN 255

typedef struct pa_process {
  union {
    uv_poll_t poll;    /* of the pidfd */
    uv_timer_t timer;  /* where there is none */
  };
  int pidfd;  /* or -1 */
  pid_t pid;
  int reaped;  /* from then on another process may have the pid */
  struct pa_process *spare;  /* memory for a handle with a timer, or NULL */
} pa_process;

/* A child that a loop has left running at its end. */
typedef struct abandoned {
  struct abandoned *next;
  pid_t pid;
} abandoned;

static abandoned *first_abandoned;  /* pa_lock guards the list */

/* Returns what waitpid does; negative: somebody else has reaped the child. */
static pid_t reap(pid_t pid, int *status) {
  pid_t result;

  do
    result = waitpid(pid, status, WNOHANG);
  while (result < 0 && errno == EINTR);
  return result;
}

/* The lock is held. */
static void abandon(pid_t pid) {
  abandoned *child;

  if (reap(pid, NULL) != 0)
    return;
  child = malloc(sizeof(*child));
  if (child == NULL)
    return;  /* it stays a zombie until our own end */
  child->pid = pid;
  child->next = first_abandoned;
  first_abandoned = child;
}

void pa_reap_abandoned(void) {
  abandoned **link = &first_abandoned;

  pa_lock();
  while (*link != NULL) {
    abandoned *child = *link;

    if (reap(child->pid, NULL) != 0) {
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

/* Looks whether the child has exited. */
static void look(pa_process *process) {
  uv_handle_t *handle = (uv_handle_t *) process;
  pa_loop *loop = pa_loop_of(process);
  int status = 0;
  pid_t result = reap(process->pid, &status);
  int lost = result < 0;

  if (result == 0)
    return;
  pa_awake(loop);
  process->reaped = 1;
  pa_push(loop, PA_EXITED, pa_slot_of(process),
          lost ? STATUS_UNKNOWN : WIFEXITED(status) ? WEXITSTATUS(status) : 0,
          !lost && WIFSIGNALED(status) ? WTERMSIG(status) : 0);
  /* Now, and not when Python walks the record: the pid may be another
   * process's, which must get no signal. */
  pa_handle_close(loop, handle);
}

static void on_pidfd(uv_poll_t *poll, int status, int events) {
  (void) status;
  (void) events;
  look((pa_process *) poll);
}

static void on_ask(uv_timer_t *timer) {
  look((pa_process *) timer);
}

/* A child that still runs keeps its handle, by which it is reaped: look closes
 * it. But it keeps no loop running. */
static void close_process(pa_loop *loop, uv_handle_t *handle,
                          uv_close_cb closed) {
  pa_process *process = (pa_process *) handle;

  if (!process->reaped && !loop->closing) {
    uv_unref(handle);
    return;
  }
  pa_lock();
  if (!process->reaped)
    abandon(process->pid);
  pa_child_ends();
  pa_unlock();
  free(process->spare);
  uv_close(handle, closed);
  if (process->pidfd >= 0)
    close(process->pidfd);  /* after uv_close, by which epoll forgets it */
}

static int open_pidfd(pid_t pid) {
#ifdef SYS_pidfd_open
  return pa_above_standard_streams((int) syscall(SYS_pidfd_open, pid, 0));
#else
  (void) pid;
  return -1;
#endif
}

/* Waits for the child by its timer. */
static void ask(pa_loop *loop, pa_process *process) {
  uv_timer_init(&loop->uv, &process->timer);
  uv_timer_start(&process->timer, on_ask, 0, ASK_INTERVAL_MS);
}

/* Begins to wait for the child. Nothing here fails: where a pidfd does, for want
 * of descriptors for example, there is the timer. */
static void wait_for(pa_loop *loop, pa_process *process) {
  process->pidfd = open_pidfd(process->pid);
  if (process->pidfd >= 0) {
    if (uv_poll_init(&loop->uv, &process->poll, process->pidfd) == 0) {
      uv_poll_start(&process->poll, UV_READABLE, on_pidfd);
      return;
    }
    close(process->pidfd);
    process->pidfd = -1;
  }
  ask(loop, process);
}

/* Epoll refuses the pidfd: another handle takes the slot, with a timer. */
static void refused(pa_loop *loop, int slot, int error) {
  pa_process *process = (pa_process *) loop->slots[slot].handle;
  pa_process *other = process->spare;

  (void) error;
  other->pid = process->pid;
  other->pidfd = -1;
  ask(loop, other);
  if (!uv_has_ref((uv_handle_t *) process))
    uv_unref((uv_handle_t *) other);
  other->timer.data = process->poll.data;
  loop->slots[slot].handle = (uv_handle_t *) other;
  uv_close((uv_handle_t *) process, pa_free_unstarted);
  close(process->pidfd);
}

const pa_kind pa_process_kind = {.close = close_process, .refused = refused};

/* In the child libuv (1.44) makes the standard streams blocking. O_NONBLOCK
 * belongs to the open file, which the child shares with us: a socket of a loop
 * would block from then on, and with it the loop. This takes it back, of our own
 * standard streams only where a stream has them. */
static void restore_flags(const int *stdio, const int *flags) {
  int index;

  for (index = 0; index < 3; index++)
    if (stdio[index] > STDERR_FILENO && (flags[index] & O_NONBLOCK))
      fcntl(stdio[index], F_SETFL, flags[index]);
  pa_unblock_shared();
}

static void end_spawning(pa_spawning *spawning) {
  int fd;

  for (fd = 0; fd < 3; fd++)
    if (spawning->pipes[fd] >= 0 && spawning->stdio[fd] >= 0) {
      close(spawning->stdio[fd]);
      spawning->stdio[fd] = -1;
    }
}

void pa_spawn_end(pa_loop *loop, pa_spawning *spawning) {
  loop->counters->crossings++;
  end_spawning(spawning);
}

static void undo(pa_loop *loop, pa_spawning *spawning) {
  int fd;

  end_spawning(spawning);
  if (spawning->process >= 0) {
    pa_process_kill(loop, spawning->process, SIGKILL);
    pa_handle_close(loop, loop->slots[spawning->process].handle);
    spawning->process = -1;
  }
  for (fd = 0; fd < 3; fd++)
    if (spawning->pipes[fd] >= 0) {
      pa_handle_discard(loop, spawning->pipes[fd]);
      spawning->pipes[fd] = -1;
    }
}

void pa_spawn_undo(pa_loop *loop, pa_spawning *spawning) {
  loop->counters->crossings++;
  undo(loop, spawning);
}

/* Pipes, in place of the socket pairs that libuv would make, so that a child can
 * open /dev/stdout. */
int pa_spawn_pipe(pa_loop *loop, pa_spawning *spawning, int fd) {
  int ends[2];
  int ours;
  int error = pa_pipe(ends);

  if (error != 0) {
    undo(loop, spawning);
    return error;
  }
  ours = fd == STDIN_FILENO ? ends[1] : ends[0];
  spawning->stdio[fd] = fd == STDIN_FILENO ? ends[0] : ends[1];
  spawning->pipes[fd] = pa_open(loop, ours, PA_STDIO, 1);
  if (spawning->pipes[fd] >= 0)
    return 0;
  error = spawning->pipes[fd];
  spawning->pipes[fd] = -1;
  close(spawning->stdio[fd]);
  undo(loop, spawning);
  return error;
}

/* uv_spawn, with a handle that is closed at once. The lock is held. */
static int spawn(pa_loop *loop, const uv_process_options_t *options,
                 int *pid) {
  uv_process_t *child = malloc(sizeof(*child));
  int error;

  if (child == NULL)
    return UV_ENOMEM;
  /* uv_spawn would start to handle SIGCHLD, and uv_close would stop that and
   * leave the default disposition. libuv takes a handle with the signal's number
   * for started, and one with none for stopped. */
  loop->uv.child_watcher.signum = SIGCHLD;
  error = uv_spawn(&loop->uv, child, options);
  loop->uv.child_watcher.signum = 0;
  if (error == 0)
    *pid = child->pid;
  /* uv_spawn has put it into libuv's lists, also when it has failed. */
  uv_close((uv_handle_t *) child, pa_free_unstarted);
  return error;
}

static const char *search_path(char **env) {
  const char *path = NULL;

  if (env == NULL)
    path = getenv("PATH");
  for (; env != NULL && *env != NULL && path == NULL; env++)
    if (strncmp(*env, "PATH=", 5) == 0)
      path = *env + 5;
  return path == NULL ? "/bin:/usr/bin" : path;
}

/* Writes the first file that path, a list of folders, has for the name and that
 * can be executed. Returns 0 if there is none, or it is too long. */
static int find_program(const char *path, const char *name, char *found,
                        size_t size) {
  for (;;) {
    size_t length = strcspn(path, ":");

    if (snprintf(found, size, "%.*s%s%s", (int) length, path,
                 length > 0 ? "/" : "", name) < (int) size &&
        access(found, X_OK) == 0)
      return 1;
    if (path[length] == '\0')
      return 0;
    path += length + 1;
  }
}

/* Lets the shell run a script that does not begin with "#!", as execvp(3) does,
 * and so libuv; but not where it begins with posix_spawn(3), since 1.53, nor
 * with musl. Returns -ENOEXEC if that cannot be done. */
static int spawn_script(pa_loop *loop, uv_process_options_t *options,
                        int *pid) {
  static char shell[] = "/bin/sh";
  char found[PATH_MAX];
  char **before = options->args;
  size_t count = 0;
  int error = -ENOEXEC;
  char **args;

  while (before[count] != NULL)
    count++;
  args = malloc((count + 2) * sizeof(*args));
  if (args == NULL)
    return UV_ENOMEM;
  args[0] = shell;
  args[1] = before[0];
  memcpy(args + 2, before + 1, count * sizeof(*args));
  if (strchr(options->file, '/') == NULL)
    args[1] = find_program(search_path(options->env), options->file, found,
                           sizeof(found))
                  ? found
                  : NULL;
  if (args[1] != NULL) {
    options->file = shell;
    options->args = args;
    error = spawn(loop, options, pid);
  }
  free(args);
  return error;
}

int pa_spawn(pa_loop *loop, pa_spawning *spawning, const char *path,
             char **args, char **env, const char *directory, int flags,
             uint32_t uid, uint32_t gid) {
  pa_process *process = calloc(1, sizeof(*process));
  pa_process *spare = calloc(1, sizeof(*spare));
  const int *stdio = spawning->stdio;
  uv_process_options_t options;
  uv_stdio_container_t containers[3];
  int status_flags[3];
  int index;
  int error;

  loop->counters->crossings++;
  if (process == NULL || spare == NULL || pa_slot_reserve(loop) != 0) {
    free(process);
    free(spare);
    undo(loop, spawning);
    return UV_ENOMEM;
  }
  pa_reap_abandoned();
  for (index = 0; index < 3; index++) {
    containers[index].flags = stdio[index] < 0 ? UV_IGNORE : UV_INHERIT_FD;
    containers[index].data.fd = stdio[index];
    status_flags[index] = stdio[index] < 0 ? 0 : fcntl(stdio[index], F_GETFL);
  }
  memset(&options, 0, sizeof(options));
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
  pa_child_begins();
  /* An empty path is EACCES where libuv begins with posix_spawn(3). */
  error = *path == '\0' ? UV_ENOENT : spawn(loop, &options, &process->pid);
  if (error == -ENOEXEC)
    error = spawn_script(loop, &options, &process->pid);
  if (error != 0)
    pa_child_ends();
  pa_unlock();
  restore_flags(stdio, status_flags);
  if (error != 0) {
    free(process);
    free(spare);
    undo(loop, spawning);
    return error;
  }
  process->spare = spare;
  wait_for(loop, process);
  spawning->process =
      pa_slot_new(loop, (uv_handle_t *) process, PA_PROCESS, 0);
  return 0;
}

int pa_process_pid(pa_loop *loop, int slot) {
  loop->counters->crossings++;
  return ((pa_process *) loop->slots[slot].handle)->pid;
}

int pa_process_kill(pa_loop *loop, int slot, int signum) {
  uv_handle_t *handle = loop->slots[slot].handle;
  pa_process *process = (pa_process *) handle;
  int result;

  loop->counters->crossings++;
  if (handle == NULL || uv_is_closing(handle))
    return UV_ESRCH;
#ifdef SYS_pidfd_send_signal
  /* Reaches nobody else, also where somebody else has reaped the child. */
  if (process->pidfd >= 0) {
    result = (int) syscall(SYS_pidfd_send_signal, process->pidfd, signum,
                           NULL, 0);
    if (result == 0 || errno != ENOSYS)
      return result == 0 ? 0 : uv_translate_sys_error(errno);
  }
#endif
  result = kill(process->pid, signum);
  return result == 0 ? 0 : uv_translate_sys_error(errno);
}
