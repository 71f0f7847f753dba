/* Requests in libuv's thread pool. Python frees each after its PA_DONE; the end
 * of the loop frees those that are left. */
#include "pyasync.h"

#include <stdlib.h>

/* The end of a process. libuv's destructor joins the threads of the pool, also
 * those of the parent, which a forked child has not got: it would die of that,
 * or wait for ever. When a child uses the pool, libuv starts it anew. So a child
 * that has not does it at its end, before the destructors run. */

static int pool_started;  /* by this process */
static int registered;

static void do_nothing(uv_work_t *work) {
  (void) work;
}

static void renew_pool(void) {
  uv_loop_t loop;
  uv_work_t work;

  if (pool_started || uv_loop_init(&loop) != 0)
    return;
  setenv("UV_THREADPOOL_SIZE", "1", 1);  /* one thread will do */
  uv_queue_work(&loop, &work, do_nothing, NULL);
  uv_run(&loop, UV_RUN_DEFAULT);
  uv_loop_close(&loop);
}

void pa_pool_after_fork(void) {
  if (pool_started && !registered)
    registered = atexit(renew_pool) == 0;
  pool_started = 0;
}

/* Requests */

int64_t pa_request_begin(pa_loop *loop, pa_request *request, uv_req_t *uv,
                         int error) {
  if (error != 0) {
    request->release(request);
    return error;
  }
  pool_started = 1;
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
