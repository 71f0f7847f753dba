/* Lookups of names. */
#include "pyasync.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pa_lookup {
  uv_getaddrinfo_t request;
  pa_loop *loop;
  pa_lookup *next;
  int number;
};

static void forget(pa_lookup *lookup) {
  pa_lookup **link = &lookup->loop->lookups;

  while (*link != lookup)
    link = &(*link)->next;
  *link = lookup->next;
  lookup->loop->counters->open_dns_queries--;
}

static int format(pa_address *address, const struct addrinfo *info) {
  size_t size = sizeof(address->text);

  address->family = info->ai_family;
  /* getnameinfo, in place of uv_ip_name, for the scope of a link's address. */
  return getnameinfo(info->ai_addr, info->ai_addrlen, address->text,
                     (socklen_t) size, NULL, 0, NI_NUMERICHOST);
}

static void on_getaddrinfo(uv_getaddrinfo_t *request, int status,
                           struct addrinfo *infos) {
  pa_lookup *lookup = CONTAINER_OF(request, pa_lookup, request);
  pa_loop *loop = lookup->loop;
  pa_found *found = pa_grow(NULL, sizeof(*found));
  const struct addrinfo *info;
  int count = 0;

  pa_awake(loop);
  for (info = infos; info != NULL; info = info->ai_next)
    count++;
  found->status = status;
  found->count = 0;
  found->addresses = count == 0 ? NULL : pa_grow(NULL, count * sizeof(pa_address));
  for (info = infos; info != NULL; info = info->ai_next)
    if (format(&found->addresses[found->count], info) == 0)
      found->count++;
  uv_freeaddrinfo(infos);

  forget(lookup);
  found->next = loop->found;
  loop->found = found;
  pa_push(loop, PA_DONE, lookup->number, (int64_t) (intptr_t) found, 0);
  free(lookup);
}

int pa_getaddrinfo(pa_loop *loop, int number, const char *host, int family) {
  pa_lookup *lookup = pa_grow(NULL, sizeof(*lookup));
  struct addrinfo hints;
  int error;

  loop->counters->crossings++;
  memset(&hints, 0, sizeof(hints));
  hints.ai_family = family;
  hints.ai_socktype = SOCK_STREAM;  /* or each address comes three times */
  lookup->loop = loop;
  lookup->number = number;
  error = uv_getaddrinfo(&loop->uv, &lookup->request, on_getaddrinfo, host,
                         NULL, &hints);
  if (error != 0) {
    free(lookup);
    return error;
  }
  lookup->next = loop->lookups;
  loop->lookups = lookup;
  loop->counters->open_dns_queries++;
  return 0;
}

void pa_found_free(pa_loop *loop, pa_found *found) {
  pa_found **link = &loop->found;

  while (*link != found)
    link = &(*link)->next;
  *link = found->next;
  free(found->addresses);
  free(found);
}

void pa_lookup_cancel(pa_loop *loop, int number) {
  pa_lookup *lookup;

  loop->counters->crossings++;
  for (lookup = loop->lookups; lookup != NULL; lookup = lookup->next)
    if (lookup->number == number)
      uv_cancel((uv_req_t *) &lookup->request);
}

void pa_lookups_cancel_all(pa_loop *loop) {
  pa_lookup *lookup;

  for (lookup = loop->lookups; lookup != NULL; lookup = lookup->next)
    uv_cancel((uv_req_t *) &lookup->request);
}
