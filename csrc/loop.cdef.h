/* A loop, and the two queues between Python and libuv.
 *
 * Out: Python sends an array of operations (three int64 each: what, slot,
 * value) as bytes, and the joined bytes of their writes. In: pa_run fills an array of pa_event
 * that Python walks. A slot is the small number by which both sides know a
 * handle; it is given out again only after Python has walked the handle's
 * PA_CLOSED.
 */
typedef struct pa_loop pa_loop;

typedef struct {
  int32_t kind;  /* enum pa_event_kind */
  int32_t slot;
  int64_t value;
  int64_t data;
} pa_event;

enum pa_event_kind {
  PA_NOTHING,
  PA_READ,          /* the arena from value to data holds what was read; of
                       UDP an address and a datagram, see udp.cdef.h */
  PA_TIMER,         /* timers may be due: all up to value, in milliseconds */
  PA_ACCEPTED,      /* slot is a new connection of the server in slot value */
  PA_CLOSED,        /* the handle is gone; its last event */
  PA_EOF,           /* the peer has shut down its sending side */
  PA_READ_ERROR,    /* value is the error */
  PA_BLOCKED,       /* the kernel refused value bytes of what was written */
  PA_CALLBACK_WAITS,          /* so the callback of a write must wait for PA_WRITTEN:
                       the value-th since the last pa_run, from 0 */
  PA_WRITTEN,       /* a queued write is done; value: has it a callback */
  PA_WRITE_ERROR,   /* value is the error; nothing more will be written; of
                       UDP one datagram was not sent; data: has it a callback */
  PA_LINGERING,     /* a close that cannot end at once has begun */
  PA_CONNECTED,     /* value is 0 or the error */
  PA_ACCEPT_ERROR,  /* value is the error; the server has paused */
  PA_SIGNAL,        /* value is the signal's number */
  PA_DONE,          /* the request at the address value is over */
  PA_IDLE,          /* once an iteration */
  PA_POLLED,        /* value: which of enum uv_poll_event */
  PA_EXITED,        /* value is the exit status, data the signal's number */
  PA_FS_CHANGED     /* value: which of enum uv_fs_event; data: where pa_text
                       has the entry's name, or -1: see pa_fs_look */
};

enum pa_operation {
  PA_WRITE,           /* value: bytes of the payload */
  PA_WRITE_CALLBACK,  /* the same, and a callback waits for it */
  PA_CLOSE,           /* flush, then close; value: nonzero to drop instead */
  PA_SHUTDOWN,        /* half-close, after what was written */
  PA_READ_START,
  PA_READ_STOP,
  PA_ACCEPT           /* value: how many more connections to accept, or -1 */
};

enum pa_handle_kind {
  PA_INTERNAL,  /* the loop's own: never reported */
  PA_TCP,
  PA_PIPE,
  PA_TCP_SERVER,
  PA_PIPE_SERVER,
  PA_SIGNAL_HANDLER,
  PA_IDLER,
  PA_POLLER,
  PA_PROCESS,
  PA_FS_MONITOR,
  PA_UDP,
  PA_STDIO,  /* our end of a child's stdio: a stream, but no connection */
  PA_HANDLE_KINDS
};

/* Written by the loop's thread, read by any. Python owns the memory, so that
 * a reader can outlive the loop. */
typedef struct {
  uint64_t accepted;
  uint64_t connected;
  uint64_t closed;
  uint64_t accept_errors;
  uint64_t bytes_read;
  uint64_t bytes_written;
  uint64_t iterations;
  uint64_t events;
  uint64_t crossings;      /* calls from Python into C */
  int64_t idle_ns;         /* slept in the poll; less uv_hrtime() during a
                              sleep, and so negative: see pa_read_times */
  uint64_t idle_changes;   /* odd while idle_ns is being changed */
  uint64_t incoming_tcp;   /* open connections */
  uint64_t outgoing_tcp;
  uint64_t incoming_pipe;
  uint64_t outgoing_pipe;
  uint64_t open_dns_queries;
  uint64_t handles[PA_HANDLE_KINDS];  /* open */
} pa_counters;

typedef struct {
  int64_t now;   /* uv_hrtime() */
  int64_t idle;  /* nanoseconds slept in the poll until then */
} pa_times;

typedef struct {
  int32_t kind;
  int32_t slot;
  int32_t active;
  int32_t referenced;
  int32_t closing;
} pa_handle_status;

/* For any thread. running: a thread may be changing the counters now. */
pa_times pa_read_times(const pa_counters *counters, int running);

/* Returns 0 and sets *place, or returns an error. */
int pa_loop_new(pa_counters *counters, pa_loop **place);
/* Closes every handle and frees the loop, and sets *place to NULL: where that
 * is NULL already, it does nothing. Returns nonzero if it could not free all,
 * because a thread of libuv's pool still works on a request of it. */
int pa_loop_close(pa_loop **place);

/* Performs the operations and runs one iteration, which sleeps for events
 * only if wait is nonzero, and until due, in milliseconds of uv_now() (-1: no
 * timer is pending). Returns the number of events; its complement (~n) when
 * no referenced handle is left, and no timer that timers_referenced tells of. */
int pa_run(pa_loop *loop, int wait, int64_t due, int timers_referenced,
           const char *operations, int count, const char *payload);
/* Performs the operations only. */
void pa_submit(pa_loop *loop, const char *operations, int count,
               const char *payload);
/* One operation each, under its own name. */
void pa_close(pa_loop *loop, int slot, int64_t value);
void pa_shutdown(pa_loop *loop, int slot, int64_t value);
void pa_read_start(pa_loop *loop, int slot, int64_t value);
void pa_read_stop(pa_loop *loop, int slot, int64_t value);
void pa_accept(pa_loop *loop, int slot, int64_t value);

/* How often pa_run, pa_submit, pa_write and pa_submit_and_write have been called. */
uint64_t pa_crossings(pa_loop *loop);
/* Where the events of the last pa_run are; returns for how many there is
 * room. It moves only in a pa_run that returns more events than that. */
int pa_events(pa_loop *loop, pa_event **items);
/* How many they are, for a caller that has lost what pa_run returned. */
int pa_event_count(pa_loop *loop);
char *pa_arena(pa_loop *loop);
size_t pa_arena_size(void);

/* Ends the sleep of pa_run; the one function for any thread. */
void pa_wakeup(pa_loop *loop);
/* Whether pa_run is to sleep, and to report the loop as alive, although no
 * handle is referenced: something that only Python knows of may wake it. */
void pa_keep_alive(pa_loop *loop, int on);
/* The loop wakes when fd, the other end of signal.set_wakeup_fd's, has data. */
int pa_watch_signals(pa_loop *loop, int fd);
uint64_t pa_now(pa_loop *loop);
void pa_update_time(pa_loop *loop);

/* Handles of every kind. */
void pa_ref(pa_loop *loop, int slot, int referenced);
int pa_has_ref(pa_loop *loop, int slot);
int pa_fileno(pa_loop *loop, int slot);
/* Fills at most size of statuses and returns how many handles there are. */
int pa_handles(pa_loop *loop, pa_handle_status *statuses, int size);
