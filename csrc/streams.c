/* Connected streams: reading into the arena, writing at once or by libuv's
 * queue, and the ways in which they end. */
#define _GNU_SOURCE  /* IOV_MAX */
#include "pyasync.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#ifdef PA_LINUX
#include <linux/sockios.h>
#endif

/* The most that one read takes. */
#define STREAM_READ_MAX ((size_t) 256 << 10)

/* A first write of this size is surely sent at once, because the initial window
 * of TCP is larger (RFC 6928): see PA_LARGE. */
#define SENT_AT_ONCE ((size_t) 8 << 10)

/* A write that the kernel has refused, in libuv's queue, with a copy of its
 * data, because Python's memory is good only until the crossing ends. */
typedef struct {
  uv_write_t request;
  size_t size;
  uint32_t callbacks;  /* of so many writes: its own, and of empty ones behind it */
  char data[];
} pa_blocked_write;

/* Reading */

static void on_read(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer) {
  (void) size;
  (void) buffer;
  pa_readable((uv_handle_t *) stream);
}

/* Whether the kernel has taken every write. The size of libuv's queue does not
 * tell, because it is 0 also while empty writes wait in it: only the callback
 * of uv_shutdown says that the queue is empty. */
static int is_flushed(const pa_slot *entry) {
  return !(entry->flags & PA_QUEUED) || (entry->flags & PA_FLUSHED);
}

/* Python has closed the stream, and its input is dropped: the end of the input
 * may let the stream close. */
static void discard(pa_loop *loop, uv_stream_t *stream, ssize_t status) {
  int slot = pa_slot_of(stream);

  if (status >= 0)
    return;
  loop->slots[slot].flags |= PA_END_SEEN;
  if (is_flushed(&loop->slots[slot])) {
    pa_handle_close(loop, (uv_handle_t *) stream);
  } else if (status != UV_EOF) {
    pa_push(loop, PA_WRITE_ERROR, slot, status, 0);
    pa_handle_close(loop, (uv_handle_t *) stream);
  }
}

static void push_read(pa_loop *loop, int slot, ssize_t size) {
  int64_t start = (int64_t) loop->arena_used;

  pa_push(loop, PA_READ, slot, start, start + size);
  pa_use_arena(loop, (size_t) (start + size));
}

static void push_end(pa_loop *loop, int slot, ssize_t status) {
  loop->slots[slot].flags |= PA_END_SEEN;
  pa_push(loop, status == UV_EOF ? PA_EOF : PA_READ_ERROR, slot, status, 0);
}

/* Reads into the arena, once, and not until EAGAIN: that would cost a second
 * system call for each small read, and give a fast peer more than its share.
 * Returns the size, 0 if there is no input yet, UV_EOF, or another error. */
static ssize_t receive(pa_loop *loop, int slot) {
  uv_os_fd_t fd;
  ssize_t size;

  if (uv_fileno(loop->slots[slot].handle, &fd) != 0)
    return 0;
  do
    size = read(fd, loop->arena + loop->arena_used, STREAM_READ_MAX);
  while (size < 0 && errno == EINTR);
  if (size > 0)
    return size;
  if (size == 0)
    return UV_EOF;
  /* So the master of a pseudo-terminal tells that nobody has the other side. */
  if (errno == EIO && loop->slots[slot].kind == PA_STDIO &&
      pa_is_pty_master(fd))
    return UV_EOF;
  return errno == EAGAIN || errno == EWOULDBLOCK
             ? 0
             : uv_translate_sys_error(errno);
}

void pa_stream_read_stop(pa_loop *loop, int slot) {
  loop->slots[slot].flags &= ~(PA_UNPOLLED | PA_READING);
  uv_read_stop((uv_stream_t *) loop->slots[slot].handle);
}

