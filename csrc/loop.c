/* The loop: its two queues, its slots, and its end. */
#include "pyasync.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* While handles wait for their turns an iteration does not poll, for so long. */
#define POLL_INTERVAL_NS 5000000

/* realloc, for arrays without which the loop cannot go on. */
void *pa_grow(void *array, size_t size) {
  array = realloc(array, size);
  if (array == NULL) {
    fprintf(stderr, "pyasync: out of memory (%zu bytes)\n", size);
    abort();
  }
  return array;
}

static void reserve(pa_queue *queue, int count) {
  int capacity = queue->capacity == 0 ? 256 : queue->capacity;

  while (capacity < count)
    capacity *= 2;
  if (capacity == queue->capacity)
    return;
  queue->items = pa_grow(queue->items, capacity * sizeof(*queue->items));
  queue->capacity = capacity;
}

void pa_push(pa_loop *loop, int kind, int slot, int64_t value, int64_t data) {
  pa_queue *queue = loop->in_pa_run ? &loop->events : &loop->late;
  pa_event *event;

  if (loop->closing)
    return;
  reserve(queue, queue->count + 1);
  event = &queue->items[queue->count++];
  event->kind = kind;
  event->slot = slot;
  event->value = value;
  event->data = data;

  /* Or the poll would sleep on top of it: uv_run fires timers before it
   * polls. Outside uv_run this would make the next one skip its iteration. */
  if (loop->in_uv_run)
    uv_stop(&loop->uv);
}

static void take_late_events(pa_loop *loop) {
  loop->events.count = loop->late.count;
  loop->late.count = 0;
  if (loop->events.count == 0)
    return;
  reserve(&loop->events, loop->events.count);
  memcpy(loop->events.items, loop->late.items,
         loop->events.count * sizeof(*loop->events.items));
}

/* Slots */

void pa_add_slot(int **slots, int *count, int *capacity, int slot) {
  if (*count == *capacity) {
    *capacity = *capacity == 0 ? 64 : 2 * *capacity;
    *slots = pa_grow(*slots, *capacity * sizeof(int));
  }
  (*slots)[(*count)++] = slot;
}

int pa_slot_new(pa_loop *loop, uv_handle_t *handle, int kind, int flags) {
  int slot = loop->free_slot;
  pa_slot *entry;

  if (slot >= 0) {
    loop->free_slot = loop->slots[slot].next_free;
  } else {
    if (loop->slot_count == loop->slot_capacity) {
      loop->slot_capacity =
          loop->slot_capacity == 0 ? 64 : 2 * loop->slot_capacity;
      loop->slots =
          pa_grow(loop->slots, loop->slot_capacity * sizeof(*loop->slots));
    }
    slot = loop->slot_count++;
  }
  entry = &loop->slots[slot];
  entry->handle = handle;
  entry->writes = 0;
  entry->kind = (uint8_t) kind;
  entry->error = 0;
  entry->flags = (uint16_t) flags;
  handle->data = (void *) (intptr_t) slot;
  loop->counters->handles[kind]++;
  return slot;
}

static uint64_t *connection_counter(pa_counters *counters, pa_slot *entry) {
  if (entry->kind == PA_TCP)
    return entry->flags & PA_INCOMING ? &counters->incoming_tcp
                                      : &counters->outgoing_tcp;
  return entry->flags & PA_INCOMING ? &counters->incoming_pipe
                                    : &counters->outgoing_pipe;
}

static void on_closed(uv_handle_t *handle) {
  pa_loop *loop = pa_loop_of(handle);
  int slot = pa_slot_of(handle);
  pa_slot *entry = &loop->slots[slot];

  loop->counters->handles[entry->kind]--;
  if ((entry->kind == PA_TCP || entry->kind == PA_PIPE) &&
      !(entry->flags & PA_CONNECTING)) {
    --*connection_counter(loop->counters, entry);
    loop->counters->closed++;
  }
  entry->handle = NULL;
  entry->next_free = loop->retired_slot;
  loop->retired_slot = slot;
  pa_push(loop, PA_CLOSED, slot, 0, 0);
  free(handle);
}

/* Python has walked the PA_CLOSED of every retired slot. */
static void free_retired_slots(pa_loop *loop) {
  int slot = loop->retired_slot;

  while (slot >= 0) {
    int next = loop->slots[slot].next_free;

    loop->slots[slot].next_free = loop->free_slot;
    loop->free_slot = slot;
    slot = next;
  }
  loop->retired_slot = -1;
}

/* Turns at the arena. libuv would read each handle where the poll names it, all
 * before Python has anything, and what comes first would have left the caches.
 * And the poll names handles that stay readable in the same order each time:
 * some might never be read. So handles with much to read have their turns after
 * the poll, one after the other; those with little are read at once. */

