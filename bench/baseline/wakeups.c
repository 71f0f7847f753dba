/* Wakes a libuv loop from another thread with uv_async_send: the thread waits
 * for each to be answered before the next.
 *
 *   wakeups SECONDS
 *
 * Prints how many there were a second, and the CPU seconds of both threads for
 * each.
 */
#include <uv.h>

#include "common.h"

static uv_async_t notifier;
static uv_sem_t answered;
static double deadline;
static long wakeups;
static int done;

static void on_wakeup(uv_async_t* handle) {
  wakeups++;
  if (now() >= deadline) {
    done = 1;
    uv_close((uv_handle_t*) handle, NULL);
  }
  uv_sem_post(&answered);
}

static void notify(void* argument) {
  while (!done) { /* the semaphore orders this after on_wakeup */
    uv_async_send(&notifier);
    uv_sem_wait(&answered);
  }
}

int main(int argc, char** argv) {
  double began = now(), cpu = cpu_seconds();
  uv_thread_t thread;
  if (argc != 2) {
    fprintf(stderr, "usage: %s SECONDS\n", argv[0]);
    return 2;
  }
  deadline = began + atof(argv[1]);
  check(uv_sem_init(&answered, 0), "semaphore");
  check(uv_async_init(uv_default_loop(), &notifier, on_wakeup), "async");
  check(uv_thread_create(&thread, notify, NULL), "thread");
  uv_run(uv_default_loop(), UV_RUN_DEFAULT);
  uv_thread_join(&thread);
  printf("{\"per_second\": %.1f, \"cpu_seconds\": %.9f}\n",
         wakeups / (now() - began), (cpu_seconds() - cpu) / wakeups);
  return 0;
}