static void received(pa_loop *loop, int slot, ssize_t size) {
  pa_slot *entry = &loop->slots[slot];

  if (size < 0) {
    pa_stream_read_stop(loop, slot);
  } else {
    loop->counters->bytes_read += (uint64_t) size;
    pa_set_bulk(entry, (size_t) size);
  }
  if (entry->flags & PA_CLOSING)
    discard(loop, (uv_stream_t *) entry->handle, size);
  else if (size > 0)
    push_read(loop, slot, size);
  else
    push_end(loop, slot, size);
}

/* Data that arrived before the write failed is delivered first: where the
 * stream waits in the ready list, the failure is reported after its turn. */
static void write_failed(pa_loop *loop, int slot, int error) {
  pa_slot *entry = &loop->slots[slot];

  entry->error = (uint8_t) -error;
  if ((entry->flags & PA_READY) && !(entry->flags & PA_CLOSING))
    entry->flags |= PA_UNREPORTED;
  else
    pa_push(loop, PA_WRITE_ERROR, slot, error, 0);
}

static void report_failure(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];

  if (entry->flags & PA_UNREPORTED)
    pa_push(loop, PA_WRITE_ERROR, slot, -(int) entry->error, 0);
  entry->flags &= ~PA_UNREPORTED;
}

/* Leaves a large read to Python. The end of the input and errors never come
 * this way, because FIONREAD gives 0 for them. */
static int leave_to_python(pa_loop *loop, int slot) {
  const pa_slot *entry = &loop->slots[slot];
  uv_os_fd_t fd;
  int size = 0;

  if ((entry->flags & (PA_HUGE | PA_READING | PA_CLOSING)) !=
          (PA_HUGE | PA_READING) ||
      uv_fileno(entry->handle, &fd) != 0 || ioctl(fd, FIONREAD, &size) != 0 ||
      (size_t) size < HUGE_READ)
    return 0;
  if ((size_t) size > STREAM_READ_MAX)
    size = STREAM_READ_MAX;
  pa_push(loop, PA_READABLE, slot, size, fd);
  pa_use_arena(loop, loop->arena_used + (size_t) size);  /* of the budget */
  return 1;
}

static void receive_in_turn(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];
  ssize_t size = 0;

  if ((entry->flags & PA_READING) && !leave_to_python(loop, slot))
    size = receive(loop, slot);
  if (size < 0 && (entry->flags & PA_UNREPORTED)) {
    /* Reports one end, not two. The kernel gives a socket's error once, to a
     * read or to a write: then the other has got only EOF or EPIPE. */
    pa_stream_read_stop(loop, slot);
    if (size != UV_EOF)
      entry->error = (uint8_t) -size;
  } else if (size != 0) {
    received(loop, slot, size);
  }
  report_failure(loop, slot);
}

void pa_stream_read_start(uv_handle_t *handle) {
  pa_slot *entry = &pa_loop_of(handle)->slots[pa_slot_of(handle)];

  entry->flags &= ~PA_UNPOLLED;
  /* libuv would report an end again that was seen. uv_read_start fails for a
   * pipe's writing end, and that is no error: there is nothing to be read. */
  if (entry->flags & (PA_END_SEEN | PA_CONNECTING))
    return;
  if (uv_read_start((uv_stream_t *) handle, pa_alloc_nothing, on_read) == 0)
    entry->flags |= PA_READING;
}

/* A request often comes with its connection, and the answer to it ends it. Such
 * a stream is never polled: two calls of epoll_ctl are a tenth of the CPU time
 * of such a request. */
void pa_stream_read_first(pa_loop *loop, int slot) {
  ssize_t size = loop->arena_used < READY_BUDGET ? receive(loop, slot) : 0;

  if (size == 0) {
    pa_stream_read_start(loop->slots[slot].handle);
    return;
  }
  received(loop, slot, size);
  if (size < 0)
    return;
  if (pa_add_slot(&loop->unpolled, &loop->unpolled_count,
                  &loop->unpolled_capacity, slot) == 0)
    loop->slots[slot].flags |= PA_UNPOLLED;
  else
    pa_stream_read_start(loop->slots[slot].handle);
}

