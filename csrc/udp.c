/* UDP sockets: receiving in batches into the arena, sending at once or by
 * libuv's queue. */
#define _GNU_SOURCE  /* recvmmsg, sendmmsg */
#include "pyasync.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Each datagram that one recvmmsg receives has a place of this size, which is
 * more than the largest takes: longer ones would be cut off. */
#define PLACE_SIZE ((size_t) 64 << 10)
#define BATCH_MAX 20
/* After a read with more data than this, the next one is for fewer datagrams:
 * as much as a stream may read in a turn. */
#define BATCH_LARGE ((size_t) 128 << 10)
#define BATCH_OF_LARGE 4

/* Afterwards the datagrams are moved together, each behind its address, because
 * small ones would fill the arena with the rests of their places. The first
 * place lies so far ahead that no datagram is moved over the place of the next,
 * which is not moved yet: each takes PLACE_SIZE, its address and its alignment
 * at most. */
#define AHEAD ((size_t) BATCH_MAX * (PA_PACKED_MAX + ARENA_ALIGNMENT))

_Static_assert(AHEAD + BATCH_MAX * PLACE_SIZE <= READ_MAX,
               "a batch of datagrams needs room");

/* After so many errors without a datagram in between the socket pauses: an
 * error that stays would be reported as fast as it can be polled. */
#define ERRORS_MAX 16

typedef struct {
  uv_udp_t udp;
  size_t received;  /* bytes that the last read has given */
  int errors;       /* since the last datagram */
} pa_udp;

/* A datagram that the kernel has refused for now, in libuv's queue, with a copy
 * of its data. */
typedef struct {
  uv_udp_send_t request;
  struct sockaddr_storage address;
  int callback;
  size_t size;
  char data[];
} pa_blocked_send;

/* Receiving */

static void on_receive(uv_udp_t *udp, ssize_t size, const uv_buf_t *buffer,
                       const struct sockaddr *address, unsigned flags) {
  (void) size;
  (void) buffer;
  (void) address;
  (void) flags;
  pa_readable((uv_handle_t *) udp);
}

#ifdef PA_LINUX
typedef struct mmsghdr pa_datagram;

static int receive_batch(int fd, pa_datagram *batch, unsigned count) {
  return recvmmsg(fd, batch, count, 0, NULL);
}
#else
typedef struct {
  struct msghdr msg_hdr;
  unsigned msg_len;
} pa_datagram;

static int receive_batch(int fd, pa_datagram *batch, unsigned count) {
  ssize_t size = recvmsg(fd, &batch->msg_hdr, 0);

  (void) count;
  if (size < 0)
    return -1;
  batch->msg_len = (unsigned) size;
  return 1;
}
#endif

static void push_datagram(pa_loop *loop, int slot,
                          const pa_datagram *datagram) {
  const struct msghdr *message = &datagram->msg_hdr;
  size_t size = datagram->msg_len;
  size_t start = loop->arena_used;
  size_t end;

  if (message->msg_flags & MSG_TRUNC) {
    pa_push(loop, PA_READ_ERROR, slot, UV_EMSGSIZE, 0);
    return;
  }
  end = start + pa_pack_address(loop->arena + start, message->msg_name) + size;
  memmove(loop->arena + end - size, message->msg_iov->iov_base, size);
  pa_use_arena(loop, end);
  loop->counters->bytes_read += (uint64_t) size;
  ((pa_udp *) loop->slots[slot].handle)->received += size;
  pa_push(loop, PA_READ, slot, (int64_t) start, (int64_t) end);
}

static void receive_failed(pa_loop *loop, int slot, int error) {
  pa_udp *udp = (pa_udp *) loop->slots[slot].handle;
  int paused = ++udp->errors >= ERRORS_MAX;

  if (paused) {
    loop->slots[slot].flags &= ~PA_READING;
    uv_udp_recv_stop(&udp->udp);
  }
  pa_push(loop, PA_READ_ERROR, slot, error, paused);
}

static void refused(pa_loop *loop, int slot, int error) {
  ((pa_udp *) loop->slots[slot].handle)->errors = ERRORS_MAX;
  receive_failed(loop, slot, error);
}