void pa_alloc_nothing(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
  (void) handle;
  (void) suggested;
  *buffer = uv_buf_init(NULL, 0);
}

static void read_handle(pa_loop *loop, int slot) {
  if (loop->slots[slot].kind == PA_UDP)
    pa_udp_receive(loop, slot);
  else
    pa_stream_receive(loop, slot);
}

void pa_readable(uv_handle_t *handle) {
  pa_loop *loop = pa_loop_of(handle);
  int slot = pa_slot_of(handle);
  pa_slot *entry = &loop->slots[slot];

  pa_awake(loop);
  if (entry->flags & PA_READY)
    return;
  if (!(entry->flags & PA_BULK) && loop->arena_used <= POLL_BUDGET) {
    read_handle(loop, slot);
    return;
  }
  entry->flags |= PA_READY;
  pa_add_slot(&loop->ready, &loop->ready_count, &loop->ready_capacity,
              slot);
}

/* The slot may be another handle's by now, which is not listed, or has its turn
 * earlier than it would. */
static void take_turn(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];

  if (entry->handle == NULL || !(entry->flags & PA_READY))
    return;
  entry->flags &= ~PA_READY;
  if (!uv_is_closing(entry->handle))
    read_handle(loop, slot);
}

static void take_turns(pa_loop *loop) {
  size_t end = loop->arena_used + READY_BUDGET;

  while (loop->turns_taken < loop->ready_count && loop->arena_used < end)
    take_turn(loop, loop->ready[loop->turns_taken++]);
}

static int has_ready(const pa_loop *loop) {
  return loop->turns_taken < loop->ready_count;
}

static void forget_turns_taken(pa_loop *loop) {
  if (loop->turns_taken == 0)
    return;
  loop->ready_count -= loop->turns_taken;
  memmove(loop->ready, loop->ready + loop->turns_taken,
          loop->ready_count * sizeof(int));
  loop->turns_taken = 0;
}

/* Timers: Python has them all, and one uv_timer_t drives them */

static void on_timer(uv_timer_t *timer) {
  pa_loop *loop = pa_loop_of(timer);

  pa_awake(loop);
  loop->timer_due = -1;
  pa_push(loop, PA_TIMER, 0, (int64_t) uv_now(&loop->uv), 0);
}

static void drive_timers(pa_loop *loop, int64_t due, int referenced) {
  int64_t now = (int64_t) uv_now(&loop->uv);

  if (referenced)
    uv_ref((uv_handle_t *) &loop->timer);
  else
    uv_unref((uv_handle_t *) &loop->timer);
  if (due == loop->timer_due)
    return;
  loop->timer_due = due;
  if (due < 0)
    uv_timer_stop(&loop->timer);
  else
    uv_timer_start(&loop->timer, on_timer,
                   due > now ? (uint64_t) (due - now) : 0, 0);
}

/* One iteration */

/* An operation may name a slot whose handle has ended by itself, as long as
 * Python has not walked its PA_CLOSED. */
static void perform_on_handle(pa_loop *loop, enum pa_operation operation,
                              int slot, int64_t value) {
  uv_handle_t *handle = loop->slots[slot].handle;

  if (handle == NULL || uv_is_closing(handle))
    return;
  switch (operation) {
    case PA_CLOSE:
      if (value != 0)
        pa_handle_close(loop, handle);
      else if (loop->slots[slot].kind == PA_UDP)
        pa_udp_close(loop, slot);
      else
        pa_stream_close(loop, slot);
      break;
    case PA_SHUTDOWN:
      pa_stream_shutdown(loop, slot);
      break;
    case PA_READ_START:
      pa_stream_read(handle);
      break;
    case PA_READ_STOP:
      loop->slots[slot].flags &= ~(PA_UNPOLLED | PA_READING);
      uv_read_stop((uv_stream_t *) handle);
      break;
    case PA_ACCEPT:
      pa_listener_accept(handle, value);
      break;
    default:
      break;
  }
}

