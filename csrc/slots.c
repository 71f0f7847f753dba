/* Slots, the table of kinds, and the records that tell Python of both.
 *
 * A slot is the number by which C and Python know a handle:
 *
 *   pa_slot_new         the handle is open, and Python may name the slot
 *   pa_handle_close     libuv calls on_closed at the end of its iteration
 *   on_closed           the handle's memory is freed; PA_CLOSED is pushed; the
 *                       slot is retired, as Python may name it still
 *   the next pa_run     Python has walked PA_CLOSED: the slot is free */
#include "pyasync.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Records */

int pa_queue_reserve(pa_queue *queue, int count) {
  int capacity = queue->capacity == 0 ? 256 : queue->capacity;
  pa_event *spare;

  if (count <= queue->capacity || count <= queue->spare_capacity)
    return 0;
  while (capacity < count)
    capacity *= 2;
  spare = malloc(capacity * sizeof(*spare));
  if (spare == NULL)
    return UV_ENOMEM;
  free(queue->spare);
  queue->spare = spare;
  queue->spare_capacity = capacity;
  return 0;
}

/* The queue is full. */
static void use_spare(pa_queue *queue) {
  if (queue->count > 0)
    memcpy(queue->spare, queue->items, queue->count * sizeof(*queue->items));
  free(queue->items);
  queue->items = queue->spare;
  queue->capacity = queue->spare_capacity;
  queue->spare = NULL;
  queue->spare_capacity = 0;
}

/* A record must not be lost: hence pa_queue_reserve before, where much may be
 * pushed. */
static void make_room(pa_queue *queue) {
  if (pa_queue_reserve(queue, queue->count + 1) != 0) {
    fprintf(stderr, "pyasync: out of memory for events\n");
    abort();
  }
  use_spare(queue);
}

void pa_push(pa_loop *loop, int kind, int slot, int64_t value, int64_t data) {
  /* Outside pa_run Python walks the batch: it must not move or grow then. */
  pa_queue *queue = loop->in_pa_run ? &loop->events : &loop->late;
  pa_event *event;

  if (loop->closing)
    return;
  if (queue->count == queue->capacity)
    make_room(queue);
  event = &queue->items[queue->count++];
  event->kind = kind;
  event->slot = slot;
  event->value = value;
  event->data = data;

  /* uv_run fires timers and idlers before it polls, and would sleep in the poll
   * although there is a record. Not outside uv_run, because the next uv_run
   * would take uv_stop for its own, and return without an iteration. */
  if (loop->in_uv_run)
    uv_stop(&loop->uv);
}

/* What one iteration pushes at most, but for rare events: the spare memory of a
 * large loop is not for all handles at once. */
#define RECORDS_OF_A_HANDLE 4
#define HANDLES_MAX 4096
#define RECORDS_MIN 512

int pa_begin_batch(pa_loop *loop, int operations) {
  pa_queue *events = &loop->events;
  pa_queue *late = &loop->late;
  int handles = loop->slot_count < HANDLES_MAX ? loop->slot_count : HANDLES_MAX;
  int count = late->count;

  events->count = 0;
  if (count > events->capacity && pa_queue_reserve(events, count) == 0)
    use_spare(events);
  if (count > events->capacity)
    count = events->capacity;  /* the others wait */
  if (count > 0) {
    events->count = count;
    memcpy(events->items, late->items, count * sizeof(*late->items));
    late->count -= count;
    memmove(late->items, late->items + count,
            late->count * sizeof(*late->items));
  }
  return pa_queue_reserve(events, count + 2 * operations + RECORDS_MIN +
                                      RECORDS_OF_A_HANDLE * handles);
}

int pa_event_count(pa_loop *loop) {
  return loop->events.count;
}

int pa_events(pa_loop *loop, pa_event **items) {
  loop->counters->crossings++;
  *items = loop->events.items;
  return loop->events.capacity;
}

/* Kinds */

static const pa_kind plain_kind;

const pa_kind *const pa_kinds[PA_HANDLE_KINDS] = {
    [PA_TCP] = &pa_connection_kind,
    [PA_PIPE] = &pa_connection_kind,
    [PA_TCP_SERVER] = &pa_server_kind,
    [PA_PIPE_SERVER] = &pa_server_kind,
    [PA_SIGNAL_HANDLER] = &pa_signal_kind,
    [PA_IDLER] = &plain_kind,
    [PA_POLLER] = &pa_poller_kind,
    [PA_PROCESS] = &pa_process_kind,
    [PA_FS_MONITOR] = &pa_monitor_kind,
    [PA_UDP] = &pa_udp_kind,
    [PA_STDIO] = &pa_stdio_kind,
};

