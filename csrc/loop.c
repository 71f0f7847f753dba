/* The loop: its beginning, one iteration, and its end. */
#define _GNU_SOURCE  /* pipe2 */
#include "pyasync.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* For so long iterations do not poll while handles are in the ready list: to
 * poll again for each budget would cost more than their reads. */
#define POLL_INTERVAL_NS 5000000

/* Timers: Python has them, and one uv_timer_t wakes the loop for the first */

static void on_timer(uv_timer_t *timer) {
  pa_loop *loop = pa_loop_of(timer);

  pa_awake(loop);
  loop->timer_due = -1;
  pa_push(loop, PA_TIMER, 0, (int64_t) uv_now(&loop->uv), 0);
}

/* What is due is reported at once, and so comes first in the batch: libuv runs
 * its timers before the poll up to 1.44, and after it since 1.45. For later
 * deadlines the uv_timer_t is set. It is left alone where its deadline stays,
 * because to set it anew costs libuv a heap operation. uv_timer_start counts
 * from uv_now(), and due is by the same clock. */
static void drive_timers(pa_loop *loop, int64_t due, int referenced) {
  int64_t now = (int64_t) uv_now(&loop->uv);

  if (referenced)
    uv_ref((uv_handle_t *) &loop->timer);
  else
    uv_unref((uv_handle_t *) &loop->timer);
  if (due >= 0 && due <= now) {
    pa_push(loop, PA_TIMER, 0, now, 0);
    due = -1;
  }
  if (due == loop->timer_due)
    return;
  loop->timer_due = due;
  if (due < 0)
    uv_timer_stop(&loop->timer);
  else
    uv_timer_start(&loop->timer, on_timer, (uint64_t) (due - now), 0);
}

/* One iteration */

/* The handle may have ended by itself, and Python not have walked its PA_CLOSED
 * when it sent the operation: then there is nothing to be done. */
static void perform_on_handle(pa_loop *loop, enum pa_operation operation,
                              int slot, int64_t value) {
  uv_handle_t *handle = loop->slots[slot].handle;
  const pa_kind *kind = pa_kinds[loop->slots[slot].kind];

  if (handle == NULL || uv_is_closing(handle))
    return;
  switch (operation) {
    case PA_CLOSE:
      if (value == 2)
        loop->slots[slot].flags |= PA_NO_LINGER;
      if (value != 1 && kind->flush_and_close != NULL)
        kind->flush_and_close(loop, slot);
      else
        pa_handle_close(loop, handle);
      break;
    case PA_SHUTDOWN:
      pa_stream_shutdown(loop, slot);
      break;
    case PA_READ_START:
      kind->read_start(handle);
      break;
    case PA_READ_STOP:
      pa_stream_read_stop(loop, slot);
      break;
    case PA_ACCEPT:
      pa_server_accept(handle, value);
      break;
    default:
      break;
  }
}

static void perform(pa_loop *loop, const char *operations, int count,
                    const char *payload) {
  int64_t fields[3];

  for (; count > 0; count--, operations += sizeof(fields)) {
    enum pa_operation operation;
    int slot;
    int64_t value;

    /* Copied, because nobody says how Python's bytes are aligned. */
    memcpy(fields, operations, sizeof(fields));
    operation = (enum pa_operation) fields[0];
    slot = (int) fields[1];
    value = fields[2];

    switch (operation) {
      case PA_WRITE:
      case PA_WRITE_CALLBACK:
        pa_write_add(loop, slot, payload, (size_t) value,
                     operation == PA_WRITE_CALLBACK);
        payload += value;
        break;
      default:
        perform_on_handle(loop, operation, slot, value);
        break;
    }
  }
}

/* Another library may have taken our descriptor from set_wakeup_fd: a loop of
 * its own that has run in a callback leaves none. Python has to look after it,
 * but not in each iteration, because that costs system calls. So pa_run returns
 * once in LOOK_INTERVAL_MS, and only if there was an iteration since. */
#define LOOK_INTERVAL_MS 100

static void on_look(uv_timer_t *timer) {
  pa_loop *loop = pa_loop_of(timer);

  pa_awake(loop);
  loop->look_due = 1;
  uv_stop(timer->loop);
}

static void begin_look(pa_loop *loop) {
  if (loop->counters->iterations > loop->looked &&
      !uv_is_active((uv_handle_t *) &loop->look_timer))
    uv_timer_start(&loop->look_timer, on_look, LOOK_INTERVAL_MS, 0);
}

