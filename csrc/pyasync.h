/* Declarations that the files of the shim share. Those that Python reads too
 * are in the *.cdef.h. */
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
#include "sockets.cdef.h"
#include "tcp.cdef.h"
#include "udp.cdef.h"
#include "requests.cdef.h"
#include "dns.cdef.h"
#include "signals.cdef.h"
#include "watchers.cdef.h"
#include "processes.cdef.h"
#include "fs.cdef.h"
#include "fs_events.cdef.h"

/* Not with PYASYNC_PORTABLE=1, which builds what other systems have, to be
 * tested on Linux. */
#if defined(__linux__) && !defined(PA_PORTABLE)
#define PA_LINUX
#endif

/* The arena holds all data that one iteration reads. It is only address space
 * at first: the kernel gives it a page when the page is first written to, so
 * that its size costs nothing where little is read. The size is for 10,000
 * peers that send 1 KiB each at the same time. */
#define ARENA_SIZE ((size_t) 16 << 20)
#define ARENA_ALIGNMENT ((size_t) 16)
/* The most that one handle takes of the arena in one iteration. */
#define READ_MAX ((size_t) 3 << 19)
/* When the handles of the ready list have read this much, the others in it wait
 * for the next iteration, because data is to be in the processor's caches still
 * when Python gets it. Data that was read in the poll does not count: otherwise
 * many small readers would keep those in the ready list from their turns. */
#define READY_BUDGET ((size_t) 128 << 10)
/* When the poll has read more than this, it puts the next handles into the
 * ready list. The rest of the arena is for one more read in the poll, and for
 * the turns, the last of which may begin just below READY_BUDGET. */
#define POLL_BUDGET (ARENA_SIZE - 2 * READ_MAX - READY_BUDGET)
/* A handle whose last read gave less than this is read in the poll, at once. */
#define BULK_READ ((size_t) 4 << 10)
/* When a handle's last read gave this much, and as much waits again, Python
 * reads it, straight into a bytes object of its own: for so much data the copy
 * out of the arena costs more than a call of read(2) from Python does. */
#define HUGE_READ ((size_t) 32 << 10)

/* More of the arena than so much is for what the turns read. */
#define ADDRESSES_END (ARENA_SIZE - READ_MAX - READY_BUDGET - PA_PACKED_MAX)

#define CONTAINER_OF(pointer, type, member) \
  ((type *) ((char *) (pointer) - offsetof(type, member)))

enum pa_flags {
  PA_INCOMING = 1,   /* accepted by a server */
  PA_CONNECTING = 2,
  PA_END_SEEN = 4,   /* a read has given EOF or an error */
  PA_UNREPORTED = 8, /* its failed write is reported after the handle's turn */
  PA_SHUT = 16,      /* the writing side is shut down, or will be */
  PA_CLOSING = 32,   /* Python has closed it: input is discarded */
  PA_QUEUED = 64,    /* has had a blocked write, which libuv queued */
  PA_FLUSHED = 128,  /* the shutdown is done, and so every write */
  PA_WROTE = 256,    /* has been written to */
  PA_LARGE = 512,    /* its writes may be more than TCP sends at once */
  PA_UNPOLLED = 1024,  /* was read by pa_stream_read_first; not polled yet */
  PA_READING = 2048,   /* is polled for input, and may be read */
  PA_READY = 4096,     /* is in the ready list */
  PA_BULK = 8192,      /* the last read gave BULK_READ or more */
  PA_NO_LINGER = 16384, /* its close does not wait for the peer */
  PA_HUGE = 32768      /* the last read gave HUGE_READ or more */
};

/* A slot: the facts about a handle that libuv's own memory does not hold.
 * handle->data is the slot's number. pa_slot_new may move all slots: a pointer
 * to one is good until then. */
typedef struct {
  uv_handle_t *handle;  /* NULL: the handle is closed */
  union {
    uint32_t writes;    /* 1 + index of its first pa_write_part; 0: none */
    int32_t next_free;
  };
  uint8_t kind;         /* enum pa_handle_kind */
  uint8_t error;        /* of a failed write, negated; 0: none has failed */
  uint16_t flags;       /* enum pa_flags */
} pa_slot;

/* Where the kinds of handles differ. Each file fills one for its kinds, and
 * slots.c lists them. NULL stands for the default that is named here. */
