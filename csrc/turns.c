/* The arena, and the turns of the handles that read into it.
 *
 * Handles with little to read are read where the poll finds them readable.
 * Those with much have their turns after the poll, from the ready list, for two
 * reasons. If all were read in the poll, the data of the first would have left
 * the processor's caches before Python gets it. And epoll names handles that
 * stay readable in the same order each time: with a budget some would never be
 * read. */
#include "pyasync.h"

#include <string.h>

char *pa_arena(pa_loop *loop) {
  loop->counters->crossings++;
  return loop->arena;
}

size_t pa_arena_size(void) {
  return ARENA_SIZE;
}

/* libuv must not read by itself, because it would report an end of stream
 * where the poll finds a hang-up behind a short read, although after a reset
 * data may be missing (libuv 1.44, uv__stream_io). Must not stop the
 * reading: uv_read_stop clears the read callback, and libuv calls that after
 * this one. */
void pa_alloc_nothing(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer) {
  (void) handle;
  (void) suggested;
  *buffer = uv_buf_init(NULL, 0);
}

static void receive(pa_loop *loop, int slot) {
  pa_kinds[loop->slots[slot].kind]->receive(loop, slot);
}

void pa_add_ready(pa_loop *loop, int slot) {
  if (pa_add_slot(&loop->ready, &loop->ready_count, &loop->ready_capacity,
                  slot) == 0)
    loop->slots[slot].flags |= PA_READY;
}

/* libuv polls up to 48 times in an iteration while epoll_wait fills its 1,024
 * places, and reports each time those that nobody has read: another reason to
 * read at once where there is little. */
void pa_readable(uv_handle_t *handle) {
  pa_loop *loop = pa_loop_of(handle);
  int slot = pa_slot_of(handle);
  pa_slot *entry = &loop->slots[slot];

  pa_awake(loop);
  if (entry->flags & PA_READY)
    return;
  if ((entry->flags & PA_BULK) || loop->arena_used > POLL_BUDGET) {
    pa_add_ready(loop, slot);
    /* Without memory for the list it is read now if there is room; otherwise
     * the next poll reports it again. */
    if ((entry->flags & PA_READY) || loop->arena_used > POLL_BUDGET)
      return;
  }
  receive(loop, slot);
}

/* A handle may be closed while it is in the ready list, and its slot given to
 * another. That one is not ready, or has its turn earlier than it would. */
static void take_turn(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];

  if (entry->handle == NULL || !(entry->flags & PA_READY))
    return;
  entry->flags &= ~PA_READY;
  if (!uv_is_closing(entry->handle))
    receive(loop, slot);
}

void pa_take_turns(pa_loop *loop) {
  size_t end = loop->arena_used + READY_BUDGET;

  while (pa_has_ready(loop) && loop->arena_used < end)
    take_turn(loop, loop->ready[loop->turns_taken++]);
}

/* Once for all of them, when a poll is about to add others: to move the rest of
 * a long list for each turn would make a round of turns quadratic. */
void pa_drop_turns_taken(pa_loop *loop) {
  if (loop->turns_taken == 0)
    return;
  loop->ready_count -= loop->turns_taken;
  memmove(loop->ready, loop->ready + loop->turns_taken,
          loop->ready_count * sizeof(*loop->ready));
  loop->turns_taken = 0;
}