/* One iteration of libuv's. */
static void run_libuv(pa_loop *loop, int wait) {
  uv_handle_t *async = (uv_handle_t *) &loop->async;
  int referenced = uv_has_ref(async);

  pa_drop_turns_taken(loop);
  /* uv_run returns at once where no handle is referenced. But handles that are
   * not must be served while something of Python's keeps the loop running. */
  if (wait) {
    if (uv_is_active((uv_handle_t *) &loop->signal_poll))
      begin_look(loop);
    pa_change_idle(loop->counters, -1);
  } else {
    uv_ref(async);
  }
  loop->in_uv_run = 1;
  uv_run(&loop->uv, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT);
  loop->in_uv_run = 0;
  if (!referenced)
    uv_unref(async);
  if (pa_has_ready(loop))
    loop->polled = uv_hrtime();
}

/* Not where there are idlers, because libuv runs them, once an iteration. */
static int may_skip_poll(const pa_loop *loop) {
  return pa_has_ready(loop) && loop->counters->handles[PA_IDLER] == 0 &&
         uv_hrtime() - loop->polled < POLL_INTERVAL_NS;
}

int pa_run(pa_loop *loop, int wait, int64_t due, int timers_referenced,
           const char *operations, int count, const char *payload) {
  int room;
  int alive;

  loop->crossings++;
  loop->counters->crossings++;
  loop->counters->iterations++;
  room = pa_begin_batch(loop, count) == 0;
  loop->arena_used = 0;
  loop->text_used = 0;

  loop->in_pa_run = 1;
  perform(loop, operations, count, payload);
  pa_write_flush_all(loop);
  pa_streams_poll(loop);
  loop->callback_count = 0;
  /* Not earlier: a handle that Python opens while it walks a batch must not get
   * the slot of another one, whose PA_CLOSED is further back in that batch. */
  pa_free_retired_slots(loop);
  /* libuv reads the clock before its poll only up to 1.44. By an older time each
   * timer would be late by as long as the callback has taken that armed it. */
  uv_update_time(&loop->uv);
  drive_timers(loop, due, timers_referenced);
  if (!room) {
    usleep(1000);  /* what happens meanwhile waits until there is memory */
  } else if (!may_skip_poll(loop)) {
    pa_epoll_register(loop);  /* first, because it may push records */
    run_libuv(loop, wait && loop->events.count == 0 && !pa_has_ready(loop));
  }
  if (room)
    pa_take_turns(loop);
  alive = uv_loop_alive(&loop->uv);
  loop->in_pa_run = 0;
  pa_awake(loop);

  loop->counters->events += loop->events.count;
  return alive ? loop->events.count : ~loop->events.count;
}

/* Python walks a batch, and gets the records that are pushed now with the next
 * one. Without memory there is room for some still. */
static void expect_late_records(pa_loop *loop, int operations) {
  pa_queue_reserve(&loop->late, loop->late.count + 2 * operations + 64);
}

static void submit(pa_loop *loop, const char *operations, int count,
                   const char *payload) {
  loop->counters->crossings++;
  expect_late_records(loop, count);
  perform(loop, operations, count, payload);
  pa_write_flush_all(loop);
}

void pa_submit(pa_loop *loop, const char *operations, int count,
               const char *payload) {
  loop->crossings++;
  submit(loop, operations, count, payload);
}

int64_t pa_write(pa_loop *loop, int slot, const char *data, size_t size,
                 int callback) {
  return pa_submit_and_write(loop, NULL, 0, NULL, slot, data, size, callback);
}

int64_t pa_submit_and_write(pa_loop *loop, const char *operations, int count,
                            const char *payload, int slot, const char *data,
                            size_t size, int callback) {
  loop->crossings++;
  loop->counters->crossings++;
  expect_late_records(loop, count);
  perform(loop, operations, count, payload);
  pa_write_add(loop, slot, data, size, callback);
  pa_write_flush_all(loop);
  return pa_write_state(loop, slot);
}

/* The operations, each as a call of its own. */
#define OPERATION(name, operation)                        \
  void name(pa_loop *loop, int slot, int64_t value) {     \
    int64_t fields[] = {operation, slot, value};          \
                                                          \
    submit(loop, (const char *) fields, 1, NULL);         \
  }

