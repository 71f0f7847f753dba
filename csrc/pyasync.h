/* What the files of the shim share. The public declarations, which Python
 * reads too, are in the *.cdef.h. */
#ifndef PYASYNC_H
#define PYASYNC_H

#include <net/if.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "addresses.cdef.h"
#include "loop.cdef.h"
#include "streams.cdef.h"
#include "tcp.cdef.h"
#include "udp.cdef.h"
#include "requests.cdef.h"
#include "dns.cdef.h"
#include "signals.cdef.h"
#include "watchers.cdef.h"
#include "processes.cdef.h"
#include "fs.cdef.h"
#include "fs_events.cdef.h"

/* All that is read in one iteration lies in the arena. Its pages are touched as
 * they are needed, and few programs need many: so much is for 10,000 peers that
 * send 1 KiB each at the same time. */
#define ARENA_SIZE ((size_t) 16 << 20)
/* What one handle may use of it, in one iteration. */
#define READ_MAX ((size_t) 3 << 19)
/* When the turns of an iteration have read this much, the others wait for the
 * next iteration, because what is read is to be in the processor's caches still
 * when Python gets it. What was read in the poll does not count: else many
 * small readers would keep those with much to read from ever having a turn. */
#define READY_BUDGET ((size_t) 128 << 10)
/* What reads in the poll leave of the arena: room for one more of them and for
 * the turns, the last of which may begin just below READY_BUDGET. */
#define POLL_BUDGET (ARENA_SIZE - 2 * READ_MAX - READY_BUDGET)
/* Handles that last had less than this to read do not wait for a turn. */
#define BULK_READ ((size_t) 4 << 10)

#define CONTAINER_OF(pointer, type, member) \
  ((type *) ((char *) (pointer) - offsetof(type, member)))

enum pa_flags {
  PA_INCOMING = 1,   /* accepted by a server */
  PA_CONNECTING = 2,
  PA_END_SEEN = 4,   /* EOF or an error has been read */
  PA_BROKEN = 8,     /* a write has failed */
  PA_SHUT = 16,      /* the writing side is shut down, or will be */
  PA_CLOSING = 32,   /* Python has closed it: read only to discard */
  PA_QUEUED = 64,    /* a write had to be queued, at some time */
  PA_FLUSHED = 128,  /* the shutdown is done, and so every write */
  PA_WROTE = 256,    /* has written */
  PA_LARGE = 512,    /* may have written more than is sent at once */
  PA_UNPOLLED = 1024, /* has been read once, and is not polled yet */
  PA_READING = 2048,  /* is read, when it has something */
  PA_READY = 4096,   /* has a place in pa_loop.ready */
  PA_BULK = 8192      /* had much to read, the last time: see BULK_READ */
};

/* What C knows of a handle beside libuv's own memory. handle->data is the
 * slot's number. */
typedef struct {
  uv_handle_t *handle;  /* NULL: the slot is free */
  union {
    uint32_t writes;    /* 1 + index of the first pa_write_part of the batch */
    int32_t next_free;
  };
  uint8_t kind;         /* enum pa_handle_kind */
  uint8_t error;        /* of a write, negated: to be told after its turn */
  uint16_t flags;       /* enum pa_flags */
} pa_slot;

typedef struct {
  pa_event *items;
  int count;
  int capacity;
} pa_queue;

/* One write of a batch, until the batch is flushed. */
typedef struct {
  const char *base;
  size_t size;
  uint32_t slot;
  uint32_t next;  /* 1 + index of the stream's next part; 0 at the end */
  uint32_t last;  /* of a stream's first part: 1 + index of its last */
  uint32_t callback;  /* 1 + its number since the last pa_run; 0: has none */
} pa_write_part;

/* The beginning of every request. */
struct pa_request {
  pa_loop *loop;
  pa_request *next;
  pa_request **link;  /* what points to this one */
  uv_req_t *uv;       /* NULL: it is over */
  uint64_t *counter;  /* of what is waited for; NULL: it is not counted */
  void (*release)(pa_request *);  /* frees its memory */
};

