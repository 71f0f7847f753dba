/* Addresses, from their packed form (addresses.cdef.h) and to it. Fields are
 * copied with memcpy, because a packed address may lie at any byte. */
#include "pyasync.h"

#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

size_t pa_pack_address(char *packed, const struct sockaddr *address) {
  uint16_t family = address->sa_family;

  memcpy(packed, &family, 2);
  if (family == AF_INET) {
    const struct sockaddr_in *in = (const struct sockaddr_in *) address;

    memcpy(packed + 2, &in->sin_port, 2);
    memcpy(packed + 4, &in->sin_addr, 4);
    return 8;
  } else {
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *) address;
    uint32_t scope = in6->sin6_scope_id;

    memcpy(packed + 2, &in6->sin6_port, 2);
    memcpy(packed + 4, &in6->sin6_flowinfo, 4);
    memcpy(packed + 8, &in6->sin6_addr, 16);
    memcpy(packed + 24, &scope, 4);
    return PA_PACKED_MAX;
  }
}

size_t pa_unpack_address(const char *packed, struct sockaddr_storage *address) {
  uint16_t family;

  memcpy(&family, packed, 2);
  memset(address, 0, sizeof(struct sockaddr_in6));
  address->ss_family = family;
#ifdef SIN6_LEN  /* of the BSDs, whose socket options look at it */
  address->ss_len = pa_address_size(address);
#endif
  if (family == AF_INET) {
    struct sockaddr_in *in = (struct sockaddr_in *) address;

    memcpy(&in->sin_port, packed + 2, 2);
    memcpy(&in->sin_addr, packed + 4, 4);
    return 8;
  } else if (family == AF_INET6) {
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *) address;
    uint32_t scope;

    memcpy(&in6->sin6_port, packed + 2, 2);
    memcpy(&in6->sin6_flowinfo, packed + 4, 4);
    memcpy(&in6->sin6_addr, packed + 8, 16);
    memcpy(&scope, packed + 24, 4);
    in6->sin6_scope_id = scope;
    return PA_PACKED_MAX;
  }
  return 2;
}

socklen_t pa_address_size(const struct sockaddr_storage *address) {
  return address->ss_family == AF_INET ? sizeof(struct sockaddr_in)
                                       : sizeof(struct sockaddr_in6);
}

/* Interfaces */

static int has_address(const struct ifaddrs *entry,
                       const struct sockaddr_storage *address) {
  const void *own = entry->ifa_addr;

  if (own == NULL || entry->ifa_addr->sa_family != address->ss_family)
    return 0;
  if (address->ss_family == AF_INET) {
    in_addr_t wanted = ((const struct sockaddr_in *) address)->sin_addr.s_addr;
    in_addr_t mask = INADDR_NONE;

    /* A loopback interface has all addresses of its networks, such as
     * 127.0.0.2, but getifaddrs names only the first. */
    if ((entry->ifa_flags & IFF_LOOPBACK) && entry->ifa_netmask != NULL)
      mask = ((const struct sockaddr_in *) (const void *) entry->ifa_netmask)
                 ->sin_addr.s_addr;
    return ((((const struct sockaddr_in *) own)->sin_addr.s_addr ^ wanted) &
            mask) == 0;
  }
  return IN6_ARE_ADDR_EQUAL(
      &((const struct sockaddr_in6 *) own)->sin6_addr,
      &((const struct sockaddr_in6 *) address)->sin6_addr);
}

int pa_interface_with(const char *packed) {
  struct sockaddr_storage address;
  const struct ifaddrs *entry;
  struct ifaddrs *entries;
  unsigned found = 0;

  pa_unpack_address(packed, &address);
  if (getifaddrs(&entries) != 0)
    return uv_translate_sys_error(errno);
  for (entry = entries; entry != NULL; entry = entry->ifa_next)
    if (has_address(entry, &address)) {
      unsigned index = if_nametoindex(entry->ifa_name);

      if (found != 0 && found != index) {
        found = 0;  /* a link-local address, as a rule: it needs a zone */
        break;
      }
      found = index;
    }
  freeifaddrs(entries);
  return (int) found;
}
