/* Signal handlers, the disposition of SIGCHLD, and the lock of what the loops
 * of a process share.
 *
 * libuv's uv_signal_t is not used. uv_signal_stop sets the default disposition,
 * and a signal that arrives before the earlier disposition is put back would
 * kill the process. To block the signal meanwhile is no help, because another
 * thread may take it. Here one disposition replaces the other in a single
 * sigaction(2). A handle is a uv_async_t: uv_async_send may be called by a
 * signal handler. */
#include "pyasync.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

/* The most records that a handler leaves in an iteration. */
#define SIGNALS_AT_ONCE 64

typedef struct pa_signal {
  uv_async_t async;
  int signum;
  int caught;  /* signals without a record yet; on_signal adds to it */
  struct pa_signal *next;
  struct pa_signal **link;  /* the pointer to this one */
} pa_signal;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void pa_lock(void) {
  pthread_mutex_lock(&lock);
}

void pa_unlock(void) {
  pthread_mutex_unlock(&lock);
}

/* The started handlers of all loops. A signal handler walks the list, in any
 * thread, and so it has a spinlock of its own: a mutex is not for signal
 * handlers. Who holds it has all signals blocked, because a handler in the same
 * thread would wait for it for ever. */
static pa_signal *started;
static char walked;

static void block_all(sigset_t *before) {
  sigset_t all;

  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, before);
}

static void begin_walk(void) {
  while (__atomic_test_and_set(&walked, __ATOMIC_ACQUIRE))
    sched_yield();
}

static void end_walk(void) {
  __atomic_clear(&walked, __ATOMIC_RELEASE);
}

/* The disposition while a signal has handlers. Other signals are blocked while
 * it runs. */
static void on_signal(int signum) {
  int before = errno;
  pa_signal *signal;

  begin_walk();
  for (signal = started; signal != NULL; signal = signal->next)
    if (signal->signum == signum) {
      __atomic_add_fetch(&signal->caught, 1, __ATOMIC_RELAXED);
      uv_async_send(&signal->async);
    }
  end_walk();
  errno = before;
}