OPERATION(pa_close, PA_CLOSE)
OPERATION(pa_shutdown, PA_SHUTDOWN)
OPERATION(pa_read_start, PA_READ_START)
OPERATION(pa_read_stop, PA_READ_STOP)
OPERATION(pa_accept, PA_ACCEPT)

uint64_t pa_crossings(pa_loop *loop) {
  return loop->crossings;
}

uint64_t pa_now(pa_loop *loop) {
  loop->counters->crossings++;
  return uv_now(&loop->uv);
}

void pa_update_time(pa_loop *loop) {
  loop->counters->crossings++;
  uv_update_time(&loop->uv);
}

pa_times pa_read_times(const pa_counters *counters, int running) {
  pa_times times;
  uint64_t changes;

  for (;;) {
    changes = __atomic_load_n(&counters->idle_changes, __ATOMIC_ACQUIRE);
    times.idle = __atomic_load_n(&counters->idle_ns, __ATOMIC_RELAXED);
    times.now = (int64_t) uv_hrtime();
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (!running || (changes % 2 == 0 &&
                     changes == __atomic_load_n(&counters->idle_changes,
                                                __ATOMIC_RELAXED)))
      break;
    sched_yield();  /* the loop's thread was preempted in a change */
  }
  if (times.idle < 0)
    times.idle += times.now;
  return times;
}

void pa_copy_counters(const pa_counters *counters, pa_counters *copy) {
  const uint64_t *from = (const uint64_t *) counters;
  uint64_t *to = (uint64_t *) copy;
  size_t index;

  for (index = 0; index < sizeof(*copy) / sizeof(*to); index++)
    to[index] = __atomic_load_n(&from[index], __ATOMIC_RELAXED);
}

/* Waking up */

/* uv_stop, because no record is pushed that would end the poll's sleep: Python
 * looks after its calls when pa_run returns. */
static void on_async(uv_async_t *async) {
  pa_awake(pa_loop_of(async));
  uv_stop(async->loop);
}

void pa_wakeup(pa_loop *loop) {
  uv_async_send(&loop->async);
}

void pa_keep_alive(pa_loop *loop, int on) {
  loop->counters->crossings++;
  if (on)
    uv_ref((uv_handle_t *) &loop->async);
  else
    uv_unref((uv_handle_t *) &loop->async);
}

static void on_signal_poll(uv_poll_t *poll, int status, int events) {
  pa_loop *loop = pa_loop_of(poll);
  unsigned char signums[256];
  ssize_t count, i;

  (void) status;
  (void) events;
  pa_awake(loop);
  /* Python runs its handlers when pa_run has returned, and so it knows what the
   * bytes say. But an API may have handlers of its own. */
  while ((count = read(loop->signal_pipe[0], signums, sizeof(signums))) > 0)
    for (i = 0; i < count && loop->signal_slot >= 0; i++)
      pa_push(loop, PA_SIGNAL, loop->signal_slot, signums[i], 0);
  uv_stop(poll->loop);
}

int pa_look_due(pa_loop *loop) {
  int due = loop->look_due;

  loop->counters->crossings++;
  loop->look_due = 0;
  if (due)
    loop->looked = loop->counters->iterations + 1;  /* the coming sleep */
  return due;
}

int pa_watch_signals(pa_loop *loop) {
  int *ends = loop->signal_pipe;
  int error;

  loop->counters->crossings++;
  if (uv_is_active((uv_handle_t *) &loop->signal_poll))
    return ends[1];
  error = pa_pipe(ends);
  if (error != 0)
    return error;
  fcntl(ends[1], F_SETFL, O_NONBLOCK);
  error = uv_poll_init(&loop->uv, &loop->signal_poll, ends[0]);
  if (error != 0) {
    close(ends[0]);
    close(ends[1]);
    ends[1] = 0;
    return error;
  }
  uv_unref((uv_handle_t *) &loop->signal_poll);
  uv_timer_init(&loop->uv, &loop->look_timer);
  uv_unref((uv_handle_t *) &loop->look_timer);
  uv_poll_start(&loop->signal_poll, UV_READABLE, on_signal_poll);
  error = pa_epoll_add(loop, &loop->signal_poll.io_watcher);
  return error == 0 ? ends[1] : error;
}

int pa_report_signals(pa_loop *loop, int slot) {
  int error = pa_watch_signals(loop);

  if (error < 0)
    return error;
  loop->signal_slot = slot;
  return 0;
}

/* Beginning and end */