/* Slots */

int pa_add_slot(int **slots, int *count, int *capacity, int slot) {
  if (*count == *capacity) {
    int more = *capacity == 0 ? 64 : 2 * *capacity;
    int *grown = realloc(*slots, more * sizeof(int));

    if (grown == NULL)
      return UV_ENOMEM;
    *slots = grown;
    *capacity = more;
  }
  (*slots)[(*count)++] = slot;
  return 0;
}

int pa_slot_reserve(pa_loop *loop) {
  int capacity = loop->slot_capacity == 0 ? 64 : 2 * loop->slot_capacity;
  pa_slot *slots;

  if (loop->free_slot >= 0 || loop->slot_count < loop->slot_capacity)
    return 0;
  slots = realloc(loop->slots, capacity * sizeof(*slots));
  if (slots == NULL)
    return UV_ENOMEM;
  loop->slots = slots;
  loop->slot_capacity = capacity;
  return 0;
}

void *pa_handle_new(pa_loop *loop, size_t size) {
  return pa_slot_reserve(loop) == 0 ? malloc(size) : NULL;
}

int pa_slot_new(pa_loop *loop, uv_handle_t *handle, int kind, int flags) {
  int slot = loop->free_slot;
  pa_slot *entry;

  if (slot >= 0)
    loop->free_slot = loop->slots[slot].next_free;
  else
    slot = loop->slot_count++;
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

static void retire(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];

  entry->handle = NULL;
  entry->next_free = loop->retired_slot;
  loop->retired_slot = slot;
}

/* libuv uses the handle's memory until this callback: it is freed here, and
 * nowhere else. */
static void on_closed(uv_handle_t *handle) {
  pa_loop *loop = pa_loop_of(handle);
  int slot = pa_slot_of(handle);
  pa_slot *entry = &loop->slots[slot];
  const pa_kind *kind = pa_kinds[entry->kind];

  loop->counters->handles[entry->kind]--;
  if (kind->after_close != NULL)
    kind->after_close(loop, entry);
  retire(loop, slot);
  pa_push(loop, PA_CLOSED, slot, 0, 0);
  free(handle);
}

void pa_free_retired_slots(pa_loop *loop) {
  int slot = loop->retired_slot;

  while (slot >= 0) {
    int next = loop->slots[slot].next_free;

    loop->slots[slot].next_free = loop->free_slot;
    loop->free_slot = slot;
    slot = next;
  }
  loop->retired_slot = -1;
}

/* Handles of every kind */

void pa_free_unstarted(uv_handle_t *handle) {
  free(handle);
}

void pa_handle_close(pa_loop *loop, uv_handle_t *handle) {
  pa_slot *entry = &loop->slots[pa_slot_of(handle)];
  const pa_kind *kind = pa_kinds[entry->kind];

  /* uv_close asserts that it is the first. */
  if (uv_is_closing(handle))
    return;
  entry->flags |= PA_CLOSING;
  if (kind->close != NULL)
    kind->close(loop, handle, on_closed);
  else
    uv_close(handle, on_closed);
}

void pa_handle_discard(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];

  loop->counters->handles[entry->kind]--;
  uv_close(entry->handle, pa_free_unstarted);
  retire(loop, slot);
}

void pa_handles_close(pa_loop *loop) {
  int slot;

  for (slot = 0; slot < loop->slot_count; slot++)
    if (loop->slots[slot].handle != NULL)
      pa_handle_close(loop, loop->slots[slot].handle);
}

/* From here on there may be no handle any more: it was closed, or a process has
 * ended by itself, and Python learns of it only with the batch. */
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
  const uv_handle_t *handle = loop->slots[slot].handle;
  uv_os_fd_t fd;
  int error;

  loop->counters->crossings++;
  error = handle == NULL ? UV_EBADF : uv_fileno(handle, &fd);
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
      statuses[count].active = uv_is_active(handle);
      statuses[count].referenced = uv_has_ref(handle);
      statuses[count].closing = uv_is_closing(handle);
    }
    count++;
  }
  return count;
}
