/* Requests in libuv's thread pool. Python frees each after its PA_DONE; the end
 * of the loop frees those that are left. */
#include "pyasync.h"

#include <stdlib.h>

/* libuv's pool */

#define POOL_SIZE 4  /* libuv's default, and its greatest size */
#define POOL_SIZE_MAX 1024

static int pool_started;  /* by this process */

static unsigned pool_size(void) {
  const char *size = getenv("UV_THREADPOOL_SIZE");
  unsigned count = size == NULL ? POOL_SIZE : (unsigned) atoi(size);

  if (count == 0)
    return 1;
  return count < POOL_SIZE_MAX ? count : POOL_SIZE_MAX;
}

static void wait_at(void *gate) {
  uv_sem_wait(gate);
}

/* Starts as many threads as the pool has, of the same size, and ends them. */
static int try_threads(void) {
  uv_thread_options_t options = {.flags = UV_THREAD_HAS_STACK_SIZE,
                                 .stack_size = (size_t) 8 << 20};
  unsigned size = pool_size();
  uv_thread_t *threads = malloc(size * sizeof(*threads));
  unsigned count = 0;
  uv_sem_t gate;
  int error = threads == NULL ? UV_ENOMEM : uv_sem_init(&gate, 0);
  unsigned index;

  if (error != 0) {
    free(threads);
    return error;
  }
  while (count < size && error == 0) {
    error = uv_thread_create_ex(&threads[count], &options, wait_at, &gate);
    if (error == 0)
      count++;
  }
  for (index = 0; index < count; index++)
    uv_sem_post(&gate);
  for (index = 0; index < count; index++)
    uv_thread_join(&threads[index]);
  uv_sem_destroy(&gate);
  free(threads);
  return error;
}

/* libuv starts its threads with the first request, and aborts if it cannot. So
 * they are tried before. */
static int require_pool(void) {
  int error = 0;

  pa_lock();
  if (!pool_started)
    error = try_threads();
  if (error == 0)
    pool_started = 1;
  pa_unlock();
  return error;
}

/* The end of a process. libuv's destructor joins the threads of the pool, also
 * those of the parent, which a forked child has not got: it would die of that,
 * or wait for ever. When a child uses the pool, libuv starts it anew. So a child
 * that has not does it at its end, before the destructors run. */

static int registered;

static void do_nothing(uv_work_t *work) {
  (void) work;
}

static void renew_pool(void) {
  uv_loop_t loop;
  uv_work_t work;

  if (pool_started)
    return;
  setenv("UV_THREADPOOL_SIZE", "1", 1);  /* one thread will do */
  if (try_threads() != 0 || uv_loop_init(&loop) != 0)
    return;
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

int pa_request_new(pa_loop *loop, size_t size, void (*release)(pa_request *),
                   pa_request **request) {
  int error = require_pool();

  loop->counters->crossings++;
  if (error != 0)
    return error;
  *request = calloc(1, size);
  if (*request == NULL)
    return UV_ENOMEM;
  (*request)->loop = loop;
  (*request)->release = release;
  return 0;
}

int64_t pa_request_begin(pa_request *request, uv_req_t *uv, int error) {
  pa_loop *loop = request->loop;

  if (error != 0) {
    request->release(request);
    return error;
  }
  request->uv = uv;
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
