/* The delay heap: 24 bytes a timer where a uv_timer_t has 152. */
#include "pyasync.h"

/* Timers that fire in one iteration; the others wait for the next, so that a
 * million due together do not keep I/O waiting. */
#define FIRE_LIMIT 16384

/* The driver is not set. */
#define NEVER UINT64_MAX

static int is_before(const pa_timer *a, const pa_timer *b) {
  return a->due != b->due ? a->due < b->due : a->order < b->order;
}

static void place(pa_loop *loop, uint32_t index, pa_timer timer) {
  loop->timers[index] = timer;
  loop->timer_positions[timer.slot] = index + 1;
}

/* Puts the timer at the free place index, or above it. */
static void sift_up(pa_loop *loop, uint32_t index, pa_timer timer) {
  while (index > 0) {
    uint32_t parent = (index - 1) / 4;

    if (!is_before(&timer, &loop->timers[parent]))
      break;
    place(loop, index, loop->timers[parent]);
    index = parent;
  }
  place(loop, index, timer);
}

/* Puts the timer at the free place index, or below it. */
static void sift_down(pa_loop *loop, uint32_t index, pa_timer timer) {
  for (;;) {
    uint32_t child = 4 * index + 1;
    uint32_t end = child + 4;
    uint32_t first = child;

    if (child >= loop->timer_count)
      break;
    if (end > loop->timer_count)
      end = loop->timer_count;
    while (++child < end)
      if (is_before(&loop->timers[child], &loop->timers[first]))
        first = child;
    if (!is_before(&loop->timers[first], &timer))
      break;
    place(loop, index, loop->timers[first]);
    index = first;
  }
  place(loop, index, timer);
}

static void take(pa_loop *loop, uint32_t index) {
  pa_timer taken = loop->timers[index];
  pa_timer last = loop->timers[--loop->timer_count];

  loop->timer_positions[taken.slot] = 0;
  loop->timers_referenced -= taken.referenced;
  if (index == loop->timer_count)
    return;
  if (is_before(&last, &taken))
    sift_up(loop, index, last);
  else
    sift_down(loop, index, last);
}

/* Returns 1 + the timer's index, or 0 when it is not in the heap: it has
 * fired, and Python has stopped it before it walked the event. */
static uint32_t position(pa_loop *loop, int slot) {
  if ((uint32_t) slot >= loop->timer_slot_capacity)
    return 0;
  return loop->timer_positions[slot];
}

static void on_driver(uv_timer_t *driver) {
  pa_loop *loop = pa_loop_of(driver);
  uint64_t now = uv_now(&loop->uv);
  int fired = 0;

  pa_awake(loop);
  while (loop->timer_count > 0 && loop->timers[0].due <= now &&
         fired++ < FIRE_LIMIT) {
    pa_push(loop, PA_TIMER, (int) loop->timers[0].slot, 0, 0);
    take(loop, 0);
  }
  loop->timer_due = NEVER;
  /* The next pa_run sets the driver for those left over: libuv 1.44 calls a
   * timer that is due again at once within the same iteration. */
  if (fired == 0)
    pa_timers_drive(loop);
}

void pa_timers_init(pa_loop *loop) {
  uv_timer_init(&loop->uv, &loop->timer_driver);
  uv_unref((uv_handle_t *) &loop->timer_driver);
  loop->timer_due = NEVER;
}

void pa_timers_drive(pa_loop *loop) {
  uv_handle_t *driver = (uv_handle_t *) &loop->timer_driver;
  uint64_t now = uv_now(&loop->uv);
  uint64_t due;

  if (loop->timers_referenced > 0)
    uv_ref(driver);
  else
    uv_unref(driver);
  if (loop->timer_count == 0) {
    uv_timer_stop(&loop->timer_driver);
    loop->timer_due = NEVER;
    return;
  }
  due = loop->timers[0].due;
  if (due == loop->timer_due)
    return;
  loop->timer_due = due;
  uv_timer_start(&loop->timer_driver, on_driver, due > now ? due - now : 0, 0);
}

void pa_timer_add(pa_loop *loop, int slot, int64_t due, int referenced) {
  pa_timer timer;

  if ((uint32_t) slot >= loop->timer_slot_capacity) {
    uint32_t old = loop->timer_slot_capacity;
    uint32_t capacity = old == 0 ? 64 : 2 * old;

    while (capacity <= (uint32_t) slot)
      capacity *= 2;
    loop->timer_positions =
        pa_grow(loop->timer_positions, capacity * sizeof(uint32_t));
    while (old < capacity)
      loop->timer_positions[old++] = 0;
    loop->timer_slot_capacity = capacity;
  }
  if (loop->timer_count == loop->timer_capacity) {
    loop->timer_capacity =
        loop->timer_capacity == 0 ? 64 : 2 * loop->timer_capacity;
    loop->timers =
        pa_grow(loop->timers, loop->timer_capacity * sizeof(*loop->timers));
  }
  timer.due = (uint64_t) due;
  timer.order = loop->timers_armed++;
  timer.slot = (uint32_t) slot;
  timer.referenced = referenced != 0;
  loop->timers_referenced += timer.referenced;
  sift_up(loop, loop->timer_count++, timer);
}

void pa_timer_remove(pa_loop *loop, int slot) {
  uint32_t at = position(loop, slot);

  if (at != 0)
    take(loop, at - 1);
}

void pa_timer_reference(pa_loop *loop, int slot, int referenced) {
  uint32_t at = position(loop, slot);

  if (at != 0) {
    pa_timer *timer = &loop->timers[at - 1];

    loop->timers_referenced -= timer->referenced;
    timer->referenced = referenced != 0;
    loop->timers_referenced += timer->referenced;
  }
}

int64_t pa_timer_due(pa_loop *loop, int slot) {
  uint32_t at = position(loop, slot);

  loop->counters->crossings++;
  return at != 0 ? (int64_t) loop->timers[at - 1].due : 0;
}