typedef struct {
  /* Hands all writes to the kernel, then closes. NULL: closes at once. */
  void (*flush_and_close)(pa_loop *loop, int slot);
  /* Is called in place of uv_close, and calls that with closed: now, or when
   * the handle has done its work. NULL: uv_close itself. */
  void (*close)(pa_loop *loop, uv_handle_t *handle, uv_close_cb closed);
  /* The handle is closed, and its memory about to be freed. NULL: nothing. */
  void (*after_close)(pa_loop *loop, const pa_slot *entry);
  /* Reads once, into the arena. NULL: it never calls pa_readable. */
  void (*receive)(pa_loop *loop, int slot);
  /* Takes PA_READ_START. NULL: is never sent one. */
  void (*read_start)(uv_handle_t *handle);
  /* The system has refused to poll the handle's descriptor: libuv must not try
   * it. NULL: it has none. */
  void (*refused)(pa_loop *loop, int slot, int error);
  /* Writes the part at index - 1 and those behind it. NULL: has no writes. */
  void (*write)(pa_loop *loop, int slot, uint32_t index);
} pa_kind;

/* Records, in the order in which Python walks them. */
typedef struct {
  pa_event *items;
  int count;
  int capacity;
  pa_event *spare;  /* memory for when it is full, or NULL */
  int spare_capacity;
} pa_queue;

/* One write of a crossing. Its data belongs to Python: it is there until the
 * crossing ends, and the kernel has it by then, or a blocked write its copy. */
typedef struct {
  const char *base;
  size_t size;
  uint32_t slot;
  uint32_t next;  /* 1 + index of the stream's next part; 0 at the end */
  uint32_t last;  /* of a stream's first part: 1 + index of its last */
  uint32_t callback;  /* 1 + its number since the last pa_run; 0: has none */
} pa_write_part;

typedef struct pa_request pa_request;

/* The beginning of every request. */
struct pa_request {
  pa_loop *loop;
  pa_request *next;
  pa_request **link;  /* the pointer that points to this one */
  uv_req_t *uv;       /* NULL: it is over */
  uint64_t *counter;  /* of those that Python has not freed or cancelled; or NULL */
  void (*release)(pa_request *);  /* frees its memory */
};

/* Lists of monitors: 10,000 monitors make 40 to look through for an event. */
#define PA_MONITOR_LISTS 256

struct pa_loop {
  uv_loop_t uv;  /* first: see pa_loop_of */
  pa_counters *counters;
  uint64_t crossings;  /* see pa_crossings */
  int in_pa_run;
  int in_uv_run;
  int closing;

  pa_queue events;  /* the batch of this iteration: Python walks it now */
  pa_queue late;    /* records pushed meanwhile: they begin the next batch */

  char *arena;      /* the data that was read in this iteration */
  size_t arena_used;
  char *text;       /* names of files that have changed in this iteration */
  size_t text_used;
  size_t text_capacity;
  int *ready;       /* the ready list: slots, in the order of their turns */
  int ready_count;
  int ready_capacity;
  int turns_taken;  /* so many of the ready list have had theirs */
  uint64_t polled;  /* the time of the last poll, in nanoseconds; set only when
                       it has left the ready list filled */
  int *unpolled;    /* slots that are polled from the next iteration on */
  int unpolled_count;
  int unpolled_capacity;

  pa_slot *slots;
  int slot_count;
  int slot_capacity;
  int free_slot;     /* list through next_free; -1 at the end */
  int retired_slot;  /* the same, of slots that Python may know still */

  pa_write_part *parts;
  uint32_t part_count;
  uint32_t part_capacity;
  uint32_t callback_count;  /* writes with a callback since the last pa_run */
  uv_buf_t *buffers;        /* scratch memory of one system call */

  pa_request *requests;  /* all that are not freed yet */
  int requests_under_way;

  uv_timer_t timer;   /* for the first deadline of Python's timers */
  int64_t timer_due;  /* the deadline that it is set for, or -1 */
  uv_async_t async;
  uv_poll_t signal_poll;
  int signal_pipe[2];   /* signal_poll reads one end, Python writes to the other;
                           0: not made yet */
  int signal_slot;      /* see pa_report_signals; -1: there is none */
  uv_timer_t look_timer;  /* runs out when look_due is to be set */
  int look_due;         /* see pa_look_due */
  uint64_t looked;      /* nothing has happened since up to this iteration */
  int inotify_fd;         /* of all monitors; -1: there has been none */
  uint64_t inotify_read;  /* in which iteration it was read last */
  uv_poll_t inotify_poll;
  struct pa_monitor *monitors[PA_MONITOR_LISTS];  /* by watch descriptor */
};

/* loop.c */
/* Returns the descriptor, or one with another number in its place: never that
 * of a standard stream. Negative: errno tells why. fd may be negative. */
int pa_above_standard_streams(int fd);
/* Makes a pipe(2): its reading end, and its writing end. Returns 0 or an
 * error. */
int pa_pipe(int *ends);
/* In the child of a fork; the lock is held. */
void pa_process_pipe_after_fork(void);

/* slots.c */
void pa_push(pa_loop *loop, int kind, int slot, int64_t value, int64_t data);
/* Makes sure of room for count records, and moves none. Returns 0 or
 * UV_ENOMEM. */