/* A libuv handle that handles a signal, in the list of all of the process. */
typedef struct pa_signal_use {
  uv_signal_t *handle;
  struct pa_signal_use *next;
  struct pa_signal_use **link;  /* what points to this one; NULL: not started */
} pa_signal_use;

struct pa_loop {
  uv_loop_t uv;
  pa_counters *counters;
  uint64_t crossings;  /* see pa_crossings */
  int in_pa_run;
  int in_uv_run;
  int closing;

  pa_queue events;  /* of this iteration: Python walks it after pa_run */
  pa_queue late;    /* pushed while Python walks events: begin the next */

  char *arena;      /* what was read in this iteration */
  size_t arena_used;
  char *text;       /* names of files that have changed in this iteration */
  size_t text_used;
  size_t text_capacity;
  int *ready;       /* slots, in the order in which they have their turns */
  int ready_count;
  int ready_capacity;
  int turns_taken;  /* of the readable */
  uint64_t polled;  /* when, in nanoseconds, if some are readable since */
  int *unpolled;    /* slots: to be polled from the next iteration on */
  int unpolled_count;
  int unpolled_capacity;

  pa_slot *slots;
  int slot_count;
  int slot_capacity;
  int free_slot;     /* list through next_free; -1 at the end */
  int retired_slot;  /* the same: free when Python has walked the events */

  pa_write_part *parts;
  uint32_t part_count;
  uint32_t part_capacity;
  uint32_t callback_count;  /* writes with a callback since the last pa_run */
  uv_buf_t *buffers;
  size_t buffer_capacity;

  pa_request *requests;  /* under way, and over and not freed yet */
  int requests_under_way;

  uv_timer_t timer;   /* for the first of Python's */
  int64_t timer_due;  /* what it is set for, or -1 */
  uv_async_t async;
  uv_poll_t signal_poll;
  pa_signal_use sigchld;  /* libuv's own, while there are children */
};

/* loop.c */
void *pa_grow(void *array, size_t size);
void pa_push(pa_loop *loop, int kind, int slot, int64_t value, int64_t data);
/* Gives the handle a slot, after its uv_*_init; free(handle) is the loop's. */
int pa_slot_new(pa_loop *loop, uv_handle_t *handle, int kind, int flags);
/* A uv_alloc_cb: without a buffer libuv reads nothing, and reports UV_ENOBUFS. */
void pa_alloc_nothing(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer);
/* To be called when it does, in place of reading: the handle is read, or gets a place in
 * the list of those that are to be. */
void pa_readable(uv_handle_t *handle);
/* Adds the slot to an array of slots. */
void pa_add_slot(int **slots, int *count, int *capacity, int slot);
/* uv_close, and what the kind needs with it. */
void pa_handle_close(pa_loop *loop, uv_handle_t *handle);

/* addresses.c */
/* The size of the largest packed address. */
#define PA_PACKED_MAX 28
/* Both return the size of the packed one. */
size_t pa_pack_address(char *packed, const struct sockaddr *address);
size_t pa_unpack_address(const char *packed, struct sockaddr_storage *address);
socklen_t pa_address_size(const struct sockaddr_storage *address);

/* streams.c */
void pa_stream_read(uv_handle_t *handle);
/* Reads once, into the arena. */
void pa_stream_receive(pa_loop *loop, int slot);
void pa_stream_close(pa_loop *loop, int slot);
void pa_stream_shutdown(pa_loop *loop, int slot);
/* The stream has been accepted, or has connected: count it. */
void pa_stream_open(pa_loop *loop, int slot);
/* Reads what a new connection has brought along, if anything. */
void pa_stream_read_first(pa_loop *loop, int slot);
/* Polls the streams that were read first and are open still. */
void pa_streams_poll(pa_loop *loop);
void pa_stream_connected(uv_connect_t *request, int status);
/* Writes what pa_write_add has gathered: all of it, or a stream's. */
void pa_write_add(pa_loop *loop, int slot, const char *base, size_t size,
                  int callback);
