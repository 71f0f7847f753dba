/* Names and options of the socket of a handle. */
#include "pyasync.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static int descriptor(pa_loop *loop, int slot, uv_os_fd_t *fd) {
  const uv_handle_t *handle = loop->slots[slot].handle;

  loop->counters->crossings++;
  return handle == NULL ? UV_EBADF : uv_fileno(handle, fd);
}

/* Names */

_Static_assert(sizeof(struct sockaddr_storage) <= PA_NAME_MAX,
               "a name needs room");

static int is_internet(const struct sockaddr *address) {
  return address->sa_family == AF_INET || address->sa_family == AF_INET6;
}

static int pack_name(char *name, const struct sockaddr_storage *address,
                     socklen_t size) {
  const struct sockaddr_un *pipe = (const struct sockaddr_un *) address;
  size_t start = offsetof(struct sockaddr_un, sun_path);
  size_t length = size > start ? size - start : 0;
  uint16_t family = address->ss_family;

  if (is_internet((const struct sockaddr *) address))
    return (int) pa_pack_address(name, (const struct sockaddr *) address);
  if (family != AF_UNIX)
    return UV_EAFNOSUPPORT;
  if (length > 0 && pipe->sun_path[0] != '\0')  /* else it is abstract */
    length = strnlen(pipe->sun_path, length);
  memcpy(name, &family, sizeof(family));
  memcpy(name + sizeof(family), pipe->sun_path, length);
  return (int) (sizeof(family) + length);
}

/* The system forgets the peer's address when the peer resets the connection,
 * which it may do before Python hears of it. So the address is kept, in a field
 * of every handle that libuv uses on Windows only (uv.h, UV_HANDLE_FIELDS), and
 * costs no memory. */
void pa_keep_peer(uv_handle_t *handle, const struct sockaddr *address) {
  char packed[PA_PACKED_MAX] = {0};  /* family 0: no address is kept */

  if (is_internet(address))
    pa_pack_address(packed, address);
  if (sizeof(handle->u) >= sizeof(packed))
    memcpy(&handle->u, packed, sizeof(packed));
}

static int kept_peer(const pa_slot *entry, char *name) {
  struct sockaddr_storage address;

  if (entry->kind != PA_TCP || (entry->flags & PA_CONNECTING) ||
      sizeof(entry->handle->u) < PA_PACKED_MAX)
    return 0;
  pa_unpack_address((const char *) &entry->handle->u, &address);
  return is_internet((const struct sockaddr *) &address)
             ? pack_name(name, &address, 0)
             : 0;
}

int pa_getpeername(pa_loop *loop, int slot, char *name) {
  struct sockaddr_storage address;
  socklen_t size = sizeof(address);
  uv_os_fd_t fd;
  int error = descriptor(loop, slot, &fd);
  int kept;

  if (error != 0)
    return error;
  if (getpeername(fd, (struct sockaddr *) &address, &size) == 0)
    return pack_name(name, &address, size);
  error = uv_translate_sys_error(errno);
  kept = kept_peer(&loop->slots[slot], name);
  return kept > 0 ? kept : error;
}

int pa_getsockname(pa_loop *loop, int slot, char *name) {
  struct sockaddr_storage address;
  socklen_t size = sizeof(address);
  uv_os_fd_t fd;
  int error = descriptor(loop, slot, &fd);

  if (error != 0)
    return error;
  if (getsockname(fd, (struct sockaddr *) &address, &size) != 0)
    return uv_translate_sys_error(errno);
  return pack_name(name, &address, size);
}

/* Options */

int pa_getsockopt(pa_loop *loop, int slot, int level, int option, char *value,
                  unsigned size) {
  socklen_t length = size;
  uv_os_fd_t fd;
  int error = descriptor(loop, slot, &fd);

  if (error != 0)
    return error;
  if (getsockopt(fd, level, option, value, &length) != 0)
    return uv_translate_sys_error(errno);
  return (int) length;
}

int pa_setsockopt(pa_loop *loop, int slot, int level, int option,
                  const char *value, unsigned size) {
  uv_os_fd_t fd;
  int error = descriptor(loop, slot, &fd);

  if (error != 0)
    return error;
  if (setsockopt(fd, level, option, value, size) != 0)
    return uv_translate_sys_error(errno);
  return 0;
}

int pa_is_stream_socket(int fd) {
  socklen_t size = sizeof(int);
  int type = 0;
  int listens = 0;

  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0)
    return 0;
  getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size);
  return type == SOCK_STREAM && !listens;
}

int pa_peercred_option(void) {
#ifdef SO_PEERCRED
  return SO_PEERCRED;
#else
  return -1;
#endif
}