int pa_queue_reserve(pa_queue *queue, int count);
/* Begins the batch of the next pa_run, with the late records. Returns UV_ENOMEM
 * if there may be no room for what so many operations and an iteration push. */
int pa_begin_batch(pa_loop *loop, int operations);
extern const pa_kind *const pa_kinds[PA_HANDLE_KINDS];
/* Makes sure of a slot for the next pa_slot_new, which cannot fail. Returns 0
 * or UV_ENOMEM. */
int pa_slot_reserve(pa_loop *loop);
/* Returns memory for a handle, and makes sure of a slot; or NULL. */
void *pa_handle_new(pa_loop *loop, size_t size);
/* Gives the handle a slot, after its uv_*_init. The handle is memory of malloc
 * that the loop frees, in the handle's close callback and nowhere else, because
 * libuv uses it until then. */
int pa_slot_new(pa_loop *loop, uv_handle_t *handle, int kind, int flags);
/* Lets slots be used again whose PA_CLOSED Python has walked. */
void pa_free_retired_slots(pa_loop *loop);
/* Adds the slot to an array of slots. Returns 0 or UV_ENOMEM. */
int pa_add_slot(int **slots, int *count, int *capacity, int slot);
/* Closes a handle that has a slot; writes that the kernel has not taken are
 * lost. May be called more than once. */
void pa_handle_close(pa_loop *loop, uv_handle_t *handle);
/* Closes a handle of a slot that Python has not used yet: it is not counted any
 * more, and there is no PA_CLOSED. */
void pa_handle_discard(pa_loop *loop, int slot);
/* Closes all handles that have slots. */
void pa_handles_close(pa_loop *loop);
/* A uv_close_cb for a handle that has got no slot, because its start failed:
 * libuv has it in its lists all the same, from its uv_*_init on. */
void pa_free_unstarted(uv_handle_t *handle);

/* epoll.c */
/* Adds a watcher that libuv has begun to epoll's descriptors. Returns 0; or an
 * error, and then libuv does not try it either. */
int pa_epoll_add(pa_loop *loop, uv__io_t *watcher);
/* To be called before libuv polls: adds all that libuv would add. */
void pa_epoll_register(pa_loop *loop);

/* turns.c */
/* A uv_alloc_cb: without a buffer libuv does not read, but reports
 * UV_ENOBUFS. */
void pa_alloc_nothing(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer);
/* To be called at that report: reads the handle, or puts it into the ready
 * list. */
void pa_readable(uv_handle_t *handle);
/* Puts a handle into the ready list, unless there is no memory: the next poll
 * reports again what nobody has read. */
void pa_add_ready(pa_loop *loop, int slot);
/* Lets handles of the ready list read, until the budget is spent. */
void pa_take_turns(pa_loop *loop);
/* Removes those that have had their turns from the ready list. */
void pa_drop_turns_taken(pa_loop *loop);

/* addresses.c */
/* The size of the largest packed address. */
#define PA_PACKED_MAX 28
/* Both return the size of the packed address. */
size_t pa_pack_address(char *packed, const struct sockaddr *address);
size_t pa_unpack_address(const char *packed, struct sockaddr_storage *address);
socklen_t pa_address_size(const struct sockaddr_storage *address);

/* streams.c */
extern const pa_kind pa_connection_kind;
extern const pa_kind pa_stdio_kind;
void pa_stream_read_start(uv_handle_t *handle);
void pa_stream_read_stop(pa_loop *loop, int slot);
void pa_stream_shutdown(pa_loop *loop, int slot);
/* Counts a connection that has been accepted, or has connected. */
void pa_stream_opened(pa_loop *loop, int slot);
/* Reads the data that a new connection has brought along, if any. */
void pa_stream_read_first(pa_loop *loop, int slot);
/* Polls the streams that were read first and are open still. */
void pa_streams_poll(pa_loop *loop);
void pa_stream_connected(uv_connect_t *request, int status);
/* Makes sure of room for so many writes. Returns 0 or UV_ENOMEM. */
int pa_write_reserve(pa_loop *loop, uint32_t count);
/* Adds a write; the two below hand them to the kernel, of one handle or all. */
void pa_write_add(pa_loop *loop, int slot, const char *base, size_t size,
                  int callback);
void pa_write_flush(pa_loop *loop, int slot);
void pa_write_flush_all(pa_loop *loop);
/* What pa_write returns. */
int64_t pa_write_state(pa_loop *loop, int slot);

/* descriptors.c */
int pa_is_pty_master(int fd);
/* Puts back what the stream shares with others, and closes it. */
void pa_close_shared(pa_loop *loop, uv_handle_t *handle, uv_close_cb closed);
/* In the child of a fork, where it is the parent's to put back; the lock is
 * held. */