/* libuv asserts never to close a descriptor with the number of a standard
 * stream. A program may have closed those, as a daemon does, and what is opened
 * next would get their numbers: so they are opened again, and what has got one
 * is moved. */
int pa_open_standard_streams(void) {
  int fd;

  for (fd = 0; fd <= STDERR_FILENO; fd++)
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
      return uv_translate_sys_error(errno);
  return 0;
}

int pa_above_standard_streams(int fd) {
  int moved;
  int error;

  if (fd < 0 || fd > STDERR_FILENO)
    return fd;
  moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  error = errno;
  close(fd);
  pa_open_standard_streams();  /* the next one would have to be moved again */
  errno = error;
  return moved;
}

int pa_pipe(int *ends) {
  int error = pa_open_standard_streams();

  if (error != 0)
    return error;
#ifdef PA_LINUX
  if (pipe2(ends, O_CLOEXEC) != 0)
    return uv_translate_sys_error(errno);
#else
  if (pipe(ends) != 0)
    return uv_translate_sys_error(errno);
  fcntl(ends[0], F_SETFD, FD_CLOEXEC);
  fcntl(ends[1], F_SETFD, FD_CLOEXEC);
#endif
  return 0;
}

/* libuv 1.45 to 1.48 does operations on files by io_uring. After a short write
 * the rest would be written to the file's beginning, nothing can be cancelled,
 * and a write to a full pipe could never end. libuv reads the variable once for
 * the process, in the first uv_loop_init. Children inherit it. */
static void avoid_io_uring(void) {
  if (uv_version() >= 0x012d00 && uv_version() < 0x013100)
    setenv("UV_USE_IO_URING", "0", 1);
}

/* The loop's own handles have no slots, and their memory is the loop's. */
static void close_own(uv_handle_t *handle, void *arg) {
  (void) arg;
  if (!uv_is_closing(handle))
    uv_close(handle, NULL);
}

static void free_loop(pa_loop *loop) {
  free(loop->events.items);
  free(loop->events.spare);
  free(loop->late.items);
  free(loop->late.spare);
  free(loop->arena);
  free(loop->text);
  free(loop->slots);
  free(loop->ready);
  free(loop->unpolled);
  free(loop->parts);
  free(loop->buffers);
  free(loop);
}

/* A request that a thread works on cannot be cancelled: wait this long. */
#define CLOSE_WAIT_MS 1000

/* Must not depend on records that Python has walked or not, because Ctrl-C may
 * have ended its walk anywhere. */
static int close_loop(pa_loop *loop) {
  int waited;

  loop->closing = 1;
  pa_reap_abandoned();
  pa_handles_close(loop);
  uv_walk(&loop->uv, close_own, NULL);
  pa_requests_close(loop);
  for (waited = 0; uv_run(&loop->uv, UV_RUN_NOWAIT) != 0; waited++) {
    if (waited == CLOSE_WAIT_MS)
      return UV_EBUSY;
    if (loop->requests_under_way > 0)
      usleep(1000);
  }
  if (uv_loop_close(&loop->uv) != 0)
    abort();  /* a handle is open still, and libuv would use freed memory */
  if (loop->signal_pipe[1] > 0) {
    close(loop->signal_pipe[0]);
    close(loop->signal_pipe[1]);
  }

  if (loop->inotify_fd >= 0)
    close(loop->inotify_fd);
  pa_requests_free(loop);
  free_loop(loop);
  return 0;
}

/* libuv opens so many for a loop: an eventfd, epoll's descriptor, a pipe for
 * signals, and with the first loop another, of the process. It aborts if it
 * cannot open that one. */
#define LOOP_PIPES 3

static int require_descriptors(int *highest) {
  int pipes[LOOP_PIPES][2];
  int count = 0;
  int error = 0;

  *highest = 0;

  while (count < LOOP_PIPES && error == 0) {
    error = pa_pipe(pipes[count]);
    if (error == 0)
      count++;
  }
  while (count-- > 0) {
    if (pipes[count][1] > *highest)
      *highest = pipes[count][1];
    close(pipes[count][0]);
    close(pipes[count][1]);
  }
  return error;
}

/* That pipe of the process. libuv keeps its numbers for ever: where a program
 * has closed it, as a daemon that closes all from 3 on, libuv would lock its
 * signals by somebody else's file, and close that in each child of a fork.
 * pa_lock guards this. */
static struct {
  int known;
  int ends[2];
  struct stat status;
} process_pipe;