void pa_streams_poll(pa_loop *loop) {
  int index;

  for (index = 0; index < loop->unpolled_count; index++) {
    pa_slot *entry = &loop->slots[loop->unpolled[index]];

    if ((entry->flags & PA_UNPOLLED) && entry->handle != NULL &&
        !uv_is_closing(entry->handle))
      pa_stream_read_start(entry->handle);
  }
  loop->unpolled_count = 0;
}

/* Connecting */

static uint64_t *connection_counter(pa_counters *counters,
                                    const pa_slot *entry) {
  if (entry->kind == PA_TCP)
    return entry->flags & PA_INCOMING ? &counters->incoming_tcp
                                      : &counters->outgoing_tcp;
  return entry->flags & PA_INCOMING ? &counters->incoming_pipe
                                    : &counters->outgoing_pipe;
}

void pa_stream_opened(pa_loop *loop, int slot) {
  pa_counters *counters = loop->counters;
  pa_slot *entry = &loop->slots[slot];

  if (entry->kind == PA_STDIO)
    return;  /* no connection */
  if (entry->flags & PA_INCOMING)
    counters->accepted++;
  else
    counters->connected++;
  entry->flags &= ~PA_CONNECTING;
  ++*connection_counter(counters, entry);
}

/* connection_counter tells by PA_INCOMING and the kind where it was counted. */
static void connection_closed(pa_loop *loop, const pa_slot *entry) {
  if (entry->flags & PA_CONNECTING)
    return;  /* never counted */
  --*connection_counter(loop->counters, entry);
  loop->counters->closed++;
}

void pa_stream_connected(uv_connect_t *request, int status) {
  uv_stream_t *stream = request->handle;
  pa_loop *loop = pa_loop_of(stream);
  int slot = pa_slot_of(stream);
  int closing = loop->slots[slot].flags & PA_CLOSING;

  pa_awake(loop);
  free(request);
  if (status == UV_ECANCELED || uv_is_closing((uv_handle_t *) stream))
    return;
  if (status == 0) {
    pa_stream_opened(loop, slot);
    pa_stream_read_start((uv_handle_t *) stream);
  }
  if (!closing) {
    pa_push(loop, PA_CONNECTED, slot, status, 0);
  } else if (status != 0) {
    /* Python has closed it with writes that waited for the connection. */
    pa_push(loop, PA_WRITE_ERROR, slot, status, 0);
    pa_handle_close(loop, (uv_handle_t *) stream);
  }
}

/* Writing */

int pa_write_reserve(pa_loop *loop, uint32_t count) {
  pa_write_part *parts = realloc(loop->parts, count * sizeof(*parts));
  uv_buf_t *buffers;

  if (parts == NULL)
    return UV_ENOMEM;
  loop->parts = parts;
  buffers = realloc(loop->buffers, count * sizeof(*buffers));
  if (buffers == NULL)
    return UV_ENOMEM;
  loop->buffers = buffers;
  loop->part_capacity = count;
  return 0;
}

void pa_write_add(pa_loop *loop, int slot, const char *base, size_t size,
                  int callback) {
  pa_slot *entry = &loop->slots[slot];
  pa_write_part *parts;
  uint32_t number = callback ? ++loop->callback_count : 0;
  uint32_t index;

  if (entry->handle == NULL)
    return;
  /* Without memory fewer leave together. */
  if (loop->part_count == loop->part_capacity &&
      pa_write_reserve(loop, 2 * loop->part_capacity) != 0)
    pa_write_flush_all(loop);
  parts = loop->parts;
  index = loop->part_count++;
  parts[index].base = base;
  parts[index].size = size;
  parts[index].slot = (uint32_t) slot;
  parts[index].next = 0;
  parts[index].last = index + 1;
  parts[index].callback = number;
  if (entry->writes == 0) {
    entry->writes = index + 1;
  } else {
    pa_write_part *first = &parts[entry->writes - 1];

    parts[first->last - 1].next = index + 1;
    first->last = index + 1;
  }
}