void pa_write_flush(pa_loop *loop, int slot);
void pa_write_flush_all(pa_loop *loop);

/* tcp.c */
void pa_listener_accept(uv_handle_t *handle, int64_t more);
void pa_listener_close(uv_handle_t *handle);
int pa_listener_fd(uv_handle_t *handle);

/* udp.c */
/* Reads a batch of datagrams into the arena. */
void pa_udp_receive(pa_loop *loop, int slot);
/* Sends the parts from index on, each a datagram. */
void pa_udp_send(pa_loop *loop, int slot, uint32_t index);
void pa_udp_close(pa_loop *loop, int slot);

/* requests.c */
/* uv has been started, or that has failed with error. Its release is set.
 * Returns what Python is to know. */
int64_t pa_request_begin(pa_loop *loop, pa_request *request, uv_req_t *uv,
                         int error);
/* Counts one that has begun, until Python knows the result, or cancels it. */
void pa_request_count(int64_t request, uint64_t *counter);
/* To be called in libuv's callback, when the result is there to be read. */
void pa_request_done(pa_request *request);
/* At the end of the loop: cancels what can be; then frees what is over. */
void pa_requests_close(pa_loop *loop);
void pa_requests_free(pa_loop *loop);

static inline pa_request *pa_request_at(int64_t address) {
  return (pa_request *) (intptr_t) address;
}

/* signals.c */
/* Guard what all loops of the process share: dispositions, and children. */
void pa_lock(void);
void pa_unlock(void);
/* To be called before uv_close. */
void pa_signal_stop(uv_handle_t *handle);
/* Around whatever may make libuv start or stop to handle SIGCHLD for the
 * loop; the lock is held. */
void pa_sigchld_before(struct sigaction *before);
void pa_sigchld_after(pa_loop *loop, const struct sigaction *before);

/* processes.c */
/* Closes the handle if the child has exited, or the loop ends; else leaves it
 * to reap the child, and to keep no loop running. */
void pa_process_close(pa_loop *loop, uv_handle_t *handle, uv_close_cb closed);
/* Reaps children that loops have left behind; those that run stay. */
void pa_reap_abandoned(void);
/* In the child of a fork, which has no children; the lock is held. */
void pa_forget_abandoned(void);

/* watchers.c */
/* To be called after uv_close. */
void pa_poller_close(uv_handle_t *handle);

/* A sleep begins (-1) or ends (1). Any thread may read idle_ns meanwhile: see
 * pa_read_times. The changes are the sequence number of a seqlock with one
 * writer, in C11's memory model (Boehm, "Can seqlocks get along with
 * programming language memory models?", 2012). */
static inline void pa_change_idle(pa_counters *counters, int sign) {
  uint64_t changes = counters->idle_changes;
  int64_t idle;

  __atomic_store_n(&counters->idle_changes, changes + 1, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  /* The clock is read behind the mark, because the thread may be preempted
   * after the look at it: a reader must not take the old value then. */
  idle = counters->idle_ns + sign * (int64_t) uv_hrtime();
  __atomic_store_n(&counters->idle_ns, idle, __ATOMIC_RELAXED);
  __atomic_store_n(&counters->idle_changes, changes + 2, __ATOMIC_RELEASE);
}

/* To be called first in each callback that libuv's poll makes: the sleep has
 * ended. */
static inline void pa_awake(pa_loop *loop) {
  if (loop->counters->idle_ns < 0)
    pa_change_idle(loop->counters, 1);
}

static inline pa_loop *pa_loop_of(const void *handle) {
  return (pa_loop *) ((const uv_handle_t *) handle)->loop;
}

static inline int pa_slot_of(const void *handle) {
  return (int) (intptr_t) ((const uv_handle_t *) handle)->data;
}

#endif