static int is_end_of_pipe(int fd, int mode, struct stat *status) {
  return fstat(fd, status) == 0 && S_ISFIFO(status->st_mode) &&
         (fcntl(fd, F_GETFL) & O_ACCMODE) == mode &&
         (fcntl(fd, F_GETFD) & FD_CLOEXEC);
}

static int same_file(const struct stat *one, const struct stat *other) {
  return one->st_dev == other->st_dev && one->st_ino == other->st_ino;
}

/* libuv does not tell its numbers. They are not over limit, and no other pipe is
 * likely to have one byte in it. If there is one, nothing is known. */
static void find_process_pipe(int limit) {
  struct stat reader;
  struct stat writer;
  int found = 0;
  int size;
  int fd;
  int other;

  for (fd = STDERR_FILENO + 1; fd <= limit; fd++) {
    if (!is_end_of_pipe(fd, O_RDONLY, &reader) ||
        ioctl(fd, FIONREAD, &size) != 0 || size != 1)
      continue;
    for (other = STDERR_FILENO + 1; other <= limit; other++)
      if (is_end_of_pipe(other, O_WRONLY, &writer) &&
          same_file(&reader, &writer)) {
        process_pipe.ends[0] = fd;
        process_pipe.ends[1] = other;
        process_pipe.status = reader;
        found++;
      }
  }
  process_pipe.known = found == 1;
}

/* libuv has made it anew, with the lowest numbers. */
void pa_process_pipe_after_fork(void) {
  int *ends = process_pipe.ends;

  if (process_pipe.known)
    find_process_pipe(ends[0] > ends[1] ? ends[0] : ends[1]);
}

static int process_pipe_is_closed(void) {
  struct stat status;
  int end;

  for (end = 0; process_pipe.known && end < 2; end++)
    if (fstat(process_pipe.ends[end], &status) != 0 ||
        !same_file(&status, &process_pipe.status))
      return 1;
  return 0;
}

static int init_loop(pa_loop *loop) {
  static int initialized;
  int highest;
  int error;

  pa_lock();
  if (process_pipe_is_closed()) {
    pa_unlock();
    return UV_EBADF;
  }
  error = require_descriptors(&highest);
  if (error == 0)
    error = uv_loop_init(&loop->uv);
  if (error == 0 && !initialized) {
    initialized = 1;
    find_process_pipe(highest);
  }
  pa_unlock();
  /* After an error libuv leaves it open, up to 1.50. */
  if (error != 0 && loop->uv.backend_fd > STDERR_FILENO)
    close(loop->uv.backend_fd);
  return error;
}

int pa_loop_new(pa_counters *counters, pa_loop **place) {
  pa_loop *loop;
  int signal_error;
  int error;

  pa_reap_abandoned();
  avoid_io_uring();
  loop = calloc(1, sizeof(*loop));
  if (loop == NULL)
    return UV_ENOMEM;
  loop->counters = counters;
  loop->free_slot = -1;
  loop->retired_slot = -1;
  loop->timer_due = -1;
  loop->inotify_fd = -1;
  loop->signal_slot = -1;
  loop->arena = malloc(ARENA_SIZE);
  error = loop->arena == NULL ? UV_ENOMEM : pa_write_reserve(loop, 64);
  if (error == 0)
    error = pa_slot_reserve(loop);
  if (error == 0)
    error = pa_queue_reserve(&loop->late, 256);
  if (error == 0)
    error = init_loop(loop);
  if (error != 0) {
    free_loop(loop);
    return error;
  }
  error = uv_async_init(&loop->uv, &loop->async, on_async);
  if (error == 0) {
    uv_unref((uv_handle_t *) &loop->async);
    uv_timer_init(&loop->uv, &loop->timer);
    error = pa_epoll_add(loop, &loop->uv.async_io_watcher);
    /* Also after an error, because libuv would try it when the loop is closed,
     * and abort. */
    signal_error = pa_epoll_add(loop, &loop->uv.signal_io_watcher);
    if (error == 0)
      error = signal_error;
  }
  if (error == 0)
    *place = loop;
  else
    close_loop(loop);
  return error;
}

int pa_loop_close(pa_loop **place) {
  pa_loop *loop = *place;

  /* In C, because in Python an exception such as Ctrl-C's might come in
   * between, and the next call would close a loop that is freed. */
  *place = NULL;
  return loop == NULL ? 0 : close_loop(loop);
}
