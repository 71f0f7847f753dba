/* A loop, and the two queues between Python and libuv.
 *
 * Out: Python sends an array of operations (three int64 each: enum
 * pa_operation, slot, value) as bytes, and the payload: the joined bytes of the
 * writes among them.
 * In: pa_run fills an array of records (pa_event), the batch, which Python
 * walks. A slot is the small number by which both sides know a handle. It is
 * given out again only after Python has walked the handle's PA_CLOSED, so that
 * no record can reach another handle's object.
 */
typedef struct pa_loop pa_loop;

typedef struct {
  int32_t kind;  /* enum pa_event_kind */
  int32_t slot;
  int64_t value;
  int64_t data;
} pa_event;

enum pa_event_kind {
  PA_READ,          /* data was read into the arena, from value to data; of
                       UDP an address and a datagram, see udp.cdef.h */
  PA_READABLE,      /* value bytes wait in the kernel, in descriptor data: so
                       many that Python reads them itself, and without a copy */
  PA_TIMER,         /* timers may be due: all up to value, in milliseconds */
  PA_ACCEPTED,      /* slot is a new connection of the server in slot value;
                       data: where the arena holds its peer's packed address,
                       or -1 */
  PA_CLOSED,        /* the handle is gone; its last event */
  PA_EOF,           /* the peer has shut down its sending side */
  PA_READ_ERROR,    /* value is the error; of UDP, data: whether the socket
                       receives nothing more until PA_READ_START */
  PA_BLOCKED,       /* the kernel has refused value bytes, for now; of UDP the
                       first of several datagrams */
  PA_CALLBACK_WAITS,  /* the callback of a blocked or lost write must wait for
                       PA_WRITTEN: the value-th one that was submitted since
                       the last pa_run, from 0 */
  PA_WRITTEN,       /* a blocked write is done; value: whether it has a
                       callback */
  PA_WRITE_ERROR,   /* value is the error; nothing more will be written. Of
                       UDP one datagram was not sent; data: whether it has a
                       callback */
  PA_LINGERING,     /* a close has begun that cannot end at once: it flushes, or
                       waits for the peer's end */
  PA_CONNECTED,     /* value is 0 or the error */
  PA_ACCEPT_ERROR,  /* value is the error; the server has paused */
  PA_SIGNAL,        /* value is the signal's number */
  PA_DONE,          /* the request at the address value is over */
  PA_IDLE,          /* once an iteration */
  PA_POLLED,        /* value: flags of enum uv_poll_event, or an error, after
                       which the descriptor is not polled */
  PA_EXITED,        /* value is the exit status, data the signal's number */
  PA_FS_CHANGED     /* value: flags of enum uv_fs_event; data: the offset of the
                       entry's name in pa_text, or -1: see pa_fs_look */
};

enum pa_operation {
  PA_WRITE,           /* value: how many bytes of the payload it takes */
  PA_WRITE_CALLBACK,  /* the same, and the write has a callback */
  PA_CLOSE,           /* close, after all writes; value: 1 to drop those that
                         the kernel has not taken; 2 not to linger */
  PA_SHUTDOWN,        /* half-close, after all writes */
  PA_READ_START,
  PA_READ_STOP,
  PA_ACCEPT           /* value: how many more connections to accept, or one of
                         enum pa_accepting */
};

enum pa_accepting {
  PA_PAUSE_ACCEPTING = -1,
  PA_RESUME_ACCEPTING = -2
};

enum pa_handle_kind {
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
  PA_STDIO,  /* our end of a child's stdio, or a descriptor that the application
                has: a stream, but no connection */
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
  int64_t idle_ns;         /* slept in the poll. During a sleep uv_hrtime() at
                              its beginning is subtracted, so that it is
                              negative: see pa_read_times */
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
  int32_t active;
  int32_t referenced;
  int32_t closing;
} pa_handle_status;

/* For any thread: each counter is one atomic load. */
void pa_copy_counters(const pa_counters *counters, pa_counters *copy);
/* For any thread. running: a loop's thread may be changing idle_ns now. In the
 * child of a fork there is none, and a change that the fork has cut off would
 * never end. */
pa_times pa_read_times(const pa_counters *counters, int running);

/* Opens /dev/null for each standard stream that is closed: to be called before
 * a descriptor is made that libuv will close. Returns 0 or an error. */
int pa_open_standard_streams(void);
/* Returns 0 and sets *place, or returns an error. UV_EBADF: somebody has closed
 * the pipe that libuv keeps for the process. */
int pa_loop_new(pa_counters *counters, pa_loop **place);
/* Closes every handle, frees the loop, and sets *place to NULL. Does nothing if
 * it is NULL already. Returns nonzero if the loop's memory could not be freed,
 * because a thread of libuv's pool still works on one of its requests. */
int pa_loop_close(pa_loop **place);

/* Performs the operations and runs one iteration. It sleeps only if wait is
 * nonzero, and at most until due, the first deadline of Python's timers in
 * milliseconds of uv_now() (-1: no timer is pending). timers_referenced: some
 * timer keeps the loop alive. Returns the number of records, n; or ~n when
 * nothing is left that keeps the loop alive. */
int pa_run(pa_loop *loop, int wait, int64_t due, int timers_referenced,
           const char *operations, int count, const char *payload);
/* Performs the operations only, and no iteration. */
void pa_submit(pa_loop *loop, const char *operations, int count,
               const char *payload);
/* One operation each, under its own name. */
void pa_close(pa_loop *loop, int slot, int64_t value);
void pa_shutdown(pa_loop *loop, int slot, int64_t value);
void pa_read_start(pa_loop *loop, int slot, int64_t value);
void pa_read_stop(pa_loop *loop, int slot, int64_t value);
void pa_accept(pa_loop *loop, int slot, int64_t value);

/* How many crossings have taken operations along: calls of pa_run, pa_submit,
 * pa_write and pa_submit_and_write. */
uint64_t pa_crossings(pa_loop *loop);
/* Sets *items to the records of the last pa_run, and returns for how many there
 * is room. They move only in a pa_run that returns more records than that. */
int pa_events(pa_loop *loop, pa_event **items);
/* How many records the last pa_run has returned. For a caller that an exception
 * has kept from the result itself. */
int pa_event_count(pa_loop *loop);
char *pa_arena(pa_loop *loop);
size_t pa_arena_size(void);

/* Ends the sleep of pa_run, or keeps the next one from sleeping. Any thread may
 * call it. */
void pa_wakeup(pa_loop *loop);
/* on: pa_run sleeps, and reports the loop as alive, also while no handle is
 * referenced, because something that only Python knows of may wake it. */
void pa_keep_alive(pa_loop *loop, int on);
/* Returns a descriptor, or an error. A byte that is written to it wakes the loop:
 * see signal.set_wakeup_fd. It is the loop's to close. A second call returns it
 * again. */
int pa_watch_signals(pa_loop *loop);
/* From now on each byte is also a record of that slot, PA_SIGNAL. For an API
 * whose handlers get a signal beside Python's own, whichever that is. */
int pa_report_signals(pa_loop *loop, int slot);
/* Whether pa_run has returned so that Python looks after the descriptor. */
int pa_look_due(pa_loop *loop);
uint64_t pa_now(pa_loop *loop);
void pa_update_time(pa_loop *loop);

/* Handles of every kind. */
void pa_ref(pa_loop *loop, int slot, int referenced);
int pa_has_ref(pa_loop *loop, int slot);
int pa_fileno(pa_loop *loop, int slot);
/* Fills at most size of statuses and returns how many handles there are. */
int pa_handles(pa_loop *loop, pa_handle_status *statuses, int size);
