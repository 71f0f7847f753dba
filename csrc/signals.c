/* Signal handlers. libuv leaves the default disposition behind where Python's
 * was before: the shim puts that back. */
#include "pyasync.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

typedef struct pa_signal {
  uv_signal_t handle;
  struct pa_signal *next;
  struct pa_signal **link;  /* what points to this one */
} pa_signal;

/* For the whole process, since dispositions are. */
static struct {
  int handlers;
  struct sigaction before;
} dispositions[NSIG];
static pa_signal *started;  /* of all loops */
static void (*libuv_handler)(int);
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void on_signal(uv_signal_t *handle, int signum) {
  pa_awake(pa_loop_of(handle));
  pa_push(pa_loop_of(handle), PA_SIGNAL, pa_slot_of(handle), signum, 0);
}

static void free_failed(uv_handle_t *handle) {
  free(handle);
}

/* The lock is held. */
static int start(pa_signal *signal, int signum) {
  struct sigaction before;
  struct sigaction now;
  int error;

  sigaction(signum, NULL, &before);
  error = uv_signal_start(&signal->handle, on_signal, signum);
  if (error != 0)
    return error;
  if (dispositions[signum].handlers++ == 0) {
    sigaction(signum, NULL, &now);
    libuv_handler = now.sa_handler;
    dispositions[signum].before = before;
  }
  signal->next = started;
  signal->link = &started;
  if (started != NULL)
    started->link = &signal->next;
  started = signal;
  return 0;
}

static void stop(pa_signal *signal) {
  int signum = signal->handle.signum;
  struct sigaction now;

  /* Somebody else may have set it since: then that is to stay. */
  sigaction(signum, NULL, &now);
  if (now.sa_handler != libuv_handler)
    dispositions[signum].before = now;
  uv_signal_stop(&signal->handle);
  if (--dispositions[signum].handlers == 0)
    sigaction(signum, &dispositions[signum].before, NULL);
  *signal->link = signal->next;
  if (signal->next != NULL)
    signal->next->link = signal->link;
}

int pa_signal_start(pa_loop *loop, int signum) {
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
  pthread_mutex_lock(&lock);
  error = start(signal, signum);
  pthread_mutex_unlock(&lock);
  if (error != 0) {
    uv_close((uv_handle_t *) &signal->handle, free_failed);
    return error;
  }
  return pa_slot_new(loop, (uv_handle_t *) &signal->handle, PA_SIGNAL_HANDLER,
                     0);
}

void pa_signal_stop(uv_handle_t *handle) {
  pthread_mutex_lock(&lock);
  stop((pa_signal *) handle);
  pthread_mutex_unlock(&lock);
}

void pa_signals_before_fork(void) {
  pthread_mutex_lock(&lock);
}

void pa_signals_after_fork(int in_child) {
  /* libuv would count the parent's handlers for the child's, and write to the
   * pipes of the parent's loops. uv_signal_stop touches memory only. */
  while (in_child && started != NULL)
    stop(started);
  pthread_mutex_unlock(&lock);
}