static void receive(pa_loop *loop, int slot) {
  pa_udp *udp = (pa_udp *) loop->slots[slot].handle;
  int most = udp->received > BATCH_LARGE ? BATCH_OF_LARGE : BATCH_MAX;
  struct sockaddr_storage addresses[BATCH_MAX];
  struct iovec places[BATCH_MAX];
  pa_datagram batch[BATCH_MAX];
  uv_os_fd_t fd;
  int count;
  int i;

  if (!(loop->slots[slot].flags & PA_READING))
    return;
  if (uv_fileno((uv_handle_t *) udp, &fd) != 0)
    return;
  memset(batch, 0, most * sizeof(*batch));
  for (i = 0; i < most; i++) {
    places[i].iov_base =
        loop->arena + loop->arena_used + AHEAD + i * PLACE_SIZE;
    places[i].iov_len = PLACE_SIZE;
    batch[i].msg_hdr.msg_name = &addresses[i];
    batch[i].msg_hdr.msg_namelen = sizeof(addresses[i]);
    batch[i].msg_hdr.msg_iov = &places[i];
    batch[i].msg_hdr.msg_iovlen = 1;
  }
  do
    count = receive_batch(fd, batch, (unsigned) most);
  while (count < 0 && errno == EINTR);
  if (count < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
    receive_failed(loop, slot, uv_translate_sys_error(errno));
  udp->received = 0;
  if (count > 0)
    udp->errors = 0;
  for (i = 0; i < count; i++)
    push_datagram(loop, slot, &batch[i]);
  pa_set_bulk(&loop->slots[slot], udp->received);
}

static void read_start(uv_handle_t *handle) {
  pa_slot *entry = &pa_loop_of(handle)->slots[pa_slot_of(handle)];

  if (!(entry->flags & (PA_READING | PA_CLOSING)) &&
      uv_udp_recv_start((uv_udp_t *) handle, pa_alloc_nothing, on_receive) == 0)
    entry->flags |= PA_READING;
}

int pa_udp_open(pa_loop *loop, int fd) {
  pa_udp *udp = pa_handle_new(loop, sizeof(*udp));
  socklen_t size = sizeof(int);
  int reused = 0;
  int shared = 0;
  int error;

  loop->counters->crossings++;
  if (udp == NULL) {
    close(fd);
    return UV_ENOMEM;
  }
  udp->received = 0;
  udp->errors = 0;
  getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reused, &size);
  getsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &shared, &size);
  uv_udp_init(&loop->uv, &udp->udp);
  error = uv_udp_open(&udp->udp, fd);
  if (error != 0)
    close(fd);
  else
    error = uv_udp_recv_start(&udp->udp, pa_alloc_nothing, on_receive);
  if (error != 0) {
    uv_close((uv_handle_t *) &udp->udp, pa_free_unstarted);
    return error;
  }
  /* uv_udp_open sets SO_REUSEADDR, or on the BSDs and macOS SO_REUSEPORT. With
   * it others could bind to the same port, and the kernel would give them our
   * datagrams. A socket that the program has made keeps what it has set. */
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reused, sizeof(int));
  setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &shared, sizeof(int));
  return pa_slot_new(loop, (uv_handle_t *) &udp->udp, PA_UDP, PA_READING);
}

/* Sending */

static void send_failed(pa_loop *loop, int slot, int error, int callback) {
  pa_push(loop, PA_WRITE_ERROR, slot, error, callback);
}

static const struct sockaddr *target(const struct sockaddr_storage *address) {
  return address->ss_family == AF_UNSPEC ? NULL
                                         : (const struct sockaddr *) address;
}

/* libuv (1.44) gives up to 20 queued datagrams to one sendmmsg. When the kernel
 * refuses one of them, libuv fails those behind it too, which were not tried:
 * each is tried once more, by itself. */
static int send_alone(pa_blocked_send *send) {
  const struct sockaddr *address = target(&send->address);
  socklen_t size = address == NULL ? 0 : pa_address_size(&send->address);
  uv_os_fd_t fd;

  if (uv_fileno((uv_handle_t *) send->request.handle, &fd) != 0)
    return UV_EBADF;
  if (sendto(fd, send->data, send->size, 0, address, size) < 0)
    return uv_translate_sys_error(errno);
  return 0;
}

