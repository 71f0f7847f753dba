/* Requests in libuv's thread pool. Python frees each after its PA_DONE; the end
 * of the loop frees those that are left. */
#include "pyasync.h"

#include <stdlib.h>

int64_t pa_request_begin(pa_loop *loop, pa_request *request, uv_req_t *uv,
                         int error) {
  if (error != 0) {
    request->release(request);
    return error;
  }
  request->loop = loop;
  request->uv = uv;
  request->counter = NULL;
  request->next = loop->requests;
  request->link = &loop->requests;
  if (loop->requests != NULL)
    loop->requests->link = &request->next;
  loop->requests = request;
  loop->requests_under_way++;
  return (int64_t) (intptr_t) request;
}

void pa_request_count(int64_t address, uint64_t *counter) {
  pa_request_at(address)->counter = counter;
  ++*counter;
}

static void uncount(pa_request *request) {
  if (request->counter != NULL)
    --*request->counter;
  request->counter = NULL;
}

void pa_request_done(pa_request *request) {
  pa_loop *loop = request->loop;

  pa_awake(loop);
  request->uv = NULL;  /* uv_cancel must not be called after the callback */
  loop->requests_under_way--;
  pa_push(loop, PA_DONE, 0, (int64_t) (intptr_t) request, 0);
}

static void release(pa_request *request) {
  uncount(request);
  *request->link = request->next;
  if (request->next != NULL)
    request->next->link = request->link;
  request->release(request);
}

static void cancel(pa_request *request) {
  uncount(request);
  if (request->uv != NULL)
    uv_cancel(request->uv);
}

void pa_request_free(pa_loop *loop, int64_t address) {
  loop->counters->crossings++;
  release(pa_request_at(address));
}

void pa_request_cancel(pa_loop *loop, int64_t address) {
  loop->counters->crossings++;
  cancel(pa_request_at(address));
}

void pa_requests_close(pa_loop *loop) {
  pa_request *request;

  for (request = loop->requests; request != NULL; request = request->next)
    cancel(request);
}

void pa_requests_free(pa_loop *loop) {
  while (loop->requests != NULL)
    release(loop->requests);
}