static void on_written(uv_write_t *request, int status) {
  pa_blocked_write *write = CONTAINER_OF(request, pa_blocked_write, request);
  uv_stream_t *stream = request->handle;
  pa_loop *loop = pa_loop_of(stream);
  int slot = pa_slot_of(stream);
  pa_slot *entry = &loop->slots[slot];
  uint32_t callbacks = write->callbacks;

  pa_awake(loop);
  if (status == 0) {
    loop->counters->bytes_written += write->size;
    do
      pa_push(loop, PA_WRITTEN, slot, callbacks > 0, 0);
    while (callbacks-- > 1);
  } else if (status != UV_ECANCELED && entry->error == 0) {
    write_failed(loop, slot, status);
  }
  free(write);
  if ((entry->flags & PA_CLOSING) && entry->error != 0)
    pa_handle_close(loop, (uv_handle_t *) stream);
}

/* Queues a copy of size bytes with libuv. They begin at offset in the part at
 * index, and may go on in those behind it. */
static int queue_write(pa_loop *loop, uv_stream_t *stream, uint32_t index,
                       size_t offset, size_t size, uint32_t callbacks) {
  pa_blocked_write *write = malloc(sizeof(*write) + size);
  size_t copied = 0;
  uv_buf_t buffer;
  int error;

  if (write == NULL)
    return UV_ENOMEM;
  while (copied < size) {
    const pa_write_part *part = &loop->parts[index];
    size_t length = part->size - offset;

    memcpy(write->data + copied, part->base + offset, length);
    copied += length;
    offset = 0;
    index = part->next - 1;
  }
  write->size = size;
  write->callbacks = callbacks;
  buffer.base = write->data;
  buffer.len = size;
  error = uv_write(&write->request, stream, &buffer, 1, on_written);
  if (error == 0)
    loop->slots[pa_slot_of(stream)].flags |= PA_QUEUED;
  else
    free(write);
  return error;
}

/* The writes of the part at index - 1 and those behind it are lost. Python
 * calls the callback of each write that no PA_CALLBACK_WAITS has named, and so
 * all of these must be named: Python drops them when it walks the error. */
static void lose_writes(pa_loop *loop, int slot, uint32_t index) {
  while (index != 0) {
    const pa_write_part *part = &loop->parts[index - 1];

    if (part->callback)
      pa_push(loop, PA_CALLBACK_WAITS, slot, part->callback - 1, 0);
    index = part->next;
  }
}

/* The last write in libuv's queue, which must not be empty. The queue is a list
 * of two pointers, to the next and to the previous, in every libuv. */
static pa_blocked_write *last_blocked(uv_stream_t *stream) {
  char *links[2];

  memcpy(links, &stream->write_queue, sizeof(links));
  return CONTAINER_OF(CONTAINER_OF(links[1], uv_write_t, queue),
                      pa_blocked_write, request);
}

/* Queues with libuv all but the first sent bytes of the parts from first on. A
 * write with a callback ends a request of libuv, because the request's end is
 * when the callback is due; writes without one share the next request.
 * must_wait: none was tried. Otherwise parts that the kernel has taken are
 * skipped, and empty ones behind them are done too.
 *
 * An empty write that must wait is done when the one before it is, and joins
 * that one's request. libuv would hand it to the kernel, which fails it (EPIPE)
 * when the peer of a Unix socket has read all and gone: yet nothing is lost. */
static void queue_rest(pa_loop *loop, uv_stream_t *stream, uint32_t first,
                       size_t sent, int must_wait) {
  int slot = pa_slot_of(stream);
  int error = 0;
  uint32_t index = first;

  while (!must_wait && index != 0 && sent >= loop->parts[index - 1].size) {
    sent -= loop->parts[index - 1].size;
    index = loop->parts[index - 1].next;
  }
  while (index != 0 && error == 0) {
    uint32_t start = index - 1;
    uint32_t callbacks = 0;
    size_t offset = sent;
    size_t size = 0;

    sent = 0;
    while (index != 0 &&
           (callbacks == 0 || loop->parts[index - 1].size == 0)) {
      const pa_write_part *part = &loop->parts[index - 1];

      if (part->callback) {
        pa_push(loop, PA_CALLBACK_WAITS, slot, part->callback - 1, 0);
        callbacks++;
      }
      size += part->size;
      index = part->next;
    }
    if (size == 0 && stream->write_queue_size > 0)
      last_blocked(stream)->callbacks += callbacks;
    else
      error = queue_write(loop, stream, start, offset, size - offset,
                          callbacks);
  }
  if (error != 0) {
    lose_writes(loop, slot, index);
    write_failed(loop, slot, error);
  }
}