static void on_sent(uv_udp_send_t *request, int status) {
  pa_blocked_send *send = CONTAINER_OF(request, pa_blocked_send, request);
  uv_udp_t *udp = request->handle;
  pa_loop *loop = pa_loop_of(udp);
  int slot = pa_slot_of(udp);

  pa_awake(loop);
  if (status < 0 && status != UV_ECANCELED)
    status = send_alone(send);
  if (status == 0) {
    loop->counters->bytes_written += send->size;
    pa_push(loop, PA_WRITTEN, slot, send->callback, 0);
  } else if (status != UV_ECANCELED) {
    send_failed(loop, slot, status, send->callback);
  }
  free(send);
  if ((loop->slots[slot].flags & PA_CLOSING) &&
      uv_udp_get_send_queue_count(udp) == 0)
    pa_handle_close(loop, (uv_handle_t *) udp);
}

static int queue_send(uv_udp_t *udp, const struct sockaddr_storage *address,
                      const uv_buf_t *data, int callback) {
  pa_blocked_send *send = malloc(sizeof(*send) + data->len);
  uv_buf_t copy;
  int error;

  if (send == NULL)
    return UV_ENOMEM;
  memcpy(send->data, data->base, data->len);
  send->address = *address;
  send->callback = callback;
  send->size = data->len;
  copy = uv_buf_init(send->data, (unsigned) data->len);
  error = uv_udp_send(&send->request, udp, &copy, 1, target(address), on_sent);
  if (error != 0)
    free(send);
  else if (uv_udp_get_send_queue_count(udp) == 1)
    pa_push(pa_loop_of(udp), PA_BLOCKED, pa_slot_of(udp), (int64_t) data->len,
            0);
  return error;
}

static void send_part(pa_loop *loop, int slot, const pa_write_part *part) {
  uv_udp_t *udp = (uv_udp_t *) loop->slots[slot].handle;
  struct sockaddr_storage address;
  size_t header = pa_unpack_address(part->base, &address);
  uv_buf_t data = uv_buf_init((char *) part->base + header,
                              (unsigned) (part->size - header));
  int callback = part->callback != 0;
  int sent = uv_udp_try_send(udp, &data, 1, target(&address));

  /* The kernel reports so that an earlier datagram was refused by its receiver,
   * and has not tried this one. */
  if (sent == UV_ECONNREFUSED) {
    pa_push(loop, PA_READ_ERROR, slot, sent, 0);
    sent = uv_udp_try_send(udp, &data, 1, target(&address));
  }
  if (sent >= 0) {
    loop->counters->bytes_written += data.len;
    return;
  }
  if (callback)
    pa_push(loop, PA_CALLBACK_WAITS, slot, part->callback - 1, 0);
  if (sent == UV_EAGAIN)
    sent = queue_send(udp, &address, &data, callback);
  if (sent < 0)
    send_failed(loop, slot, sent, callback);
}

/* Sends some of the parts from index on with one system call. Returns 1 + the
 * index of the first that it has not sent; 0: it has sent them all. */
static uint32_t send_batch(pa_loop *loop, uv_udp_t *udp, uint32_t index) {
#ifdef PA_LINUX
  struct sockaddr_storage addresses[BATCH_MAX];
  struct iovec data[BATCH_MAX];
  struct mmsghdr messages[BATCH_MAX];
  uint32_t next = index;
  uv_os_fd_t fd;
  int count = 0;
  int sent;
  int i;

  if (uv_fileno((uv_handle_t *) udp, &fd) != 0)
    return index;
  for (; next != 0 && count < BATCH_MAX; count++) {
    const pa_write_part *part = &loop->parts[next - 1];
    struct msghdr *message = &messages[count].msg_hdr;
    size_t header = pa_unpack_address(part->base, &addresses[count]);

    data[count].iov_base = (char *) part->base + header;
    data[count].iov_len = part->size - header;
    memset(message, 0, sizeof(*message));
    message->msg_name = &addresses[count];
    message->msg_namelen = pa_address_size(&addresses[count]);
    message->msg_iov = &data[count];
    message->msg_iovlen = 1;
    next = part->next;
  }
  sent = sendmmsg(fd, messages, (unsigned) count, 0);
  for (i = 0; i < sent; i++) {
    loop->counters->bytes_written += data[i].iov_len;
    index = loop->parts[index - 1].next;
  }
#else
  (void) loop;
  (void) udp;
#endif
  return index;
}