static void perform(pa_loop *loop, const int64_t *operations, int count,
                    const char *payload) {
  const int64_t *end = operations + 3 * (size_t) count;

  for (; operations < end; operations += 3) {
    enum pa_operation operation = (enum pa_operation) operations[0];
    int slot = (int) operations[1];
    int64_t value = operations[2];

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

static void run_libuv(pa_loop *loop, int wait) {
  uv_handle_t *async = (uv_handle_t *) &loop->async;
  int referenced = uv_has_ref(async);

  forget_turns_taken(loop);
  /* uv_run does nothing at all where no handle is referenced. But what is not
   * referenced is served while something of Python's keeps the loop running. */
  if (wait)
    pa_change_idle(loop->counters, -1);
  else
    uv_ref(async);
  loop->in_uv_run = 1;
  uv_run(&loop->uv, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT);
  loop->in_uv_run = 0;
  if (!referenced)
    uv_unref(async);
  if (has_ready(loop))
    loop->polled = uv_hrtime();
}

/* Idlers run in each iteration. */
static int may_skip_poll(const pa_loop *loop) {
  return has_ready(loop) && loop->counters->handles[PA_IDLER] == 0 &&
         uv_hrtime() - loop->polled < POLL_INTERVAL_NS;
}

int pa_run(pa_loop *loop, int wait, int64_t due, int timers_referenced,
           const int64_t *operations, int count, const char *payload) {
  int alive;

  loop->crossings++;
  loop->counters->crossings++;
  loop->counters->iterations++;
  take_late_events(loop);
  loop->arena_used = 0;
  loop->text_used = 0;

  loop->in_pa_run = 1;
  perform(loop, operations, count, payload);
  pa_write_flush_all(loop);
  pa_streams_poll(loop);
  loop->callback_count = 0;
  free_retired_slots(loop);
  drive_timers(loop, due, timers_referenced);
  if (may_skip_poll(loop))
    uv_update_time(&loop->uv);
  else
    run_libuv(loop, wait && loop->events.count == 0 && !has_ready(loop));
  take_turns(loop);
  alive = uv_loop_alive(&loop->uv);
  loop->in_pa_run = 0;
  pa_awake(loop);

  loop->counters->events += loop->events.count;
  return alive ? loop->events.count : ~loop->events.count;
}

static void submit(pa_loop *loop, const int64_t *operations, int count,
                   const char *payload) {
  loop->counters->crossings++;
  perform(loop, operations, count, payload);
  pa_write_flush_all(loop);
}

void pa_submit(pa_loop *loop, const int64_t *operations, int count,
               const char *payload) {
  loop->crossings++;
  submit(loop, operations, count, payload);
}

void pa_write(pa_loop *loop, int slot, const char *data, size_t size,
              int callback) {
  pa_submit_and_write(loop, NULL, 0, NULL, slot, data, size, callback);
}

void pa_submit_and_write(pa_loop *loop, const int64_t *operations, int count,
                         const char *payload, int slot, const char *data,
                         size_t size, int callback) {
  loop->crossings++;
  loop->counters->crossings++;
  perform(loop, operations, count, payload);
  pa_write_add(loop, slot, data, size, callback);
  pa_write_flush_all(loop);
}

/* The operations, each as a call of its own. */
#define OPERATION(name, operation)                        \
  void name(pa_loop *loop, int slot, int64_t value) {     \
    int64_t operations[] = {operation, slot, value};      \
                                                          \
    submit(loop, operations, 1, NULL);                    \
  }

OPERATION(pa_close, PA_CLOSE)
OPERATION(pa_shutdown, PA_SHUTDOWN)
OPERATION(pa_read_start, PA_READ_START)
OPERATION(pa_read_stop, PA_READ_STOP)
OPERATION(pa_accept, PA_ACCEPT)

uint64_t pa_crossings(pa_loop *loop) {
  return loop->crossings;
}

int pa_event_count(pa_loop *loop) {
  return loop->events.count;
}

int pa_events(pa_loop *loop, pa_event **items) {
  loop->counters->crossings++;
  *items = loop->events.items;
  return loop->events.capacity;
}

char *pa_arena(pa_loop *loop) {
  loop->counters->crossings++;
  return loop->arena;
}

size_t pa_arena_size(void) {
  return ARENA_SIZE;
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

/* Waking up */

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
  char discarded[256];
  uv_os_fd_t fd;

  (void) status;
  (void) events;
  pa_awake(pa_loop_of(poll));
  /* Python's own handlers run when pa_run has returned. */
  if (uv_fileno((uv_handle_t *) poll, &fd) == 0)
    while (read(fd, discarded, sizeof(discarded)) > 0)
      continue;
  uv_stop(poll->loop);
}

int pa_watch_signals(pa_loop *loop, int fd) {
  int error = uv_poll_init(&loop->uv, &loop->signal_poll, fd);

  loop->counters->crossings++;
  if (error == 0) {
    uv_unref((uv_handle_t *) &loop->signal_poll);
    error = uv_poll_start(&loop->signal_poll, UV_READABLE, on_signal_poll);
  }
  return error;
}

/* Handles of every kind */

static int is_internal(const pa_loop *loop, const uv_handle_t *handle) {
  return handle == (const uv_handle_t *) &loop->timer ||
         handle == (const uv_handle_t *) &loop->async ||
         handle == (const uv_handle_t *) &loop->signal_poll;
}

void pa_handle_close(pa_loop *loop, uv_handle_t *handle) {
  pa_slot *entry = &loop->slots[pa_slot_of(handle)];

  if (uv_is_closing(handle))
    return;
  entry->flags |= PA_CLOSING;
  if (entry->kind == PA_PROCESS) {
    pa_process_close(loop, handle, on_closed);
    return;
  }
  if (entry->kind == PA_SIGNAL_HANDLER)
    pa_signal_stop(handle);
  uv_close(handle, on_closed);
  if (entry->kind == PA_TCP_SERVER || entry->kind == PA_PIPE_SERVER)
    pa_listener_close(handle);
  else if (entry->kind == PA_POLLER)
    pa_poller_close(handle);
}

/* A process may have ended by itself, and Python not have heard of it yet: then
 * there is no handle any more. */
void pa_ref(pa_loop *loop, int slot, int referenced) {
  uv_handle_t *handle = loop->slots[slot].handle;

  loop->counters->crossings++;
  if (handle == NULL)
    return;
  if (referenced)
    uv_ref(handle);
  else
    uv_unref(handle);
}

int pa_has_ref(pa_loop *loop, int slot) {
  uv_handle_t *handle = loop->slots[slot].handle;

  loop->counters->crossings++;
  return handle != NULL && uv_has_ref(handle);
}

int pa_fileno(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];
  uv_os_fd_t fd;
  int error;

  loop->counters->crossings++;
  if (entry->kind == PA_TCP_SERVER || entry->kind == PA_PIPE_SERVER)
    return pa_listener_fd(entry->handle);
  error = uv_fileno(entry->handle, &fd);
  return error == 0 ? fd : error;
}

int pa_handles(pa_loop *loop, pa_handle_status *statuses, int size) {
  int count = 0;
  int slot;

  loop->counters->crossings++;
  for (slot = 0; slot < loop->slot_count; slot++) {
    const uv_handle_t *handle = loop->slots[slot].handle;

    if (handle == NULL)
      continue;
    if (count < size) {
      statuses[count].kind = loop->slots[slot].kind;
      statuses[count].slot = slot;
      statuses[count].active = uv_is_active(handle);
      statuses[count].referenced = uv_has_ref(handle);
      statuses[count].closing = uv_is_closing(handle);
    }
    count++;
  }
  return count;
}

/* Beginning and end */

/* libuv aborts when it closes a descriptor of a standard stream's number, as
 * any of ours would be in a daemon that has closed those. */
static int open_standard_streams(void) {
  int fd;

  for (fd = 0; fd <= STDERR_FILENO; fd++)
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
      return uv_translate_sys_error(errno);
  return 0;
}

int pa_loop_new(pa_counters *counters, pa_loop **place) {
  pa_loop *loop;
  int error;

  pa_reap_abandoned();
  error = open_standard_streams();
  if (error != 0)
    return error;
  loop = calloc(1, sizeof(*loop));
  if (loop == NULL)
    return UV_ENOMEM;
  error = uv_loop_init(&loop->uv);
  if (error != 0) {
    free(loop);
    return error;
  }
  error = uv_async_init(&loop->uv, &loop->async, on_async);
  if (error != 0) {
    uv_loop_close(&loop->uv);
    free(loop);
    return error;
  }
  uv_unref((uv_handle_t *) &loop->async);
  loop->counters = counters;
  loop->arena = pa_grow(NULL, ARENA_SIZE);
  loop->free_slot = -1;
  loop->retired_slot = -1;
  uv_timer_init(&loop->uv, &loop->timer);
  loop->timer_due = -1;
  *place = loop;
  return 0;
}

static void close_walked(uv_handle_t *handle, void *loop) {
  if (uv_is_closing(handle))
    return;
  if (is_internal(loop, handle))
    uv_close(handle, NULL);
  else
    pa_handle_close(loop, handle);
}

/* A request that runs in a thread cannot be cancelled: wait this long. */
#define CLOSE_WAIT_MS 1000

/* Depends on nothing that Python has seen or not seen. */
static int close_loop(pa_loop *loop) {
  int waited;

  loop->closing = 1;
  pa_reap_abandoned();
  uv_walk(&loop->uv, close_walked, loop);
  pa_requests_close(loop);
  for (waited = 0; uv_run(&loop->uv, UV_RUN_NOWAIT) != 0; waited++) {
    if (waited == CLOSE_WAIT_MS)
      return UV_EBUSY;
    if (loop->requests_under_way > 0)
      usleep(1000);
  }
  if (uv_loop_close(&loop->uv) != 0)
    abort();  /* a handle has escaped the walk: its memory is in the loop's */

  pa_requests_free(loop);
  free(loop->events.items);
  free(loop->late.items);
  free(loop->arena);
  free(loop->text);
  free(loop->slots);
  free(loop->ready);
  free(loop->unpolled);
  free(loop->parts);
  free(loop->buffers);
  free(loop);
  return 0;
}

int pa_loop_close(pa_loop **place) {
  pa_loop *loop = *place;

  /* Here, so that no exception of Python's can come in between. */
  *place = NULL;
  return loop == NULL ? 0 : close_loop(loop);
}
