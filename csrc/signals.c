/* Signal handlers. libuv leaves the default disposition behind where Python's
 * was before: the shim puts that back. */
#include "pyasync.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

/* For the whole process, since dispositions are. */
static struct {
  int handlers;
  struct sigaction before;
} dispositions[NSIG];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct {
  uv_signal_t handle;
  int signum;
} pa_signal;

static void on_signal(uv_signal_t *handle, int signum) {
  pa_awake(pa_loop_of(handle));
  pa_push(pa_loop_of(handle), PA_SIGNAL, pa_slot_of(handle), signum, 0);
}

static void free_failed(uv_handle_t *handle) {
  free(handle);
}

int pa_signal_start(pa_loop *loop, int signum) {
  pa_signal *signal;
  struct sigaction before;
  int error;

  loop->counters->crossings++;
  if (signum <= 0 || signum >= NSIG)
    return UV_EINVAL;
  signal = pa_grow(NULL, sizeof(*signal));
  signal->signum = signum;
  error = uv_signal_init(&loop->uv, &signal->handle);
  if (error != 0) {
    free(signal);
    return error;
  }
  pthread_mutex_lock(&lock);
  sigaction(signum, NULL, &before);
  error = uv_signal_start(&signal->handle, on_signal, signum);
  if (error == 0 && dispositions[signum].handlers++ == 0)
    dispositions[signum].before = before;
  pthread_mutex_unlock(&lock);
  if (error != 0) {
    uv_close((uv_handle_t *) &signal->handle, free_failed);
    return error;
  }
  return pa_slot_new(loop, (uv_handle_t *) &signal->handle, PA_SIGNAL_HANDLER,
                     0);
}

/* Called after uv_close, which has stopped the handle. */
void pa_signal_close(uv_handle_t *handle) {
  int signum = ((pa_signal *) handle)->signum;

  pthread_mutex_lock(&lock);
  if (--dispositions[signum].handlers == 0)
    sigaction(signum, &dispositions[signum].before, NULL);
  pthread_mutex_unlock(&lock);
}

void pa_signals_after_fork(void) {
  int signum;

  for (signum = 1; signum < NSIG; signum++) {
    if (dispositions[signum].handlers > 0)
      sigaction(signum, &dispositions[signum].before, NULL);
    dispositions[signum].handlers = 0;
  }
  pthread_mutex_init(&lock, NULL);
}