/* Not a connected socket's datagrams, because it reports an error of an
 * earlier one only once, and sendmmsg keeps all errors but that of its first
 * datagram to itself. Nor any while some are queued, because they would
 * overtake those. */
static int can_batch(pa_loop *loop, uv_udp_t *udp, uint32_t index) {
  const pa_write_part *part = &loop->parts[index - 1];
  uint16_t family;

  memcpy(&family, part->base, 2);
  return part->next != 0 && family != AF_UNSPEC &&
         uv_udp_get_send_queue_count(udp) == 0;
}

static void send_parts(pa_loop *loop, int slot, uint32_t index) {
  uv_udp_t *udp = (uv_udp_t *) loop->slots[slot].handle;

  while (index != 0) {
    uint32_t unsent =
        can_batch(loop, udp, index) ? send_batch(loop, udp, index) : index;

    /* sendmmsg does not say why it stopped here: this one is tried alone. */
    if (unsent == index) {
      send_part(loop, slot, &loop->parts[index - 1]);
      unsent = loop->parts[index - 1].next;
    }
    index = unsent;
  }
}

/* 0 also where there is no handle any more: its last write has failed, and
 * Python has yet to walk the record. */
size_t pa_udp_send_queue_size(pa_loop *loop, int slot) {
  const uv_udp_t *udp = (const uv_udp_t *) loop->slots[slot].handle;

  loop->counters->crossings++;
  return udp == NULL ? 0 : uv_udp_get_send_queue_size(udp);
}

/* Datagrams that are queued go to the kernel first: on_sent closes behind the
 * last. */
static void flush_and_close(pa_loop *loop, int slot) {
  pa_slot *entry = &loop->slots[slot];
  uv_udp_t *udp = (uv_udp_t *) entry->handle;

  pa_write_flush(loop, slot);
  entry->flags |= PA_CLOSING;
  entry->flags &= ~PA_READING;
  uv_udp_recv_stop(udp);
  if (uv_udp_get_send_queue_count(udp) == 0)
    pa_handle_close(loop, (uv_handle_t *) udp);
}

const pa_kind pa_udp_kind = {
    .flush_and_close = flush_and_close,
    .receive = receive,
    .read_start = read_start,
    .refused = refused,
    .write = send_parts,
};

/* Options */

int pa_udp_connect(pa_loop *loop, int slot, const char *address) {
  struct sockaddr_storage where;

  loop->counters->crossings++;
  pa_unpack_address(address, &where);
  return uv_udp_connect((uv_udp_t *) loop->slots[slot].handle,
                        (const struct sockaddr *) &where);
}

/* By the options of RFC 3678, which are for both families, and take an
 * interface by its number. libuv's functions take it as the text of an address,
 * which an interface may share with another, or lack. */
int pa_udp_membership(pa_loop *loop, int slot, const char *group,
                      unsigned index, const char *source, int join) {
#ifdef MCAST_JOIN_GROUP
  struct group_source_req one;
  struct group_req any;
  uint16_t family;
  uv_os_fd_t fd;
  int level;
  int error;

  loop->counters->crossings++;
  error = uv_fileno(loop->slots[slot].handle, &fd);
  if (error != 0)
    return error;
  memcpy(&family, group, 2);
  level = family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
  if (source == NULL) {
    memset(&any, 0, sizeof(any));
    any.gr_interface = index;
    pa_unpack_address(group, &any.gr_group);
    error = setsockopt(fd, level, join ? MCAST_JOIN_GROUP : MCAST_LEAVE_GROUP,
                       &any, sizeof(any));
  } else {
    memset(&one, 0, sizeof(one));
    one.gsr_interface = index;
    pa_unpack_address(group, &one.gsr_group);
    pa_unpack_address(source, &one.gsr_source);
    error = setsockopt(
        fd, level, join ? MCAST_JOIN_SOURCE_GROUP : MCAST_LEAVE_SOURCE_GROUP,
        &one, sizeof(one));
  }
  return error == 0 ? 0 : uv_translate_sys_error(errno);
#else  /* NetBSD and OpenBSD have only libuv's */
  (void) slot;
  (void) group;
  (void) index;
  (void) source;
  (void) join;
  loop->counters->crossings++;
  return UV_ENOSYS;
#endif
}