/* Hands the buffers to the kernel. Returns how many bytes it has taken, or an
 * error. uv_try_write uses only the first IOV_MAX buffers. So a result that is
 * short of all buffers would not say that the kernel is full, and the rest
 * would be copied and queued for nothing: each call gets no more than that. */
static ssize_t try_write(uv_stream_t *stream, const uv_buf_t *buffers,
                         size_t count) {
  ssize_t total = 0;

  while (count > 0) {
    unsigned some = count < IOV_MAX ? (unsigned) count : IOV_MAX;
    int sent = uv_try_write(stream, buffers, some);
    size_t size = 0;

    if (sent == UV_EAGAIN)
      break;
    if (sent < 0)
      return sent;
    total += sent;
    count -= some;
    while (some-- > 0)
      size += (buffers++)->len;
    if ((size_t) sent < size)
      break;
  }
  return total;
}

/* Fills loop->buffers with the parts from index on, and returns the number of
 * buffers. Parts that lie side by side in the payload become one, because the
 * kernel's work grows with the number of buffers. */
static size_t gather(pa_loop *loop, uint32_t index, size_t *total) {
  size_t count = 0;

  *total = 0;
  while (index != 0) {
    const pa_write_part *part = &loop->parts[index - 1];
    uv_buf_t *last = count == 0 ? NULL : &loop->buffers[count - 1];

    if (last != NULL && last->base + last->len == part->base) {
      last->len += part->size;
    } else {
      loop->buffers[count].base = (char *) part->base;
      loop->buffers[count++].len = part->size;
    }
    *total += part->size;
    index = part->next;
  }
  return count;
}

/* Tries to write at once, from Python's memory and without a copy; libuv queues
 * only the rest. */
static void write_stream(pa_loop *loop, int slot, uint32_t first) {
  pa_slot *entry = &loop->slots[slot];
  uv_stream_t *stream = (uv_stream_t *) entry->handle;
  size_t count;
  size_t total;
  int must_wait;
  ssize_t sent = 0;

  must_wait = stream->write_queue_size > 0 || (entry->flags & PA_CONNECTING);
  count = gather(loop, first, &total);
  if (total > SENT_AT_ONCE || (entry->flags & PA_WROTE))
    entry->flags |= PA_LARGE;
  entry->flags |= PA_WROTE;
  if (total > 0 && !must_wait)
    sent = try_write(stream, loop->buffers, count);
  if (sent < 0) {
    lose_writes(loop, slot, first);
    write_failed(loop, slot, (int) sent);
    return;
  }
  loop->counters->bytes_written += (uint64_t) sent;
  if (must_wait || (size_t) sent < total) {
    queue_rest(loop, stream, first, (size_t) sent, must_wait);
    pa_push(loop, PA_BLOCKED, slot, (int64_t) (total - (size_t) sent), 0);
  }
}

void pa_write_flush(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];
  uint32_t first = entry->writes;

  if (first == 0)
    return;
  entry->writes = 0;
  if (entry->error != 0 || uv_is_closing(entry->handle))
    lose_writes(loop, slot, first);
  else
    pa_kinds[entry->kind]->write(loop, slot, first);
}

/* Each part is visited, and the first of a handle flushes them all: a handle's
 * writes leave with one system call, also where others' lie between them. */
void pa_write_flush_all(pa_loop *loop) {
  uint32_t index;

  for (index = 0; index < loop->part_count; index++) {
    int slot = (int) loop->parts[index].slot;

    if (loop->slots[slot].writes == index + 1)
      pa_write_flush(loop, slot);
  }
  loop->part_count = 0;
}