static void add(pa_signal *signal) {
  sigset_t before;

  block_all(&before);
  begin_walk();
  signal->next = started;
  signal->link = &started;
  if (started != NULL)
    started->link = &signal->next;
  started = signal;
  end_walk();
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void take_out(pa_signal *signal) {
  sigset_t before;

  block_all(&before);
  begin_walk();
  *signal->link = signal->next;
  if (signal->next != NULL)
    signal->next->link = signal->link;
  end_walk();
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* What each signal did before it had handlers. pa_lock guards this, and is held
 * in the functions from here to pa_child_ends. */
static struct sigaction earlier[NSIG];

static int is_ours(const struct sigaction *action) {
  return action->sa_handler == on_signal;
}

static int start(pa_signal *signal) {
  struct sigaction ours = {0};
  struct sigaction before;

  add(signal);  /* first: a signal that found no handler would be lost */
  ours.sa_handler = on_signal;
  ours.sa_flags = SA_RESTART;
  sigfillset(&ours.sa_mask);
  if (sigaction(signal->signum, &ours, &before) != 0) {
    int error = uv_translate_sys_error(errno);

    take_out(signal);
    return error;
  }
  if (!is_ours(&before))
    earlier[signal->signum] = before;
  return 0;
}

static int is_last(const pa_signal *signal) {
  const pa_signal *other;

  for (other = started; other != NULL; other = other->next)
    if (other != signal && other->signum == signal->signum)
      return 0;
  return 1;
}

/* The disposition first, for the same reason. Somebody else, signal.signal for
 * example, may have set another than ours since: then that is to stay. */
static void stop(pa_signal *signal) {
  struct sigaction now;

  if (is_last(signal) && sigaction(signal->signum, NULL, &now) == 0 &&
      is_ours(&now))
    sigaction(signal->signum, &earlier[signal->signum], NULL);
  take_out(signal);
}

/* Children */

/* Where SIGCHLD is ignored the kernel reaps children by itself, and their
 * status is lost. So it is not ignored while loops have children, but has the
 * default disposition, which does nothing either. */
static int children;
static int ignored;               /* this was done, and is to be undone */
static struct sigaction ignoring;  /* the disposition from before */

static int ignores_children(const struct sigaction *action) {
  return action->sa_handler == SIG_IGN || (action->sa_flags & SA_NOCLDWAIT);
}

void pa_child_begins(void) {
  struct sigaction now;

  children++;
  sigaction(SIGCHLD, NULL, &now);
  if (!ignores_children(&now))
    return;
  ignored = 1;
  ignoring = now;
  if (now.sa_handler == SIG_IGN)
    now.sa_handler = SIG_DFL;
  now.sa_flags &= ~SA_NOCLDWAIT;
  sigaction(SIGCHLD, &now, NULL);
}

static void ignore_again(void) {
  void (*kept)(int) =
      ignoring.sa_handler == SIG_IGN ? SIG_DFL : ignoring.sa_handler;
  struct sigaction now;

  if (!ignored)
    return;
  ignored = 0;
  sigaction(SIGCHLD, NULL, &now);
  if (is_ours(&now) && earlier[SIGCHLD].sa_handler == kept)
    earlier[SIGCHLD] = ignoring;  /* put back when our handler stops */
  else if (now.sa_handler == kept)
    sigaction(SIGCHLD, &ignoring, NULL);
}

void pa_child_ends(void) {
  if (--children == 0)
    ignore_again();
}

/* Handlers of a loop: the lock is not held. */

/* signal(7): signals of the same number that arrive close together may be one.
 * Those that were caught one by one are reported one by one, but not all at
 * once, because a flood must not keep the loop from other work. */
static void on_caught(uv_async_t *async) {
  pa_signal *signal = (pa_signal *) async;
  pa_loop *loop = pa_loop_of(async);
  int count = __atomic_exchange_n(&signal->caught, 0, __ATOMIC_RELAXED);

  pa_awake(loop);
  if (count > SIGNALS_AT_ONCE) {
    __atomic_add_fetch(&signal->caught, count - SIGNALS_AT_ONCE,
                       __ATOMIC_RELAXED);
    count = SIGNALS_AT_ONCE;
    uv_async_send(async);
  }
  while (count-- > 0)
    pa_push(loop, PA_SIGNAL, pa_slot_of(async), signal->signum, 0);
}

int pa_signal_start(pa_loop *loop, int signum) {
  pa_signal *signal;
  int error;

  loop->counters->crossings++;
  if (signum <= 0 || signum >= NSIG)
    return UV_EINVAL;
  signal = calloc(1, sizeof(*signal));
  if (signal == NULL || pa_slot_reserve(loop) != 0) {
    free(signal);
    return UV_ENOMEM;
  }
  error = uv_async_init(&loop->uv, &signal->async, on_caught);
  if (error != 0) {
    free(signal);
    return error;
  }
  signal->signum = signum;
  pa_lock();
  error = start(signal);
  pa_unlock();
  if (error != 0) {
    uv_close((uv_handle_t *) &signal->async, pa_free_unstarted);
    return error;
  }
  return pa_slot_new(loop, (uv_handle_t *) &signal->async, PA_SIGNAL_HANDLER,
                     0);
}

static void close_handler(pa_loop *loop, uv_handle_t *handle,
                          uv_close_cb closed) {
  (void) loop;
  pa_lock();
  stop((pa_signal *) handle);
  pa_unlock();
  uv_close(handle, closed);
}

const pa_kind pa_signal_kind = {.close = close_handler};

/* Forks */

/* The mask from before the fork. Signals are blocked until the child has the
 * earlier dispositions: one that came sooner would be lost. */
static sigset_t unblocked;

void pa_signals_before_fork(void) {
  sigset_t before;

  pa_lock();
  block_all(&before);
  unblocked = before;
  begin_walk();  /* no other thread is in the middle of it */
}

void pa_signals_after_fork(int in_child) {
  sigset_t before = unblocked;

  end_walk();
  if (in_child) {
    while (started != NULL)
      stop(started);
    children = 0;
    ignore_again();
    pa_forget_abandoned();
    pa_forget_shared();
    pa_pool_after_fork();
    pa_process_pipe_after_fork();
  }
  pa_unlock();
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}