void pa_forget_shared(void);
/* libuv has made standard streams blocking, in the child that it has spawned. */
void pa_unblock_shared(void);

/* sockets.c */
/* Keeps the peer's address, if it is one of IPv4 or IPv6, for the time when the
 * system does not know it any more. To be called for every stream that has
 * names, before they are asked for. */
void pa_keep_peer(uv_handle_t *handle, const struct sockaddr *address);

/* tcp.c */
extern const pa_kind pa_server_kind;
void pa_server_accept(uv_handle_t *handle, int64_t more);

/* udp.c */
extern const pa_kind pa_udp_kind;

/* requests.c */
/* Gives zeroed memory for a request, of so many bytes, and makes sure of the
 * threads of libuv's pool. Returns 0 or an error. */
int pa_request_new(pa_loop *loop, size_t size, void (*release)(pa_request *),
                   pa_request **request);
/* libuv has begun the request uv, or has refused to, with error. Returns the
 * number by which Python knows it, or the error. */
int64_t pa_request_begin(pa_request *request, uv_req_t *uv, int error);
/* Counts one that has begun, until Python frees or cancels it. */
void pa_request_count(int64_t request, uint64_t *counter);
/* To be called in libuv's callback, when the result is there to be read. */
void pa_request_done(pa_request *request);
/* The end of the loop: the first cancels all that libuv can cancel; the second
 * frees all, when none is under way any more. */
void pa_requests_close(pa_loop *loop);
void pa_requests_free(pa_loop *loop);
/* In the child of a fork: lets it end by exit(3). */
void pa_pool_after_fork(void);

static inline pa_request *pa_request_at(int64_t address) {
  return (pa_request *) (intptr_t) address;
}

/* signals.c */
extern const pa_kind pa_signal_kind;
/* The lock of all state that the loops of the process share: the dispositions
 * of signals, and the abandoned children. */
void pa_lock(void);
void pa_unlock(void);
/* Around the life of each child, which is reaped or abandoned at its end:
 * SIGCHLD is not ignored meanwhile. The lock is held. */
void pa_child_begins(void);
void pa_child_ends(void);

/* processes.c */
extern const pa_kind pa_process_kind;
/* Reaps the children that loops have left behind and that have exited since. */
void pa_reap_abandoned(void);
/* In the child of a fork, which has no children; the lock is held. */
void pa_forget_abandoned(void);

/* fs_events.c */
extern const pa_kind pa_monitor_kind;

/* watchers.c */
extern const pa_kind pa_poller_kind;

/* A sleep begins (sign -1) or ends (1). Any thread may read idle_ns meanwhile,
 * with pa_read_times. idle_changes is the sequence number of a seqlock with one
 * writer, in C11's memory model (Boehm, "Can seqlocks get along with
 * programming language memory models?", 2012). */
static inline void pa_change_idle(pa_counters *counters, int sign) {
  uint64_t changes = counters->idle_changes;
  int64_t idle;

  __atomic_store_n(&counters->idle_changes, changes + 1, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  /* The clock is read after idle_changes has become odd. Otherwise the thread
   * could be preempted in between, and a reader would count that time as idle,
   * while the new idle_ns does not: idle time would go backwards. */
  idle = counters->idle_ns + sign * (int64_t) uv_hrtime();
  __atomic_store_n(&counters->idle_ns, idle, __ATOMIC_RELAXED);
  __atomic_store_n(&counters->idle_changes, changes + 2, __ATOMIC_RELEASE);
}

/* To be called first in each callback that libuv's poll makes: the sleep has
 * ended, and a callback that forgets it would count its own time as idle. */
static inline void pa_awake(pa_loop *loop) {
  if (loop->counters->idle_ns < 0)
    pa_change_idle(loop->counters, 1);
}

static inline int pa_has_ready(const pa_loop *loop) {
  return loop->turns_taken < loop->ready_count;
}

/* One read of the handle gave size bytes. */
static inline void pa_set_bulk(pa_slot *entry, size_t size) {
  entry->flags &= ~(PA_BULK | PA_HUGE);
  if (size >= BULK_READ)
    entry->flags |= PA_BULK;
  if (size >= HUGE_READ)
    entry->flags |= PA_HUGE;
}

/* The arena is used up to end. The next use begins at a multiple of
 * ARENA_ALIGNMENT, because memcpy is faster then. */
static inline void pa_use_arena(pa_loop *loop, size_t end) {
  loop->arena_used = (end + ARENA_ALIGNMENT - 1) & ~(ARENA_ALIGNMENT - 1);
}

static inline pa_loop *pa_loop_of(const void *handle) {
  return (pa_loop *) ((const uv_handle_t *) handle)->loop;
}

static inline int pa_slot_of(const void *handle) {
  return (int) (intptr_t) ((const uv_handle_t *) handle)->data;
}

#endif