#if defined(SIOCOUTQNSD) || defined(SO_NWRITE) || defined(FIONWRITE)
#define TELLS_UNSENT 1
#else
#define TELLS_UNSENT 0
#endif

/* Bytes that the kernel has taken, and has not sent yet, because the peer or
 * the network has no room for them. 0 where the system does not tell. */
static size_t unsent_size(uv_os_fd_t fd) {
#if defined(SIOCOUTQNSD)
  int size = 0;

  if (ioctl(fd, SIOCOUTQNSD, &size) == 0 && size > 0)
    return (size_t) size;
#elif defined(SO_NWRITE)  /* macOS; what is sent and not acknowledged counts too */
  int size = 0;
  socklen_t length = sizeof(size);

  if (getsockopt(fd, SOL_SOCKET, SO_NWRITE, &size, &length) == 0 && size > 0)
    return (size_t) size;
#elif defined(FIONWRITE)  /* the BSDs; the same */
  int size = 0;

  if (ioctl(fd, FIONWRITE, &size) == 0 && size > 0)
    return (size_t) size;
#else
  (void) fd;
#endif
  return 0;
}

int64_t pa_write_state(pa_loop *loop, int slot) {
  const pa_slot *entry = &loop->slots[slot];

  if (entry->handle == NULL || entry->kind == PA_UDP)
    return 0;
  if (entry->error != 0)
    return -(int) entry->error;
  return (int64_t) uv_stream_get_write_queue_size(
      (uv_stream_t *) entry->handle);
}

size_t pa_write_queue_size(pa_loop *loop, int slot) {
  uv_handle_t *handle = loop->slots[slot].handle;

  loop->counters->crossings++;
  return handle == NULL
             ? 0
             : uv_stream_get_write_queue_size((uv_stream_t *) handle);
}

size_t pa_unsent_size(pa_loop *loop, int slot) {
  uv_handle_t *handle = loop->slots[slot].handle;
  uv_os_fd_t fd;

  loop->counters->crossings++;
  return handle == NULL || uv_fileno(handle, &fd) != 0 ? 0 : unsent_size(fd);
}

/* Ending */

/* The kernel has taken every write: whether a close must linger. A socket that
 * is closed with unread input makes the kernel send a reset, and so does input
 * that comes after the close. A reset makes the kernel drop data that it has
 * yet to send, and the peer data that it has yet to read (RFC 2525, 2.17). So
 * input is discarded until the peer's end, or until Python's linger timer
 * closes. */
static int must_discard(pa_loop *loop, uv_stream_t *stream) {
  const pa_slot *entry = &loop->slots[pa_slot_of(stream)];
  uv_os_fd_t fd;
  int size = 0;

  if ((entry->flags & (PA_END_SEEN | PA_CONNECTING | PA_NO_LINGER)) ||
      uv_fileno((uv_handle_t *) stream, &fd) != 0)
    return 0;
  if (ioctl(fd, FIONREAD, &size) == 0 && size > 0)
    return 1;
  return (entry->flags & PA_LARGE) && (!TELLS_UNSENT || unsent_size(fd) > 0);
}

/* The peer waits for an end that does not come, as a rule because it has reset
 * the connection: then a read tells more (ECONNRESET, in place of ENOTCONN),
 * and may give data first. So the stream has its turn before the report. */
static void half_close_failed(pa_loop *loop, int slot, int error) {
  pa_slot *entry = &loop->slots[slot];

  if ((entry->flags & (PA_READING | PA_READY)) == PA_READING)
    pa_add_ready(loop, slot);
  write_failed(loop, slot, error);
}

/* libuv has handed every write to the kernel, and has shut down the stream; or
 * has failed to. */
