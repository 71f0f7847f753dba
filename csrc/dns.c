/* Lookups of names and addresses. */
#include "pyasync.h"

#include <netdb.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  pa_request base;
  uv_getaddrinfo_t uv;
  pa_found found;
} pa_lookup;

static int format(pa_address *address, const struct addrinfo *info) {
  size_t size = sizeof(address->text);

  address->family = info->ai_family;
  /* Not uv_ip_name, because it leaves out the scope of a link-local address,
   * without which nobody can connect to it. */
  return getnameinfo(info->ai_addr, info->ai_addrlen, address->text,
                     (socklen_t) size, NULL, 0, NI_NUMERICHOST);
}

static void release(pa_request *request) {
  pa_lookup *lookup = (pa_lookup *) request;

  free(lookup->found.addresses);
  free(lookup);
}

static void on_getaddrinfo(uv_getaddrinfo_t *uv, int status,
                           struct addrinfo *infos) {
  pa_lookup *lookup = CONTAINER_OF(uv, pa_lookup, uv);
  pa_found *found = &lookup->found;
  const struct addrinfo *info;
  int count = 0;

  for (info = infos; info != NULL; info = info->ai_next)
    count++;
  found->status = status;
  found->count = 0;
  if (count > 0) {
    found->addresses = malloc(count * sizeof(pa_address));
    if (found->addresses == NULL)
      found->status = UV_EAI_MEMORY;
  }
  for (info = found->addresses == NULL ? NULL : infos; info != NULL;
       info = info->ai_next)
    if (format(&found->addresses[found->count], info) == 0)
      found->count++;
  uv_freeaddrinfo(infos);

  pa_request_done(&lookup->base);
}

static int64_t begin(pa_loop *loop, pa_request *base, void *uv, int error) {
  int64_t request = pa_request_begin(base, uv, error);

  if (request >= 0)
    pa_request_count(request, &loop->counters->open_dns_queries);
  return request;
}

int64_t pa_getaddrinfo(pa_loop *loop, const char *host, int family) {
  struct addrinfo hints;
  pa_request *request;
  pa_lookup *lookup;
  int error = pa_request_new(loop, sizeof(*lookup), release, &request);

  if (error != 0)
    return error;
  lookup = (pa_lookup *) request;
  memset(&hints, 0, sizeof(hints));
  hints.ai_family = family;
  /* Otherwise each address comes three times: for SOCK_DGRAM and SOCK_RAW
   * too. */
  hints.ai_socktype = SOCK_STREAM;
  error = uv_getaddrinfo(&loop->uv, &lookup->uv, on_getaddrinfo, host, NULL,
                         &hints);
  return begin(loop, &lookup->base, &lookup->uv, error);
}

pa_found *pa_getaddrinfo_result(int64_t request) {
  return &((pa_lookup *) pa_request_at(request))->found;
}

/* Names of addresses */

typedef struct {
  pa_request base;
  uv_getnameinfo_t uv;
  pa_name name;
} pa_reverse_lookup;

static void release_reverse(pa_request *request) {
  free(request);
}

static void on_getnameinfo(uv_getnameinfo_t *uv, int status, const char *host,
                           const char *service) {
  pa_reverse_lookup *lookup = CONTAINER_OF(uv, pa_reverse_lookup, uv);

  lookup->name.status = status;
  lookup->name.host = host;  /* memory of lookup->uv: good as long as that is */
  lookup->name.service = service;
  pa_request_done(&lookup->base);
}

int64_t pa_getnameinfo(pa_loop *loop, const char *address) {
  struct sockaddr_storage where;
  pa_reverse_lookup *lookup;
  pa_request *request;
  int error = pa_request_new(loop, sizeof(*lookup), release_reverse, &request);

  if (error != 0)
    return error;
  lookup = (pa_reverse_lookup *) request;
  pa_unpack_address(address, &where);
  error = uv_getnameinfo(&loop->uv, &lookup->uv, on_getnameinfo,
                         (const struct sockaddr *) &where, 0);
  return begin(loop, &lookup->base, &lookup->uv, error);
}

pa_name *pa_getnameinfo_result(int64_t request) {
  return &((pa_reverse_lookup *) pa_request_at(request))->name;
}
