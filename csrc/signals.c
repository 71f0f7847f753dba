/* Signal handlers. uv_signal_stop sets the default disposition when the last
 * handler of a signal stops, although another was there before the first,
 * Python's for SIGINT for example: here that is saved and put back. */
#include "pyasync.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

typedef struct {
  uv_signal_t handle;
  pa_signal_use use;
} pa_signal;

/* Of the process, because dispositions are; lock guards them. */
static struct {
  int uses;                 /* started handlers, of all loops */
  struct sigaction before;  /* the first of them */
} dispositions[NSIG];
static pa_signal_use *started;
static void (*libuv_handler)(int);  /* the disposition that libuv sets */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void pa_lock(void) {
  pthread_mutex_lock(&lock);
}

void pa_unlock(void) {
  pthread_mutex_unlock(&lock);
}

/* The lock is held in the functions from here to pa_sigchld_after. */

/* handle has been started. before: the disposition before that, which counts if
 * it is the first handler of the signal. */
static void begin_use(pa_signal_use *use, uv_signal_t *handle, int signum,
                      const struct sigaction *before) {
  struct sigaction now;

  if (dispositions[signum].uses++ == 0) {
    sigaction(signum, NULL, &now);
    libuv_handler = now.sa_handler;
    dispositions[signum].before = *before;
  }
  use->handle = handle;
  use->next = started;
  use->link = &started;
  if (started != NULL)
    started->link = &use->next;
  started = use;
}

/* The handle has been stopped. before: the disposition before that. */
static void end_use(pa_signal_use *use, int signum,
                    const struct sigaction *before) {
  /* Somebody else, signal.signal for example, may have replaced libuv's handler
   * since: then that is to stay. */
  if (before->sa_handler != libuv_handler)
    dispositions[signum].before = *before;
  if (--dispositions[signum].uses == 0)
    sigaction(signum, &dispositions[signum].before, NULL);
  *use->link = use->next;
  if (use->next != NULL)
    use->next->link = use->link;
  use->link = NULL;
}

static void stop(pa_signal_use *use) {
  int signum = use->handle->signum;
  struct sigaction before;

  sigaction(signum, NULL, &before);
  uv_signal_stop(use->handle);
  end_use(use, signum, &before);
}

/* libuv handles SIGCHLD by a signal handle of its own, child_watcher, while a
 * loop has active process handles. Its disposition is put back like that of
 * ours. A look at the watcher itself is the only way to know when it starts and
 * stops: it stops with the last handle whose exit libuv has not seen, while
 * exits of others may be on their way to their callbacks. */
void pa_sigchld_before(struct sigaction *before) {
  sigaction(SIGCHLD, NULL, before);
}

void pa_sigchld_after(pa_loop *loop, const struct sigaction *before) {
  uv_signal_t *watcher = &loop->uv.child_watcher;
  int active = uv_is_active((uv_handle_t *) watcher);

  if (active && loop->sigchld.link == NULL)
    begin_use(&loop->sigchld, watcher, SIGCHLD, before);
  else if (!active && loop->sigchld.link != NULL)
    end_use(&loop->sigchld, SIGCHLD, before);
}

/* Handlers of a loop: the lock is not held. */

static void on_signal(uv_signal_t *handle, int signum) {
  pa_awake(pa_loop_of(handle));
  pa_push(pa_loop_of(handle), PA_SIGNAL, pa_slot_of(handle), signum, 0);
}

int pa_signal_start(pa_loop *loop, int signum) {
  struct sigaction before;
  pa_signal *signal;
  int error;

  loop->counters->crossings++;
  if (signum <= 0 || signum >= NSIG)
    return UV_EINVAL;
  signal = pa_grow(NULL, sizeof(*signal));
  error = uv_signal_init(&loop->uv, &signal->handle);
  if (error != 0) {
    free(signal);
    return error;
  }
  pa_lock();
  sigaction(signum, NULL, &before);
  error = uv_signal_start(&signal->handle, on_signal, signum);
  if (error == 0)
    begin_use(&signal->use, &signal->handle, signum, &before);
  pa_unlock();
  if (error != 0) {
    uv_close((uv_handle_t *) &signal->handle, pa_free_unstarted);
    return error;
  }
  return pa_slot_new(loop, (uv_handle_t *) &signal->handle, PA_SIGNAL_HANDLER,
                     0);
}

static void close_handler(pa_loop *loop, uv_handle_t *handle,
                          uv_close_cb closed) {
  (void) loop;
  pa_lock();
  stop(&((pa_signal *) handle)->use);
  pa_unlock();
  uv_close(handle, closed);
}

const pa_kind pa_signal_kind = {.close = close_handler};

void pa_signals_before_fork(void) {
  pa_lock();
}

void pa_signals_after_fork(int in_child) {
  /* The child has a copy of libuv's table of handlers. With it libuv would take
   * a signal for handled already when the child starts a handler, and would
   * write signals of the child to pipes that the parent's loops read.
   * uv_signal_stop is safe here: it makes no call on a descriptor of a loop. */
  while (in_child && started != NULL)
    stop(started);
  if (in_child)
    pa_forget_abandoned();
  pa_unlock();
}