static void on_shutdown(uv_shutdown_t *request, int status) {
  uv_stream_t *stream = request->handle;
  pa_loop *loop = pa_loop_of(stream);
  pa_slot *entry = &loop->slots[pa_slot_of(stream)];

  pa_awake(loop);
  free(request);
  if (status == 0)
    entry->flags |= PA_FLUSHED;
  if (status == UV_ECANCELED)
    return;
  /* After an error there is no end of the peer to wait for, because it is gone;
   * or the stream is a pipe(2), of which shutdown(2) knows nothing (ENOTSOCK),
   * though libuv has written all. */
  if (entry->flags & PA_CLOSING) {
    if (status != 0 || !must_discard(loop, stream))
      pa_handle_close(loop, (uv_handle_t *) stream);
  } else if (status != 0 && status != UV_ENOTSOCK && entry->error == 0) {
    half_close_failed(loop, pa_slot_of(stream), status);
  }
}

static int shut(pa_loop *loop, uv_stream_t *stream) {
  pa_slot *entry = &loop->slots[pa_slot_of(stream)];
  uv_shutdown_t *request;
  uv_os_fd_t fd;
  int error;

  if (entry->flags & PA_SHUT)
    return 0;
  /* uv_shutdown asserts that there is a descriptor. There is none when a socket
   * for connecting could not be made. */
  error = uv_fileno((uv_handle_t *) stream, &fd);
  if (error != 0)
    return error;
  request = malloc(sizeof(*request));
  if (request == NULL)
    return UV_ENOMEM;
  error = uv_shutdown(request, stream, on_shutdown);
  if (error == 0)
    entry->flags |= PA_SHUT;
  else
    free(request);
  return error;
}

void pa_stream_shutdown(pa_loop *loop, int slot) {
  int error;

  pa_write_flush(loop, slot);
  if (loop->slots[slot].error != 0)
    return;
  error = shut(loop, (uv_stream_t *) loop->slots[slot].handle);
  if (error != 0)
    write_failed(loop, slot, error);
}

static void flush_and_close(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];
  uv_stream_t *stream = (uv_stream_t *) entry->handle;
  int error;

  pa_write_flush(loop, slot);
  report_failure(loop, slot);
  entry->flags |= PA_CLOSING;
  if (entry->error != 0 || (is_flushed(entry) && !must_discard(loop, stream))) {
    pa_handle_close(loop, (uv_handle_t *) stream);
    return;
  }
  error = shut(loop, stream);
  if (error != 0) {
    if (error == UV_ENOMEM)
      write_failed(loop, slot, error);  /* what is blocked is lost */
    pa_handle_close(loop, (uv_handle_t *) stream);
    return;
  }
  /* Reads also while it flushes, because a peer that is blocked in its own
   * writes reads only after them: both would wait for each other. */
  if (entry->flags & PA_NO_LINGER)
    pa_stream_read_stop(loop, slot);
  else
    pa_stream_read_start((uv_handle_t *) stream);
  pa_push(loop, PA_LINGERING, slot, 0, 0);
}

/* The stream can neither be read any more, nor be told when it can be written.
 * Data that is there already is lost, as Python closes it. */
static void refused(pa_loop *loop, int slot, int error) {
  pa_slot *entry = &loop->slots[slot];

  if (entry->flags & PA_CLOSING) {
    if (!is_flushed(entry) || (entry->flags & PA_CONNECTING))
      pa_push(loop, PA_WRITE_ERROR, slot, error, 0);
    pa_handle_close(loop, entry->handle);
  } else if (entry->flags & PA_CONNECTING) {
    pa_push(loop, PA_CONNECTED, slot, error, 0);
  } else {
    pa_stream_read_stop(loop, slot);
    if (entry->error == 0)
      write_failed(loop, slot, error);
  }
}

const pa_kind pa_connection_kind = {
    .flush_and_close = flush_and_close,
    .after_close = connection_closed,
    .receive = receive_in_turn,
    .read_start = pa_stream_read_start,
    .refused = refused,
    .write = write_stream,
};

const pa_kind pa_stdio_kind = {
    .flush_and_close = flush_and_close,
    .close = pa_close_shared,
    .receive = receive_in_turn,
    .read_start = pa_stream_read_start,
    .refused = refused,
    .write = write_stream,
};
